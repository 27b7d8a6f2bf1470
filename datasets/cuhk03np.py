"""CUHK03 ("DeepReID", CVPR 2014) by the new protocol ("Re-ranking Person Re-identification ...", CVPR 2017)."""

from datasets.counts import Counts, Published
from datasets.readers.named_files import FolderDataModule, NameRule


class CUHK03NPLabeled(FolderDataModule):
    """ROOT_DIR/cuhk03-np/labeled (or CUHK03-NP/labeled): boxes drawn by hand; files such as 0001_c1_1.png.

    Published: train 767 identities, 7368 images; query 700, 1400; gallery 700, 5328; two cameras in each.
    """

    folders = ("cuhk03-np/labeled", "CUHK03-NP/labeled")
    rule = NameRule(num_cameras=2, max_pid=1467, example="0001_c1_1.png")
    family = "CUHK03"
    published = Published(Counts(767, 7368, 2), Counts(700, 1400, 2), Counts(700, 5328, 2))


class CUHK03NPDetected(CUHK03NPLabeled):
    """ROOT_DIR/cuhk03-np/detected (or CUHK03-NP/detected): boxes found by a detector; named like the labeled ones.

    Published: train 767 identities, 7365 images; query 700, 1400; gallery 700, 5332; two cameras in each.
    """

    folders = ("cuhk03-np/detected", "CUHK03-NP/detected")
    published = Published(Counts(767, 7365, 2), Counts(700, 1400, 2), Counts(700, 5332, 2))
