"""Time, memory and recall of gallery search: exact from a file, faiss indexes, and the embedded Milvus store.

    python benchmarks/bench_search.py
    python benchmarks/bench_search.py --gallery 100000 --parts exact faiss:ivf faiss:hnsw milvus --repeats 3

The gallery is drawn into a memory-mapped file: ten images of each identity around a centre. Every part runs in a
process of its own; its memory counts from before the search, when libraries and queries are loaded already (Linux).

    python benchmarks/bench_search.py --large --kinds exact,ivfpq,ivf --folder /scratch

measures a gallery of 10,000,000, see benchmarks/large_search.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the checkout stands first on the path
import torch  # noqa: E402

from benchmarks.common import RESULTS, machine, spread, start_peak, status_mib, timed, write_report  # noqa: E402
from benchmarks.large_search import KINDS, run  # noqa: E402
from inference.searching.exact import GalleryBlocks, prepare  # noqa: E402
from inference.searching.indexes import index_paths  # noqa: E402
from inference.searching.search import SearchOptions, SearchResult, search, search_gallery  # noqa: E402

PARTS = ("product", "exact", "faiss:flat", "faiss:ivf", "faiss:ivfpq", "faiss:hnsw", "milvus")
IMAGES_PER_IDENTITY, SPREAD = 10, 0.7
ROWS = 20_000  # drawn at once


def draw_gallery(path: Path, rows: int, dims: int, seed: int) -> None:
    """Embeddings of identities in order, into an .npy file, without holding them in memory."""
    gallery = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dims))
    for start in range(0, rows, ROWS):
        count = min(ROWS, rows - start)
        gallery[start : start + count] = embeddings(np.arange(start, start + count) // IMAGES_PER_IDENTITY, dims, seed)
    gallery.flush()


def embeddings(identities: np.ndarray, dims: int, seed: int, noise: int = 0) -> np.ndarray:
    rng = np.random.default_rng((seed, noise, int(identities[0])))
    known, place = np.unique(identities, return_inverse=True)
    centres = np.stack([np.random.default_rng((seed, int(i))).standard_normal(dims, dtype=np.float32) for i in known])
    return centres[place] + SPREAD * rng.standard_normal((len(identities), dims), dtype=np.float32)


def draw_queries(count: int, rows: int, dims: int, seed: int) -> np.ndarray:
    """Other images of identities of the gallery."""
    rng = np.random.default_rng((seed, 1))
    return embeddings(rng.integers(0, max(rows // IMAGES_PER_IDENTITY, 1), count), dims, seed, noise=1)


# ------------------------------------------------------------------------------------- one part, in its own process


def measure(part: str, gallery_file: Path, query: np.ndarray, topk: int, repeats: int) -> dict[str, Any]:
    """Seconds, memory and recall of one part, with ``topk`` results for each query."""
    gallery = np.load(gallery_file, mmap_mode="r")
    search_gallery(query[:2], gallery[:100])  # loads what is loaded on first use
    before = start_peak()
    function = {"product": product, "exact": exact}.get(part, indexed)
    facts = function(part, gallery_file, query, topk, repeats)
    return {
        **facts,
        "libraries_and_queries_mib": round(before, 1),
        "peak_beyond_mib": round(status_mib("VmHWM") - before, 1),
    }


def product(part: str, gallery_file: Path, query: np.ndarray, topk: int, repeats: int) -> dict[str, Any]:
    """The matrix product alone, block by block as the exact search does it, of embeddings that are in memory."""
    x, gallery = prepare(query, np.load(gallery_file, mmap_mode="r"))
    columns = GalleryBlocks(x, gallery, "euclidean", False, None).columns
    block = torch.from_numpy(np.array(gallery[:columns]))
    out = torch.empty(len(x), len(block))

    def multiply() -> None:
        for _ in range(round(len(gallery) / len(block))):
            torch.mm(x, block.t(), out=out)

    seconds = [timed(multiply)[0] for _ in range(repeats)]
    return {"seconds": spread(seconds)}


def exact(part: str, gallery_file: Path, query: np.ndarray, topk: int, repeats: int) -> dict[str, Any]:
    """search_gallery on the mapped file."""
    gallery = np.load(gallery_file, mmap_mode="r")
    seconds = [timed(lambda: search_gallery(query, gallery, topk=topk))[0] for _ in range(repeats)]
    pairs = len(query) * len(gallery)
    return {
        "seconds": spread(seconds),
        "gflops": 2 * pairs * query.shape[1] / statistics.median(seconds) / 1e9,
        "pairs_times_4_bytes_mib": pairs * 4 / 2**20,
        "gallery_file_mib": gallery_file.stat().st_size / 2**20,
    }


def indexed(part: str, gallery_file: Path, query: np.ndarray, topk: int, repeats: int) -> dict[str, Any]:
    """The first search, which builds and saves; then searches with what was saved, without the exact one for recall."""
    import inference.searching.search as module

    gallery = np.load(gallery_file, mmap_mode="r")
    store = f"milvus:{gallery_file.with_name('gallery.db')}" if part == "milvus" else ""
    options = SearchOptions(index="exact" if store else part, store=store, topk=topk)
    paths = [f"{i}.jpg" for i in range(len(gallery))]

    def run() -> SearchResult:
        return search(query, gallery, options, gallery_file=gallery_file, gallery_paths=paths)

    first, result = timed(run)
    module._recall = lambda *_: (0.0, 0)  # its exact search is no part of the time
    seconds = [timed(run)[0] for _ in range(repeats)]
    facts = {"recall": result.recall, "first_s": first, "load_and_search_s": spread(seconds)}
    if not store:
        facts["index_mib"] = index_paths(gallery_file, part.removeprefix("faiss:"), False)[0].stat().st_size / 2**20
    return facts


# ---------------------------------------------------------------------------------------------------- the command


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if not set(kinds) <= set(KINDS):
        raise argparse.ArgumentTypeError(f"{text!r}; expected some of {','.join(KINDS)}")
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--gallery", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--topk", type=int, default=100, help="results for each query, default: 100")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=["product", "exact"], help="default: product exact"
    )
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the drawn gallery, default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON file, default: benchmarks/results/search_GALLERY.json")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    large = parser.add_argument_group("a large gallery")
    large.add_argument("--large", action="store_true", help="measure that one instead")
    large.add_argument("--rows", type=int, default=10_000_000, help="default: 10000000")
    large.add_argument("--kinds", type=_kinds, default=_kinds("exact,ivfpq,ivf"), help=f"of {','.join(KINDS)}")
    args = parser.parse_args()
    if args.large:
        with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as folder:
            run(args, Path(folder), args.out or RESULTS / f"search_{args.rows}.json")
        return
    sizes = (args.gallery, args.dims, args.seed)
    if args.measure:
        torch.set_num_threads(args.threads)
        query = draw_queries(args.queries, *sizes)
        print(json.dumps(measure(args.measure, args.folder / "embeddings.npy", query, args.topk, args.repeats)))
        return
    out = args.out or RESULTS / f"search_{args.gallery}.json"
    report: dict[str, Any] = {
        **{name: getattr(args, name) for name in ("queries", "gallery", "dims", "topk", "repeats", "seed")},
        "machine": machine(args.threads, "faiss-cpu", "pymilvus", "milvus-lite"),
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        draw_gallery(Path(folder) / "embeddings.npy", *sizes)
        for part in args.parts:
            command = [sys.executable, __file__, "--measure", part, "--folder", folder]
            for name in ("queries", "gallery", "dims", "topk", "repeats", "threads", "seed"):
                command += [f"--{name}", str(getattr(args, name))]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            report[part] = json.loads(done.stdout.splitlines()[-1])
            print(f"{part}: {json.dumps(report[part])}", flush=True)
            write_report(report, out)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
