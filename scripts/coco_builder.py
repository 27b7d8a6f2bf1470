"""Builds the COCO files that the scripts write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.files import write_text

INFO = {"year": 2019, "version": 1.0, "description": "", "contributor": "", "url": "", "date_created": ""}
LICENSES = {"id": 0, "name": "", "url": ""}


def category(number: int, name: str, supercategory: str = "fashion") -> dict[str, Any]:
    """Build one entry of the list of categories."""
    return {"id": number, "name": name, "supercategory": supercategory}


class CocoBuilder:
    """Collects the images and annotations of one COCO file; adding one takes constant time.

    Args:
        header: what the file holds besides images and annotations.
    """

    def __init__(self, header: Mapping[str, Any] | None = None) -> None:
        self.header = dict(header or {})
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add_image(self, number: int, file_name: str, size: tuple[int, int]) -> None:
        """Add an image by its id, the name of its file, and its width and height in pixels."""
        self.images.append(
            {
                "id": number,
                "file_name": file_name,
                "width": size[0],
                "height": size[1],
                "license": 0,
                "flickr_url": "",
                "coco_url": "",
                "date_captured": "",
            }
        )

    def add_box(self, number: int, image_id: int, category_id: int, bbox: list[float]) -> None:
        """Add an annotation with a box [left, top, width, height], before cropping."""
        self._annotate(number, image_id, category_id, "", bbox, {})

    def add_identity(
        self,
        number: int,
        image_id: int,
        category_id: int,
        *,
        pair_id: int,
        style: int | str,
        source: str,
        area: int = 0,
        bbox: list[float] | str = "",
    ) -> None:
        """Add an annotation of an image that shows one identity.

        Args:
            number: id of the annotation.
            image_id: id of its image.
            category_id: id of its category.
            pair_id: the identity.
            style: tells apart the items of one pair.
            source: "user" or "shop".
            area: pixels of the box that was cut out; 0 if there was none.
            bbox: left, top, width, height within the image; empty for the whole image.
        """
        self._annotate(
            number, image_id, category_id, area, bbox, {"pair_id": pair_id, "style": style, "source": source}
        )

    def _annotate(
        self,
        number: int,
        image_id: int,
        category_id: int,
        area: int | str,
        bbox: list[float] | str,
        more: Mapping[str, Any],
    ) -> None:
        annotation = {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": "", "area": area}
        self.annotations.append({**annotation, "bbox": bbox, "iscrowd": 0, **more})

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises UserError if the folder cannot be written to."""
        write_text(path, json.dumps({**self.header, "images": self.images, "annotations": self.annotations}))

    def summary(self, name: str) -> str:
        """One line for the user: how many images and identities there are."""
        identities = {annotation.get("pair_id") for annotation in self.annotations}
        return f"{name}: {len(self.images)} images, {len(identities)} identities"
