"""MSMT17 ("Person Transfer GAN to Bridge Domain Gap for Person Re-Identification", CVPR 2018)."""

from pathlib import Path

from datasets.bases import Annotation, ReidDataModule, Splits
from datasets.counts import Counts, Published
from datasets.readers.files import check_images, read_list
from utils.errors import UserError

NUM_CAMERAS = 15
# The lists number the identities of training and of test from 0 each; ours of the test count on from this number.
TRAIN_IDENTITIES = 1041


class MSMT17V1(ReidDataModule):
    """ROOT_DIR/MSMT17_V1 with {train, test} and list_{train, val, query, gallery}.txt.

    A line of a list is a path below train or test and the identity: 0000/0000_000_01_0303morning_0015_0.jpg 0, where
    the third number of the file name is the camera. Training takes list_train and list_val together, which the
    publication counts as the training set. The pid of a test image is its number in the list plus 1041.

    Published: train 1041 identities, 32621 images (30248 and 2373 in the two lists); query 3060, 11659; gallery 3060,
    82161; 15 cameras in each.
    """

    folder = "MSMT17_V1"
    train_folder, test_folder = "train", "test"
    family = "MSMT17"
    published = Published(Counts(1041, 32621, 15), Counts(3060, 11659, 15), Counts(3060, 82161, 15))

    def read_splits(self) -> Splits:
        root = Path(self.cfg.DATASETS.ROOT_DIR) / self.folder
        train = [
            image for name in ("train", "val") for image in _read(root / f"list_{name}.txt", root / self.train_folder)
        ]
        query, gallery = (
            _read(root / f"list_{name}.txt", root / self.test_folder, TRAIN_IDENTITIES) for name in ("query", "gallery")
        )
        return Splits(train, query, gallery)


class MSMT17V2(MSMT17V1):
    """ROOT_DIR/MSMT17_V2 with {mask_train_v2, mask_test_v2}: the images and lists of V1, with faces blurred."""

    folder = "MSMT17_V2"
    train_folder, test_folder = "mask_train_v2", "mask_test_v2"


def _read(list_path: Path, image_folder: Path, first_pid: int = 0) -> list[Annotation]:
    images = []
    for name, pid in read_list(list_path):
        fields = Path(name).name.split("_")
        if len(fields) < 4 or not fields[2].isdecimal():
            raise UserError(
                f"{list_path}: the camera cannot be read from {name}; expected a name such as "
                "0000/0000_000_01_0303morning_0015_0.jpg."
            )
        camera = int(fields[2])
        if not 1 <= camera <= NUM_CAMERAS:
            raise UserError(f"{list_path}: camera {camera} of {name} is out of range; expected 1 to {NUM_CAMERAS}.")
        images.append((str(image_folder / name), first_pid + pid, camera - 1))
    check_images((path for path, _, _ in images), list_path)
    return images
