"""Market-1501 ("Scalable Person Re-identification: A Benchmark", ICCV 2015)."""

from datasets.folders import FolderDataModule


class Market1501(FolderDataModule):
    """ROOT_DIR/market1501; six cameras; identity -1 marks junk detections, 0 marks distractors, which are kept."""

    folder = "market1501"
    num_cameras = 6
    max_pid = 1501
    junk_pid = -1
