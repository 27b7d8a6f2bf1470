"""DukeMTMC-reID (arXiv:1609.01775 and arXiv:1701.07717), and Occluded-Duke, a split of it with occluded queries."""

from datasets.counts import Counts, Published
from datasets.readers.named_files import FolderDataModule, NameRule


class DukeMTMCreID(FolderDataModule):
    """ROOT_DIR/DukeMTMC-reID; eight cameras.

    Published: train 702 identities, 16522 images; query 702, 2228; gallery 1110, of which 408 are distractors, 17661;
    eight cameras in each.
    """

    folders: tuple[str, ...] = ("DukeMTMC-reID",)
    rule = NameRule(num_cameras=8, example="0002_c1_f0044158.jpg")
    family = "DukeMTMC"
    published = Published(Counts(702, 16522, 8), Counts(702, 2228, 8), Counts(1110, 17661, 8))


class OccludedDuke(DukeMTMCreID):
    """ROOT_DIR/Occluded_Duke (or Occluded-Duke): the images of DukeMTMC-reID, same names, split differently.

    "Pose-Guided Feature Alignment for Occluded Person Re-Identification" (ICCV 2019). Published: train 702 identities,
    15618 images; query 519, 2210, all occluded; gallery 1110, 17661; eight cameras in each.
    """

    folders = ("Occluded_Duke", "Occluded-Duke")
    published = Published(Counts(702, 15618, 8), Counts(519, 2210, 8), Counts(1110, 17661, 8))
