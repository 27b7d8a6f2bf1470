"""Images in tar files, with WebDataset's names: files of one sample share their name up to the first dot.

The image of a sample is the member with the suffix of an image (each of them, if there are several), its label stands
in a ``.json`` or ``.cls`` member. Each tar file is a chunk: it is read in sequence, without seeking, and a little ahead
of whoever takes the images.
"""

import gzip
import hashlib
import json
import logging
import re
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from inference.embedding.images import is_image_name
from inference.galleries.labels import Label
from inference.galleries.sources import Chunk, Content, Item
from utils.addresses import without_passwords
from utils.errors import UserError
from utils.remote import open_file, size_of
from utils.tar import DamagedTarError, read_members

logger = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
FIELDS = ("pid", "camid")  # of the .json members, if they have them
LABEL_SUFFIXES = (".json", ".cls")

_INTEGER = re.compile(r"-?[0-9]{1,18}")  # what fits into 64 bits
_BLOCK_BYTES, _BLOCKS_AHEAD = 1 << 20, 8  # read by a thread while the images before are decoded

Kinds = tuple[type, type] | None  # of identity and camera; None without labels


@dataclass(frozen=True)
class TarShards:
    """Tar files of images.

    Attributes:
        paths: files or URLs, in the order of the rows.
        sizes: of each in bytes, None where unknown.
        about: see :class:`inference.galleries.sources.Source`.
        fields: of the .json members, that hold identity and, if there are two, camera; None takes FIELDS, if there.
        kinds: of the labels of all images.
    """

    paths: Sequence[str]
    sizes: Sequence[int | None]
    about: dict[str, Any]
    fields: Sequence[str] | None = None
    kinds: Kinds = None

    @classmethod
    def opened(cls, paths: Sequence[str], about: dict[str, Any], fields: Sequence[str] | None = None) -> Self:
        """Shards whose first image tells what kind of labels all have.

        Raises:
            UserError: a shard does not exist, or none can be read.
        """
        with ThreadPoolExecutor(16) as executor:  # a request each, behind URLs
            sizes = list(executor.map(size_of, paths))
        failed: UserError | None = None
        for path in paths:
            try:
                with closing(_items(path, fields)) as items:
                    return cls(paths, sizes, about, fields, _kinds(next(items).label))
            except UserError as error:  # whoever reads it says so again, and may go on with the next
                failed = failed or error
        raise failed or UserError("there are no shards.")

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.kinds is not None

    def check_kind(self, label: Label | None, what: str) -> None:
        """Raise a UserError unless the images have labels of the same kind as ``label``, of ``what``."""
        if _kinds(label) != self.kinds:
            raise UserError(
                f"{what} has {_described(_kinds(label))}, but the first image of the tar files has "
                f"{_described(self.kinds)}: append images with labels of the same kind, or name another OUTPUT_DIR."
            )

    def chunks(self) -> Sequence[Chunk]:
        """A chunk for each tar file."""
        return [Chunk(without_passwords(path), path) for path in self.paths]

    def read(self, chunk: Chunk) -> Iterator[Item]:
        """The images of a tar file, up to where it is damaged.

        Raises:
            UserError: it cannot be read, or not to its end, holds no images, or labels of another kind than the others.
        """
        with closing(_read_ahead(_items(chunk.key, self.fields))) as items:
            for item in items:
                if _kinds(item.label) != self.kinds:
                    raise UserError(
                        f"{item.path} has {_described(_kinds(item.label))}, but the first image of all shards has "
                        f"{_described(self.kinds)}: give all images labels of one kind."
                    )
                yield item

    def digest(self) -> str:
        """Of the names and sizes of the files."""
        rows = list(zip(self.paths, self.sizes, strict=True))
        return hashlib.sha256(json.dumps([rows, self.fields]).encode()).hexdigest()


class _Member(NamedTuple):
    name: str
    content: bytes
    is_image: bool


def _items(path: str, fields: Sequence[str] | None) -> Generator[Item, None, None]:
    """The images of a shard, whose bytes are read already."""
    name = without_passwords(path)
    images = without = 0
    example = ""
    for members in _samples(path):
        found = [member for member in members.values() if member.is_image]
        others = [member for member in members.values() if not member.is_image]
        if not found:
            without, example = without + 1, example or next(iter(members))
            continue
        label = _label(name, found[0], others, fields)
        for member in found:
            images += 1
            title = f"{name}/{member.name}"
            yield Item(title, Content(title, member.content), label)
    if without:
        logger.warning("Passed over in %s: %d samples without an image, such as %r.", name, without, example)
    if not images:
        raise UserError(f"{name} holds no images; expected members such as 0001.jpg.")


def _samples(path: str) -> Iterator[dict[str, _Member]]:
    """The members of each sample by name, of which only images and labels are read."""
    name = without_passwords(path)
    key, members, count = "", dict[str, _Member](), 0
    try:
        with open_file(path) as file:
            plain = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
            for written, content in read_members(plain, _is_read):
                count += 1
                title = written.removeprefix("./")
                folder, _, base = title.rpartition("/")
                if base.startswith("."):
                    continue
                if (now := f"{folder}/{base.partition('.')[0]}") != key and members:
                    yield members
                    members = {}
                key = now
                if title in members:
                    raise UserError(f"{name} has two members called {title}; give each sample a name of its own.")
                members[title] = _Member(title, content, is_image_name(base))
    except UserError:
        raise
    except (DamagedTarError, zlib.error, EOFError, OSError) as error:
        raise UserError(
            f"{name} cannot be read to its end as a tar file ({error}); {count} members before that are whole. "
            "Copy or make it anew."
        ) from error
    if members:
        yield members


def _is_read(name: str) -> bool:
    return is_image_name(name) or name.endswith(LABEL_SUFFIXES)


def _label(shard: str, image: _Member, others: Sequence[_Member], fields: Sequence[str] | None) -> Label | None:
    """The label that stands beside an image, if one does."""
    place = next((member for member in others if member.name.endswith(".json")), None)
    if place is not None and (label := _label_in_json(f"{shard}/{place.name}", place.content, fields)):
        return label
    if fields:
        raise UserError(f"{shard}/{image.name} has no .json member beside it; --label-fields needs one.")
    place = next((member for member in others if member.name.endswith(".cls")), None)
    if place is None:
        return None
    text = place.content.decode(errors="replace").strip()
    if not _INTEGER.fullmatch(text):
        raise UserError(f"{shard}/{place.name} holds {text[:40]!r}; expected the number of an identity.")
    return int(text), None


def _label_in_json(name: str, content: bytes, fields: Sequence[str] | None) -> Label | None:
    try:
        data = json.loads(content)
    except ValueError as error:
        raise UserError(f"{name} cannot be read as JSON ({error}).") from error
    if not isinstance(data, dict):
        raise UserError(f'{name} holds a {type(data).__name__}; expected an object, such as {{"pid": 7}}.')
    values = []
    for field in fields or FIELDS:
        value = data.get(field)
        if value is None and fields:
            raise UserError(f"{name} has no {field} (--label-fields); found {', '.join(data) or 'nothing'}.")
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        is_odd = isinstance(value, bool) or not isinstance(value, int | str | None) or value == ""
        if is_odd or "\0" in str(value) or (isinstance(value, int) and not _INTEGER.fullmatch(str(value))):
            raise UserError(f"{name}: {field} is {value!r}; expected a whole number of up to 18 digits, or text.")
        values.append(value)
    pid, camid = (*values, None)[:2]
    return None if pid is None else (pid, camid)


def _kinds(label: Label | None) -> Kinds:
    return None if label is None else (type(label[0]), type(label[1]))


def _described(kinds: Kinds) -> str:
    names = {int: "a number", str: "a name", type(None): "none"}
    return "no label" if kinds is None else f"{names[kinds[0]]} for identity and {names[kinds[1]]} for camera"


def _read_ahead(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The same items, read by a thread in blocks of about _BLOCK_BYTES, of which few wait at a time."""

    def take() -> tuple[list[Item], UserError | None]:
        block: list[Item] = []
        left = _BLOCK_BYTES
        try:
            while left > 0 and (item := next(items, None)) is not None:
                block.append(item)
                left -= len(item.image.content)
        except UserError as error:
            return block, error  # after what is whole
        return block, None

    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="shard") as executor:
        try:
            waiting = deque(executor.submit(take) for _ in range(_BLOCKS_AHEAD))
            error = None
            while error is None:
                block, error = waiting.popleft().result()
                yield from block
                if not block:
                    break
                waiting.append(executor.submit(take))
            if error is not None:
                raise error
        finally:
            executor.shutdown(cancel_futures=True)
