"""Finds out what ``create_embeddings.py --from`` names: a list, a table, tar files, or a folder behind a URL."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from datasets.readers.table import PARQUET_SUFFIXES
from inference.embedding.images import is_image_name
from inference.galleries.listed import ImageList, read_image_table, read_list
from inference.galleries.shards import TAR_SUFFIXES, TarShards
from inference.galleries.sources import CHUNK
from utils.addresses import without_passwords
from utils.errors import MissingPathError, UserError
from utils.remote import expand, folder_of, is_url, list_folder

logger = logging.getLogger(__name__)

_TABLES = (".csv", *PARQUET_SUFFIXES)
_QUERY = re.compile(r"(?<=.)[?#].*")  # of https://host/images.tar?signature=...
_EXPECTED = "a list (.txt), a table (.csv, .parquet, .pq), tar files (.tar, .tar.gz, .tgz), or a folder of those"


def open_source(where: str, fields: Sequence[str] | None = None, chunk_size: int = CHUNK) -> ImageList | TarShards:
    """The images that a text names.

    Args:
        where: a list (see :func:`inference.galleries.listed.read_list`), a table, one tar file or several by braces and
            wildcards (``shards/{00000..00012}.tar``, ``shards/*.tar``), or a folder of tar files; each a path or a URL
            of fsspec's. Behind a URL, a folder or a pattern of images too.
        fields: columns, or fields of JSON members, with identity and camera; None takes pid and camid, if there.
        chunk_size: images in a chunk of a list; a tar file is one in any case.

    Raises:
        UserError: there is no such source, or it cannot be read; the message says what was expected.
    """
    name = without_passwords(where)
    about: dict[str, Any] = {"root": folder_of(name), "in_subfolders": False, "source": {"from": name}}
    # Over https, asking whether a file is a folder may fetch all of it.
    is_named = is_url(where) and ("*" in where or _ending(where).endswith((".txt", *_TABLES, *TAR_SUFFIXES)))
    inside = None if is_named else list_folder(where)
    if inside is not None:
        about["root"] = name
    files = inside if inside is not None else expand(where)
    shards = [file for file in files if _ending(file).endswith(TAR_SUFFIXES)]
    images = [file for file in files if is_image_name(_ending(file))]
    chosen = shards or images
    if inside is not None and chosen and len(chosen) < len(files):
        what = "tar files" if shards else "images"
        logger.warning("Passed over in %s: %d files that are not %s.", name, len(files) - len(chosen), what)
    if shards and (inside is not None or len(shards) == len(files)):
        return TarShards.opened(shards, about, fields)
    if images and is_url(where) and (inside is not None or len(images) == len(files)):
        if fields:
            raise UserError(f"--label-fields has no use for images without a table, which {name} names.")
        return ImageList.of(images, about, chunk_size=chunk_size)
    if inside is not None:
        way_out = "" if is_url(where) else " A folder of images goes into DATASETS.ROOT_DIR, without --from."
        raise UserError(f"the folder {name} holds no tar files ({', '.join(TAR_SUFFIXES)}).{way_out}")
    if not files:
        raise MissingPathError(f"no file is called {name}; expected {_EXPECTED}.")
    if len(files) == 1 and _ending(files[0]).endswith(".txt"):
        if fields:
            raise UserError(f"--label-fields has no use for {name}, which lists paths alone; a table has labels.")
        return read_list(files[0], about, chunk_size)
    if len(files) == 1 and _ending(files[0]).endswith(_TABLES):
        return read_image_table(files[0], about, fields, chunk_size)
    raise UserError(f"--from {name} is not one of the sources: expected {_EXPECTED}.")


def _ending(path: str) -> str:
    return (_QUERY.sub("", path) if is_url(path) else path).lower()
