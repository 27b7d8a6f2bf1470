"""Search of a gallery of millions: ``python benchmarks/bench_search.py --large --folder DIR``.

Embeddings are drawn as a mixture of clusters in a space of 64 dimensions, in which identities lie around the centres
and images around the identities, seen from 512 dimensions with a little noise. Each kind is built and searched by a
process of its own; its peak is that of anonymous memory, which mapped files do not count to. Runs may add kinds to one
report; DIR keeps the gallery for them.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import command_line, machine, status_mib, timed, write_report
from inference.searching.disk_lists import lists_file
from inference.searching.indexes import GalleryIndex, index_paths
from inference.searching.search import search_gallery

KINDS = ("exact", "ivfpq", "ivf", "milvus")
QUERIES, TOPK = 100, 10
IMAGES, BLOCK = 10, 20_000  # of an identity; rows drawn at once
LATENT, CLUSTERS = 64, 2000
OF_IDENTITY, OF_IMAGE, OF_PIXELS = 0.6, 0.3, 0.2  # deviations; those of the centres are 1


class Mixture:
    """Draws identities and their images; the same seed draws the same."""

    def __init__(self, dims: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._seed = seed
        self._centres = rng.standard_normal((CLUSTERS, LATENT), dtype=np.float32)
        self._view = rng.standard_normal((LATENT, dims), dtype=np.float32) / np.float32(LATENT**0.5)

    def identities(self, block: int) -> np.ndarray:
        """The places of the identities of a block [BLOCK / IMAGES, LATENT]."""
        rng = np.random.default_rng((self._seed, block))
        count = BLOCK // IMAGES
        offsets = OF_IDENTITY * rng.standard_normal((count, LATENT), dtype=np.float32)
        return self._centres[rng.integers(CLUSTERS, size=count)] + offsets

    def images(self, places: np.ndarray, *key: int) -> np.ndarray:
        """An embedding of each of the identities [n, D]."""
        rng = np.random.default_rng((self._seed, *key))
        latent = places + OF_IMAGE * rng.standard_normal(places.shape, dtype=np.float32)
        noise = rng.standard_normal((len(places), self._view.shape[1]), dtype=np.float32)
        return latent @ self._view + np.float32(OF_PIXELS) * noise

    def write(self, path: Path, rows: int) -> None:
        """The gallery, without holding it in memory."""
        gallery = np.lib.format.open_memmap(path, "w+", np.float32, (rows, self._view.shape[1]))
        for block, start in enumerate(range(0, rows, BLOCK)):
            count = min(BLOCK, rows - start)
            places = self.identities(block).repeat(IMAGES, axis=0)[:count]
            gallery[start : start + count] = self.images(places, block, 0)
        gallery.flush()

    def queries(self, rows: int) -> np.ndarray:
        """Other images of identities of the gallery [QUERIES, D]."""
        numbers = np.random.default_rng((self._seed, 0, 1)).integers(0, rows, QUERIES)
        places = [self.identities(number // BLOCK)[number % BLOCK // IMAGES] for number in numbers.tolist()]
        return self.images(np.stack(places), 0, 2)


# ------------------------------------------------------------------------------------- one kind, in its own process


class Peak:
    """The peak of this process's anonymous memory while a block runs, in MiB (Linux)."""

    def __enter__(self) -> "Peak":
        self.mib, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.mib = max(self.mib, status_mib("RssAnon"))
            if self._over.wait(0.02):
                return


def watched(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds and peak of a call, and what it returned."""
    with Peak() as peak:
        seconds, result = timed(function)
    return seconds, round(peak.mib, 1), result


def measure(kind: str, file: Path, query: np.ndarray) -> dict[str, Any]:
    """Seconds, memory, bytes and recall of one kind."""
    gallery = np.load(file, mmap_mode="r")
    search_gallery(query[:2], gallery[:100])  # loads what is loaded on first use
    libraries = status_mib("RssAnon")
    truth = file.with_suffix(".exact.npy")
    facts: dict[str, Any] = {"rows": len(gallery), "libraries_mib": round(libraries, 1)}
    if kind == "exact":
        facts["query_s"], facts["query_mib"], (found, _) = watched(lambda: search_gallery(query, gallery, topk=TOPK))
        np.save(truth, found)
    else:
        measured, found = (in_store if kind == "milvus" else in_index)(kind, file, gallery, query)
        facts |= measured
    if not truth.exists():
        np.save(truth, search_gallery(query, gallery, topk=TOPK)[0])
    hits = [np.isin(row, right).sum() for row, right in zip(found, np.load(truth), strict=True)]
    return facts | {"recall": float(np.mean(hits)) / TOPK}


def in_index(kind: str, file: Path, gallery: Any, query: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Build an index, open it again, search, and remove it."""
    index, note = index_paths(file, kind, unit=False)
    files = (index, lists_file(index), note)
    _remove(*files)

    def opened() -> GalleryIndex:
        return GalleryIndex(kind, None, gallery, file, unit=False)

    build_s, build_mib, _ = watched(opened)
    open_s, searched = timed(opened)
    query_s, query_mib, (found, _) = watched(lambda: searched.search(query, TOPK))
    facts = {"build_s": build_s, "build_mib": build_mib, "open_s": open_s, "query_s": query_s, "query_mib": query_mib}
    facts["mib"] = _mib(*files)
    _remove(*files)
    return facts, found


def in_store(kind: str, file: Path, gallery: Any, query: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """The same with the embedded Milvus store."""
    from inference.searching.stores import MilvusStore

    database = file.with_suffix(".db")
    _remove(database)
    paths = [f"{i}.jpg" for i in range(len(gallery))]
    with closing(MilvusStore(str(database), "gallery")) as store:
        build_s, build_mib, _ = watched(lambda: store.keep(gallery, paths, unit=False))
        open_s, open_mib, _ = watched(lambda: store.search(query[:1], TOPK, unit=False))  # loads, and so indexes
        query_s, query_mib, (found, _) = watched(lambda: store.search(query, TOPK, unit=False))
    facts = {"build_s": build_s, "build_mib": build_mib, "open_s": open_s, "query_s": query_s}
    facts |= {"query_mib": max(open_mib, query_mib), "mib": _mib(database)}
    _remove(database)
    return facts, found


def _mib(*paths: Path) -> float:
    files = (file for path in paths for file in (path, *path.rglob("*")) if file.is_file())
    return sum(file.stat().st_size for file in files) / 2**20


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------- the command


def run(args: Namespace, folder: Path, out: Path) -> None:
    """Draw the gallery if the folder lacks it, measure each kind, and add it to the report.

    Args:
        args: of bench_search.py.
        folder: for the gallery and its indexes.
        out: the report.
    """
    file, mixture = folder / f"gallery_{args.rows}_{args.dims}_{args.seed}.npy", Mixture(args.dims, args.seed)
    if args.measure:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args.measure, file, mixture.queries(args.rows))))
        return
    report = json.loads(out.read_text()) if out.is_file() else {}
    report = {name: value for name, value in report.items() if name not in ("command", "date", "commit")}
    report |= {"dims": args.dims, "queries": QUERIES, "topk": TOPK, "seed": args.seed}
    report["machine"] = machine(args.threads, "faiss-cpu", "pymilvus", "milvus-lite")
    if not file.exists():
        drawn = file.with_suffix(".drawing")
        seconds, _ = timed(lambda: mixture.write(drawn, args.rows))
        drawn.rename(file)
        print(f"drawn in {seconds:.0f} s: {file}", flush=True)
    for kind in args.kinds:
        report[kind] = _of_child(args, kind, folder)
        print(f"{kind}: {json.dumps(report[kind])}", flush=True)
        write_report(report, out)
    print(f"written: {out}")


def _of_child(args: Namespace, kind: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, sys.argv[0], "--large", "--measure", kind, "--folder", str(folder)]
    for name in ("rows", "dims", "threads", "seed"):
        command += [f"--{name}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return {**json.loads(done.stdout.splitlines()[-1]), "command": command_line()}
