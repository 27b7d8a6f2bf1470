"""DukeMTMC-reID (arXiv:1609.01775 and arXiv:1701.07717)."""

from datasets.folders import FolderDataModule


class DukeMTMCreID(FolderDataModule):
    """ROOT_DIR/DukeMTMC-reID; eight cameras."""

    folder = "DukeMTMC-reID"
    num_cameras = 8
