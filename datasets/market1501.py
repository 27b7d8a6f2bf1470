"""Market-1501 ("Scalable Person Re-identification: A Benchmark", ICCV 2015)."""

from datasets.counts import Counts, Published
from datasets.readers.named_files import FolderDataModule, NameRule


class Market1501(FolderDataModule):
    """ROOT_DIR/market1501; six cameras; identity -1 marks junk detections, 0 marks distractors, which are kept.

    Published, without junk: train 751 identities, 12936 images; query 750, 3368; gallery 750 and the distractors,
    which count as one identity here, 15913; six cameras in each.
    """

    folders = ("market1501",)
    rule = NameRule(num_cameras=6, max_pid=1501, junk_pid=-1)
    distractor_pids = (0,)
    published = Published(Counts(751, 12936, 6), Counts(750, 3368, 6), Counts(751, 15913, 6))
