"""VehicleID ("Deep Relative Distance Learning: Tell the Difference Between Similar Vehicles", CVPR 2016)."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from datasets.bases import Annotation, ReidDataModule, Splits
from datasets.counts import Counts, Published
from datasets.draws import GalleryDraw, draw_one_each
from datasets.loading import Sample
from datasets.notes import PassedOver
from datasets.readers.files import check_images, find_folder, read_list
from utils.errors import UserError
from utils.image import IMAGE_SUFFIXES


def split_test_list(images: list[tuple[str, int]]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Split a test list into queries and gallery: one image of each identity, drawn at random, goes to the gallery.

    This is the first of the draws that :meth:`VehicleID800.draw_gallery` makes: it is the same in every run, for any
    seed, on any machine, and in every list.

    Args:
        images: (name, identity).

    Returns:
        Queries in the order of the list, and one gallery image per identity, ascending.
    """
    query, gallery = draw_one_each("VehicleID", images, 0)
    return [images[i] for i in query], [images[i] for i in gallery]


class VehicleID800(ReidDataModule):
    """ROOT_DIR/VehicleID_V1.0 (or VehicleID) with image/ and train_test_split/{train_list, test_list_800}.txt.

    A line of a list is the name of an image without .jpg and the identity: 0000001 1. There are no cameras. An image
    that is not there as .jpg may have another suffix of images, in upper or lower case. :func:`split_test_list` says
    which test images are the gallery of the first draw.

    The released lists contain: train 13164 identities, 113346 images; small test (800) 6493 images, of which 800 are
    the gallery. The paper describes an earlier version and gives slightly different numbers.
    """

    test_list = "test_list_800.txt"
    family = "VehicleID"
    published: Published = Published(Counts(13164, 113346, None), Counts(800, 5693, None), Counts(800, 800, None))

    def read_splits(self) -> Splits:
        passed = PassedOver(self.cfg.DATASETS.ROOT_DIR)
        folder = find_folder(Path(self.cfg.DATASETS.ROOT_DIR), ("VehicleID_V1.0", "VehicleID"), passed)
        lists = folder / "train_test_split"
        train = read_list(lists / "train_list.txt")
        query, gallery = split_test_list(read_list(lists / self.test_list))
        if not query:
            raise UserError(f"{lists / self.test_list} has one image of each identity; queries need a second one.")
        # There are no cameras: the gallery gets camid 1, so that no image shares the query's.
        images, files = folder / "image", _index(folder / "image")
        splits = Splits(
            _locate(images, files, train, 0),
            _locate(images, files, query, 0),
            _locate(images, files, gallery, 1),
            has_cameras=False,
            notes=passed.notes(),
        )
        check_images((path for path, _, _ in splits.train), lists / "train_list.txt")
        check_images((path for path, _, _ in splits.query + splits.gallery), lists / self.test_list)
        return splits

    def draw_gallery(self, images: Sequence[Sample], number: int) -> GalleryDraw:
        """One image of each identity is the gallery, drawn anew for each of ten repetitions (Liu et al., CVPR 2016)."""
        return draw_one_each("VehicleID", [(Path(path).stem, pid) for path, pid, *_ in images], number)


class VehicleID1600(VehicleID800):
    """VehicleID800 with test_list_1600.txt: 13377 images of 1600 identities, of which 1600 are the gallery."""

    test_list = "test_list_1600.txt"
    published = VehicleID800.published._replace(query=Counts(1600, 11777, None), gallery=Counts(1600, 1600, None))


class VehicleID2400(VehicleID800):
    """VehicleID800 with test_list_2400.txt: 19777 images of 2400 identities, of which 2400 are the gallery."""

    test_list = "test_list_2400.txt"
    published = VehicleID800.published._replace(query=Counts(2400, 17377, None), gallery=Counts(2400, 2400, None))


def _index(folder: Path) -> dict[str, list[str]]:
    """The image files of a folder by their names without the suffix."""
    files: defaultdict[str, list[str]] = defaultdict(list)
    for file in sorted(os.listdir(folder)) if folder.is_dir() else ():  # noqa: PTH208 (plain strings: speed)
        stem, suffix = os.path.splitext(file)  # noqa: PTH122 (as above)
        if suffix.lower() in IMAGE_SUFFIXES:
            files[stem].append(file)
    return dict(files)


def _locate(folder: Path, files: dict[str, list[str]], images: list[tuple[str, int]], camid: int) -> list[Annotation]:
    """The files of listed images. Raises UserError if two files other than a .jpg go by one listed name."""
    annotations = []
    for name, pid in images:
        usual = f"{name}.jpg"
        found = files.get(name, [usual])
        if len(found) > 1 and usual not in found:
            raise UserError(f"{folder} has {' and '.join(found)}, which a list does not tell apart; keep one of them.")
        annotations.append((str(folder / (usual if usual in found else found[0])), pid, camid))
    return annotations
