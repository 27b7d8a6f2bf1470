"""Galleries in a vector store, which other programs can search as well: Milvus, embedded in a file or on a server.

The gallery NAME is a Milvus alias for the collection NAME_<digest of the gallery>, with the fields ``id`` (row of the
gallery), ``path`` and ``embedding``, and the metric L2, which is the squared Euclidean distance. Embeddings of unit
length are kept beside it under NAME_unit; the distance there is twice the cosine distance.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from inference.searching.exact import Found
from inference.searching.indexes import embedding_blocks, fingerprint
from utils.errors import UserError
from utils.optional import require

logger = logging.getLogger(__name__)

MOST_RESULTS = 16384  # that Milvus returns for a query
_LONGEST_PATH = 65535  # bytes that Milvus stores
INSERT_BYTES = 4 << 20  # far below the 64 MiB that a server accepts in a message, with room for paths
_QUERY_ROWS = 64
_ALL_LISTS = 65536  # the most that Milvus allows


@contextmanager
def open_store(
    uri: str, name: str, gallery: Any, gallery_paths: Sequence[str], unit: bool, revision: str = ""
) -> "Iterator[MilvusStore]":
    """A gallery in Milvus, to be searched; written there first if there is none under this name, or a different one.

    Args:
        uri: a file ending in .db, or the address of a server.
        name: of the gallery in the store.
        gallery: [N, D].
        gallery_paths: N names.
        unit: scale embeddings to unit length.
        revision: what gallery.json says, which tells apart galleries whose rows were replaced; "" for nothing.

    Raises:
        UserError: a package is missing, the store cannot be reached, the numbers of paths and embeddings differ, or
            another program made a collection of this name.
    """
    if len(gallery_paths) != len(gallery):
        raise UserError(f"the gallery has {len(gallery)} embeddings but {len(gallery_paths)} paths.")
    with closing(MilvusStore(uri, f"{name}_unit" if unit else name)) as store:
        store.keep(gallery, gallery_paths, unit, revision)
        yield store


class MilvusStore:
    """One gallery in a Milvus server, or in the embedded milvus-lite.

    Args:
        uri: a file ending in .db, or the address of a server (http://host:19530). Its access token is MILVUS_TOKEN.
        name: name of the gallery.

    Raises:
        UserError: a package is missing, or the store cannot be reached.
    """

    def __init__(self, uri: str, name: str) -> None:
        self._uri, self._name = uri, name
        self._milvus = require("pymilvus", "search", "--store milvus:...")
        self._embedded = uri.endswith(".db")
        for noisy in ("pymilvus", "grpc", "milvus_lite", "faiss"):  # their errors reach the user in ours
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        if self._embedded:
            self._server = require("milvus_lite.server_manager", "search", f"--store milvus:{uri}")
        with self._errors():
            if self._embedded:
                Path(uri).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._client = self._milvus.MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""))
            except self._milvus.MilvusException as error:
                if not self._embedded:
                    raise
                raise UserError(
                    f"the store {uri} cannot be opened ({error.message}); expected a store of Milvus Lite, or an "
                    "unused file name in a writable folder: name another one, --store milvus:FILE.db."
                ) from error

    def keep(self, gallery: Any, paths: Sequence[str], unit: bool, revision: str = "") -> bool:
        """Make this the gallery of the store; other programs see the old one or the new one, never a part of it.

        Args:
            gallery: [N, D].
            paths: N names.
            unit: scale embeddings to unit length.
            revision: as for :func:`open_store`.

        Returns:
            Whether the gallery had to be written.

        Raises:
            UserError: another program made a collection of this name.
        """
        collection = f"{self._name}_{_digest(gallery, paths, revision)}"
        with self._errors():
            names = self._client.list_collections()
            if self._name in names:
                raise UserError(
                    f"{self._uri} has a collection {self._name} that was not made by this program: name another one, "
                    f"--store 'milvus:{self._uri}#NAME'."
                )
            known = self._client.has_collection(self._name)
            if known and self._client.describe_alias(self._name)["collection_name"] == collection:
                return False
            logger.info("Writing %d items to %s of %s.", len(gallery), collection, self._uri)
            if collection in names:  # from a run that was interrupted
                self._client.drop_collection(collection)
            self._write(collection, gallery, paths, unit)
            (self._client.alter_alias if known else self._client.create_alias)(collection, self._name)
            for old in names:
                if old != collection and re.fullmatch(rf"{self._name}_[0-9a-f]{{16}}", old):
                    self._client.drop_collection(old)
        return True

    def search(self, query: Any, count: int, unit: bool) -> Found:
        """The nearest items and their squared distances [Q, count], padded with -1 and infinity."""
        indices = np.full((len(query), count), -1, dtype=np.int64)
        distances = np.full((len(query), count), np.inf, dtype=np.float32)
        parameters = {"params": {"nprobe": _ALL_LISTS}} if self._embedded else {}
        start = 0
        with self._errors():
            self._client.load_collection(self._name)
            for block in embedding_blocks("query", query, unit, 4 * query.shape[1] * _QUERY_ROWS):
                hit_lists = self._client.search(self._name, data=list(block), limit=count, search_params=parameters)
                for hits in hit_lists:
                    indices[start, : len(hits)] = [hit["id"] for hit in hits]
                    distances[start, : len(hits)] = [hit["distance"] for hit in hits]
                    start += 1
        return indices, distances

    def close(self) -> None:
        """Close the connection and release the file."""
        self._client.close()
        if self._embedded:  # its server runs in this process and locks the file
            self._server.server_manager_instance.release_server(self._uri)

    def _write(self, collection: str, gallery: Any, paths: Sequence[str], unit: bool) -> None:
        longest = max(len(_text(path).encode()) for path in paths)
        if longest > _LONGEST_PATH:
            raise UserError(f"a gallery path is {longest} bytes long; Milvus stores at most {_LONGEST_PATH}.")
        types = self._milvus.DataType
        schema = self._milvus.MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", types.INT64, is_primary=True)
        schema.add_field("path", types.VARCHAR, max_length=max(longest, 1))
        schema.add_field("embedding", types.FLOAT_VECTOR, dim=gallery.shape[1])
        index = self._milvus.MilvusClient.prepare_index_params()
        # A server knows best which index it has room for. In an embedded store, inverted lists are exact if all of them
        # are searched; its flat index would hold queries x gallery x dimensions in memory.
        kind = "IVF_FLAT" if self._embedded else "AUTOINDEX"
        index.add_index("embedding", index_type=kind, metric_type="L2")
        self._client.create_collection(collection, schema=schema, index_params=index, consistency_level="Strong")
        # A loaded collection is indexed in the background while it grows, and the embedded store may read an index that
        # it is still writing. A released collection is indexed when it is next loaded, and loading waits for that.
        self._client.release_collection(collection)
        start = 0
        for block in embedding_blocks("gallery", gallery, unit, INSERT_BYTES):
            rows = enumerate(zip(paths[start : start + len(block)], block, strict=True), start)
            self._client.insert(collection, [{"id": i, "path": _text(path), "embedding": x} for i, (path, x) in rows])
            start += len(block)
        self._client.flush(collection)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._milvus.MilvusException as error:
            raise UserError(f"the store {self._uri} answers: {error.message}") from error
        except OSError as error:  # of the embedded store
            raise UserError(f"the store {self._uri} cannot be used ({error}); name another file.") from error


def _text(path: str) -> str:
    """A path that Milvus accepts; bytes of a file name that are not UTF-8 are replaced."""
    return os.fsencode(str(path)).decode("utf-8", "replace")


def _digest(gallery: Any, paths: Sequence[str], revision: str) -> str:
    digest = hashlib.sha256(json.dumps(fingerprint(gallery), sort_keys=True).encode() + revision.encode())
    for path in paths:
        digest.update(os.fsencode(str(path)) + b"\0")
    return digest.hexdigest()[:16]
