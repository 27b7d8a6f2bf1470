"""Data sets in COCO files: images with an id and a file name, annotations with an image_id and a pair_id (identity)."""

from collections import Counter
from pathlib import Path
from typing import Any

from datasets.bases import Annotation, ReidDataModule, Splits
from datasets.notes import SINGLE, UNLABELLED, WHOLE, PassedOver
from datasets.readers.files import check_images, read_json
from utils.errors import MissingPathError, UserError

MAX_PID = 2**63  # identities become tensors of int64


def derive_json_path(train_path: str, subset: str) -> Path:
    """The path of another subset's file: ``subset`` replaces "train" in the file name; folders keep their names.

    Raises:
        UserError: the path is empty, or the file name does not contain "train".
    """
    path = Path(train_path)
    if not train_path:
        raise UserError("DATASETS.JSON_TRAIN_PATH is empty; expected the COCO file of the training set.")
    if "train" not in path.name:
        raise UserError(
            f'DATASETS.JSON_TRAIN_PATH is {train_path}; its file name must contain "train", because the query and '
            'gallery files are found by putting "query" and "gallery" in its place.'
        )
    return path.with_name(path.name.replace("train", subset))


def read_coco(json_path: Path, image_folder: Path, camid: int, passed: PassedOver | None = None) -> list[Annotation]:
    """Read one image for each annotation, in the order of the annotations.

    Args:
        json_path: the COCO file.
        image_folder: the folder that file names are relative to.
        camid: camera of all images.
        passed: collects images without an annotation, and annotations of images that have those of other identities.

    Returns:
        (path, pair_id, camid) of each annotation; never empty.

    Raises:
        MissingPathError: the file, the folder or one of the images does not exist.
        UserError: not JSON, a key is missing or has a wrong value, an annotation refers to no image, or no
            annotations.
    """
    content = _load_object(json_path)
    if not image_folder.is_dir():
        raise MissingPathError(f"Folder {image_folder} does not exist; DATASETS.ROOT_DIR must be the folder above it.")
    file_names: dict[float | str, Any] = {}
    for i, image in enumerate(_get_list(content, "images", json_path)):
        number, name = _get_id(image, "id", json_path, "images", i), _get(image, "file_name", json_path, "images", i)
        if file_names.setdefault(number, name) != name:
            raise UserError(f"{json_path}: images[{i}] has the id {number!r} of another image, {file_names[number]}.")
    annotations = []
    unlabelled = dict(file_names)
    for i, annotation in enumerate(_get_list(content, "annotations", json_path)):
        image_id = _get_id(annotation, "image_id", json_path, "annotations", i)
        if image_id not in file_names:
            raise UserError(f"{json_path}: annotations[{i}] refers to image_id {image_id!r}, which no image has.")
        pid = _get(annotation, "pair_id", json_path, "annotations", i)
        if not isinstance(pid, int) or isinstance(pid, bool) or not -MAX_PID <= pid < MAX_PID:
            raise UserError(
                f"{json_path}: annotations[{i}] has pair_id {pid!r}; expected an integer that fits in 64 bits."
            )
        unlabelled.pop(image_id, None)
        annotations.append((str(image_folder / str(file_names[image_id])), pid, camid))
    if not annotations:
        raise UserError(f"{json_path} has no annotations; expected at least one.")
    if passed is not None:
        passed.add(UNLABELLED, *(image_folder / str(name) for name in unlabelled.values()))
        identities = Counter(path for path, _ in {(path, pid) for path, pid, _ in annotations})
        passed.add(WHOLE, *(path for path, _, _ in annotations if identities[path] > 1))
    check_images((path for path, _, _ in annotations), json_path)
    return annotations


def drop_single_images(annotations: list[Annotation], json_path: Path, passed: PassedOver) -> list[Annotation]:
    """Leave out identities that have only one image, which ``passed`` collects. Raises UserError if none is left."""
    counts = Counter(pid for _, pid, _ in annotations)
    kept = [annotation for annotation in annotations if counts[annotation[1]] > 1]
    if not kept:
        raise UserError(f"{json_path}: no pair_id has two or more images, so there is nothing to train on.")
    passed.add(SINGLE, *(path for path, pid, _ in annotations if counts[pid] == 1))
    return kept


class CocoDataModule(ReidDataModule):
    """JSON_TRAIN_PATH and its query and gallery siblings, with images in ROOT_DIR/{train, query, gallery}.

    Training and query images have camid 0, gallery images camid 1. Training identities with only one image are left
    out.
    """

    one_numbering = False  # conversions number the identities of each file from 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataset_dir = Path(self.cfg.DATASETS.ROOT_DIR)
        self.train_dir, self.query_dir, self.gallery_dir = (
            self.dataset_dir / subset for subset in ("train", "query", "gallery")
        )

    def describe_source(self) -> str:
        """The COCO file of the training set, and the folder of the images."""
        return f"DATASETS.JSON_TRAIN_PATH {self.cfg.DATASETS.JSON_TRAIN_PATH}, {super().describe_source()}"

    def read_splits(self) -> Splits:
        train_path = self.cfg.DATASETS.JSON_TRAIN_PATH
        paths = {subset: derive_json_path(train_path, subset) for subset in ("train", "query", "gallery")}
        passed = PassedOver(train_path)
        train = read_coco(paths["train"], self.train_dir, 0, passed)
        train = drop_single_images(train, paths["train"], passed)
        query = read_coco(paths["query"], self.query_dir, 0, passed)
        gallery = read_coco(paths["gallery"], self.gallery_dir, 1, passed)
        return Splits(train, query, gallery, notes=passed.notes())


def _load_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with images and annotations, found a {type(content).__name__}.")
    return content


def _get_list(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    if not isinstance(content.get(key), list):
        raise UserError(f'{path} has no list "{key}".')
    return content[key]


def _get(entry: Any, key: str, path: Path, section: str, position: int) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise UserError(f'{path}: {section}[{position}] has no "{key}".')
    return entry[key]


def _get_id(entry: Any, key: str, path: Path, section: str, position: int) -> float | str:
    value = _get(entry, key, path, section, position)
    if not isinstance(value, int | float | str) or isinstance(value, bool):  # tables often write 1.0 for 1
        raise UserError(f"{path}: {section}[{position}] has {key} {value!r}; expected a number or text.")
    return value
