"""From the embeddings of a validation to metrics, tables and pictures, as a configuration asks for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from yacs.config import CfgNode

from datasets.loading import UNREADABLE
from utils.distributed import Processes, of_first_process
from utils.errors import NoValidQueryError, UserError
from utils.eval_reid import EvalResult, evaluate_embeddings
from utils.report import write_evaluation, write_index
from utils.rerank import QueryExpansion, Rerank
from utils.visrank import rank_for_display, render_rankings


@dataclass(frozen=True)
class Embedded:
    """A validation set as the network sees it: M queries, then N gallery images."""

    embeddings: Tensor  # [M + N, D] float32
    pids: Tensor  # [M + N] int64
    camids: Tensor  # [M + N] int64
    num_query: int  # M
    paths: Sequence[str] | None  # M + N image files, where they are known

    def split(self) -> list[Tensor]:
        """Query part and gallery part of embeddings, pids and camids, as evaluate_embeddings takes them."""
        arrays = (self.embeddings, self.pids, self.camids)
        return [part for array in arrays for part in (array[: self.num_query], array[self.num_query :])]


def leave_out_unreadable(data: Embedded) -> tuple[Embedded, str]:
    """Without the rows of images that could not be read (DATASETS.ON_ERROR skip), and how many those were, in words.

    Raises:
        UserError: no query, or no image of the gallery, could be read.
    """
    readable = data.pids != UNREADABLE
    missing = len(readable) - int(readable.sum())
    if not missing:
        return data, ""
    num_query = int(readable[: data.num_query].sum())
    queries = data.num_query - num_query
    if not 0 < num_query < len(readable) - missing:
        what = f"{len(readable) - data.num_query} images of the gallery" if num_query else f"{data.num_query} queries"
        raise UserError(
            f"None of the {what} could be read: see the warnings above, which name them, and whether "
            "DATASETS.ROOT_DIR is still there."
        )
    paths = data.paths and [path for path, keep in zip(data.paths, readable.tolist(), strict=True) if keep]
    rows = (data.embeddings[readable], data.pids[readable], data.camids[readable])
    text = f"{missing} of {len(readable)} images left out, which could not be read: {queries} queries, "
    return Embedded(*rows, num_query, paths), f"{text}{missing - queries} of the gallery"


def evaluate(data: Embedded, hparams: CfgNode, processes: Processes | None = None) -> dict[str, EvalResult]:
    """Rank the gallery for every query: single images, or centroids by the published and the strict protocol.

    Args:
        data: the same on every process.
        hparams: which protocols, distances and options.
        processes: share out the queries. With re-ranking the first process does all of it, since each would need the
            graph of all images, and the others wait.

    Returns:
        Protocol -> result; the protocols that MODEL.USE_CENTROIDS chooses. The published one is left out, with a
        warning, where its camera look-up leaves no query a centroid to be found; the strict one has no such error.

    Raises:
        NoValidQueryError: no query has a match.
    """
    if processes is not None and hparams.TEST.RERANK:
        return of_first_process(lambda: evaluate(data, hparams))
    protocols = ("centroid", "centroid_strict") if hparams.MODEL.USE_CENTROIDS else ("instance",)
    options = _options(hparams)
    results = {}
    for protocol in protocols:
        try:
            results[protocol] = evaluate_embeddings(*data.split(), protocol=protocol, processes=processes, **options)
        except NoValidQueryError:
            if protocol != "centroid":
                raise
            rank_zero_warn(
                "The published centroid protocol, which looks cameras of the gallery up among those of the queries, "
                "leaves no query a centroid of its identity from another camera: only the strict protocol is computed, "
                "and its numbers are logged as mAP and Top-k too."
            )
    return results


def write_tables(data: Embedded, results: Mapping[str, EvalResult], hparams: CfgNode) -> None:
    """OUTPUT_DIR/evaluation/metrics.json and per_query.csv; a metric that several results have is the last one's."""
    m = data.num_query
    paths = data.paths[:m] if data.paths is not None else None
    settings = {"feat_norm": hparams.TEST.FEAT_NORM, "distance": hparams.SOLVER.DISTANCE_FUNC}
    settings |= {"keep_camids": hparams.MODEL.KEEP_CAMID_CENTROIDS, "data_set": hparams.DATASETS.NAMES}
    settings |= {"same_camera_filter": hparams.get("has_cameras", True)}
    settings |= {"rerank": hparams.TEST.RERANK, "query_expansion": hparams.TEST.QUERY_EXPANSION}
    folder = Path(hparams.OUTPUT_DIR) / "evaluation"
    write_evaluation(folder, list(results.values()), data.pids[:m], data.camids[:m], paths, settings)


def write_pictures(data: Embedded, results: Mapping[str, EvalResult], hparams: CfgNode) -> list[Path]:
    """A picture of the ranked results for each query and a page that shows them, the worst queries first.

    Args:
        data: with paths.
        results: protocol -> result.
        hparams: TEST.VISUALIZE_TOPK results are shown, of the worst TEST.VISUALIZE_MAX_NUMBER queries.

    Returns:
        The pages: OUTPUT_DIR/visrank/index.html for single images, one folder further down for centroids.
    """
    assert data.paths is not None
    m = data.num_query
    pages = []
    for protocol, result in results.items():
        worst = result.query_index[result.average_precision.argsort(kind="stable")].tolist()
        without_match = sorted(set(range(m)) - set(worst))
        rankings = rank_for_display(
            *data.split(),
            topk=hparams.TEST.VISUALIZE_TOPK,
            queries=worst + without_match,
            max_number=hparams.TEST.VISUALIZE_MAX_NUMBER,
            protocol=protocol,
            **_options(hparams),
        )
        folder = Path(hparams.OUTPUT_DIR) / "visrank" / ("" if protocol == "instance" else protocol)
        size = (hparams.INPUT.SIZE_TEST[0], hparams.INPUT.SIZE_TEST[1])
        pictures = render_rankings(rankings, data.paths[:m], data.paths[m:], folder, size)
        cameras = (data.camids[:m], data.camids[m:])
        pages.append(
            write_index(folder / "index.html", result, rankings, pictures, data.pids[:m], *cameras, data.paths[:m])
        )
    return pages


def _options(hparams: CfgNode) -> dict[str, Any]:
    test = hparams.TEST
    return {
        "metric": hparams.SOLVER.DISTANCE_FUNC,
        "keep_camids": hparams.MODEL.KEEP_CAMID_CENTROIDS,
        "feat_norm": test.FEAT_NORM,
        "rerank": Rerank(test.RERANK_K1, test.RERANK_K2, test.RERANK_LAMBDA) if test.RERANK else None,
        "query_expansion": QueryExpansion(test.QUERY_EXPANSION) if test.QUERY_EXPANSION else None,
    }
