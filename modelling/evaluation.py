"""Turn the embeddings of a validation into metrics, tables and strips, as a configuration says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from yacs.config import CfgNode

from datasets.loading import UNREADABLE
from evaluation.metrics import evaluate
from evaluation.notes import own_images_note
from evaluation.page_data import Shown, worst_first
from evaluation.pages import write_page
from evaluation.places import EvaluationPlace
from evaluation.ranked_images import rank_for_display, render_rankings
from evaluation.rerank import QueryExpansion, Rerank
from evaluation.retrieval import EvalResult, RankingOptions, RetrievalSet
from evaluation.self_matches import SelfMatches, find_copies, find_self_matches
from evaluation.tables import write_evaluation
from modelling.heatmaps import write_heatmaps
from utils.distributed import Processes, of_first_process
from utils.errors import NoValidQueryError, UserError


def leave_out_unreadable(
    embeddings: Tensor, pids: Tensor, camids: Tensor, num_query: int, paths: Sequence[str] | None
) -> tuple[RetrievalSet, str]:
    """The validation set without images that could not be read (DATASETS.ON_ERROR skip).

    Args:
        embeddings: [M + N, D] float32, the M queries first.
        pids: [M + N] int64; UNREADABLE marks an image that could not be read.
        camids: [M + N] int64.
        num_query: M.
        paths: M + N image files; None if unknown.

    Returns:
        The set, and a phrase that says how many images were left out; "" for none.

    Raises:
        UserError: no query or no gallery image could be read.
    """
    readable = pids != UNREADABLE
    missing = len(readable) - int(readable.sum())
    if not missing:
        return RetrievalSet.of_rows(embeddings, pids, camids, num_query, paths), ""
    kept_queries = int(readable[:num_query].sum())
    queries = num_query - kept_queries
    if not 0 < kept_queries < len(readable) - missing:
        what = f"{len(readable) - num_query} gallery images" if kept_queries else f"{num_query} queries"
        raise UserError(
            f"None of the {what} could be read: see the warnings above, which name them, and check that "
            "DATASETS.ROOT_DIR is still there."
        )
    paths = paths and [path for path, keep in zip(paths, readable.tolist(), strict=True) if keep]
    rows = (embeddings[readable], pids[readable], camids[readable])
    text = f"{missing} of {len(readable)} images could not be read and were left out "
    text += f"(queries: {queries}, gallery: {missing - queries})"
    return RetrievalSet.of_rows(*rows, kept_queries, paths), text


class OwnImages:
    """Leaves the queries' own images out of rankings without cameras, and says so once for each validation set."""

    def __init__(self) -> None:
        self._files: Any = None
        self._found: SelfMatches | None = None
        self._copies: dict[str, int] = {}

    def leave_out(
        self,
        retrieval: RetrievalSet,
        hparams: CfgNode,
        stage: str,
        processes: Processes | None,
        among: Sequence[str] | None = None,
    ) -> RetrievalSet:
        """The set as it is ranked: whether it has cameras and, if they filter nothing, which images are left out.

        Args:
            retrieval: the set.
            hparams: TEST.SELF_MATCH decides.
            stage: for what is said.
            processes: of which the first one reads the files.
            among: the images that repeated draws divide, whose copies are looked for once; None: there is one division.
        """
        has_cameras = hparams.get("has_cameras", True)
        # Queries and gallery of the fashion sets have one made-up camera each, which is as good as none.
        filters = has_cameras and bool(np.isin(retrieval.q_camids, retrieval.single_cameras()).any())
        own = None
        if not filters and hparams.TEST.SELF_MATCH == "drop":
            if among is None:
                own = self._of(retrieval, stage, processes)
            else:
                own = self._in_draw(retrieval, among, stage, processes)
        return replace(retrieval, has_cameras=has_cameras and own is None, self_matches=own)

    def _of(self, retrieval: RetrievalSet, stage: str, processes: Processes | None) -> SelfMatches | None:
        """The images to leave out of the rankings; None for none, or if the files are not known."""
        if retrieval.q_paths is None or retrieval.g_paths is None:
            return None
        files = retrieval.q_paths, retrieval.g_paths
        if files != self._files:
            find = partial(find_self_matches, *files)
            found = find() if processes is None else of_first_process(find)  # one process reads the files
            self._files, self._found = files, found if found.count else None
            if self._found is not None:
                note = own_images_note(replace(retrieval, self_matches=found), "TEST.SELF_MATCH keep")
                rank_zero_info("%s: %s", stage, note)
        return self._found

    def _in_draw(
        self, retrieval: RetrievalSet, among: Sequence[str], stage: str, processes: Processes | None
    ) -> SelfMatches | None:
        """The same in one of several draws."""
        if among != self._files:
            find = partial(find_copies, among)
            self._files, self._copies = among, find() if processes is None else of_first_process(find)
            if self._copies:
                count, first = sum(path in self._copies for path in among), next(iter(self._copies))
                rank_zero_info(
                    "%s: %d of the %d images that are drawn from are copies of others among them (the first is %s); a "
                    "gallery image that is a copy of a query is left out of the query's ranking (TEST.SELF_MATCH keep: "
                    "it counts).",
                    *(stage, count, len(among), first),
                )
        assert retrieval.q_paths is not None and retrieval.g_paths is not None
        found = SelfMatches.among_copies(self._copies, retrieval.q_paths, retrieval.g_paths)
        return found if found.count else None


def evaluate_protocols(
    retrieval: RetrievalSet, hparams: CfgNode, processes: Processes | None = None
) -> dict[str, EvalResult]:
    """Rank the gallery for every query: single images, or centroids by the published and the strict protocol.

    Args:
        retrieval: the same set on every process.
        hparams: selects the protocols, the distance and the options.
        processes: processes to divide the queries among, and the search for re-ranking.

    Returns:
        Protocol -> result, for the protocols that MODEL.USE_CENTROIDS selects, the strict one before the published one,
        whose numbers are inflated. The published one is left out, with a warning, if its camera look-up leaves no query
        a centroid to find; the strict one does not have that error.

    Raises:
        NoValidQueryError: no query has a match.
    """
    protocols = ("centroid_strict", "centroid") if hparams.MODEL.USE_CENTROIDS else ("instance",)
    results = {}
    for protocol in protocols:
        try:
            results[protocol] = evaluate(retrieval, ranking_options(hparams, protocol), processes=processes)
        except NoValidQueryError:
            if protocol != "centroid":
                raise
            rank_zero_warn(
                "The published centroid protocol, which looks up gallery cameras among those of the queries, leaves "
                "no query a centroid of its identity from another camera: only the strict protocol is computed, "
                "and its numbers are logged as mAP and Top-k too."
            )
    return results


def write_tables(
    retrieval: RetrievalSet,
    results: Mapping[str, EvalResult],
    hparams: CfgNode,
    about: Mapping[str, Any],
    place: EvaluationPlace,
) -> None:
    """Write metrics.json and per_query.csv to the folders of a place below OUTPUT_DIR/evaluation.

    Of a metric in several results the last counts.
    """
    settings = {"feat_norm": hparams.TEST.FEAT_NORM, "distance": hparams.SOLVER.DISTANCE_FUNC}
    settings |= {"keep_camids": hparams.MODEL.KEEP_CAMID_CENTROIDS}
    settings |= {"data_set": place.test_set or hparams.DATASETS.NAMES}
    own = retrieval.self_matches
    settings |= {"same_camera_filter": retrieval.has_cameras, "own_images_left_out": 0 if own is None else own.count}
    settings |= {"rerank": hparams.TEST.RERANK, "query_expansion": hparams.TEST.QUERY_EXPANSION}
    about = place.about(hparams.get("data_seed")) | dict(about)
    for folder in place.folders(Path(hparams.OUTPUT_DIR) / "evaluation"):
        write_evaluation(folder, list(results.values()), retrieval, settings, about=about)


def write_strips(
    retrieval: RetrievalSet,
    results: Mapping[str, EvalResult],
    hparams: CfgNode,
    part: str = "",
    model: Any = None,
) -> list[Path]:
    """Write a strip for each query and a page of the evaluation, which lists the worst queries first.

    Args:
        retrieval: a set with paths.
        results: protocol -> result.
        hparams: TEST.VISUALIZE_TOPK results are shown, of the worst TEST.VISUALIZE_MAX_NUMBER queries.
        part: a folder in OUTPUT_DIR/visrank for them; "" for that itself.
        model: what draws heat maps of the first TEST.HEATMAPS of these queries; None draws none.

    Returns:
        The pages: OUTPUT_DIR/visrank/index.html for single images; for centroids, in a subfolder for each protocol.
    """
    assert retrieval.q_paths is not None and retrieval.g_paths is not None
    test, size = hparams.TEST, (hparams.INPUT.SIZE_TEST[0], hparams.INPUT.SIZE_TEST[1])
    pages: list[Path] = []
    for protocol, result in results.items():
        options, worst = ranking_options(hparams, protocol), worst_first(result)[: test.VISUALIZE_MAX_NUMBER]
        rankings = rank_for_display(retrieval, options, topk=test.VISUALIZE_TOPK, queries=worst)
        folder = Path(hparams.OUTPUT_DIR) / "visrank" / part / ("" if protocol == "instance" else protocol)
        files = (retrieval.q_paths, retrieval.g_paths)
        strips = render_rankings(rankings, *files, folder, size, hparams.INPUT.EXIF_ORIENTATION)
        drawn = [ranking for ranking in rankings if len(ranking.images)][: test.HEATMAPS] if model is not None else []
        heat_maps = write_heatmaps(model, retrieval, drawn, folder / "heatmaps") if drawn else {}
        if drawn and not heat_maps and not pages:
            rank_zero_warn(
                f"TEST.HEATMAPS {test.HEATMAPS}: none are drawn, since MODEL.NAME {hparams.MODEL.NAME} gives neither a "
                "feature map nor tokens with attention between all of them."
            )
        shown = Shown(rankings, strips, heat_maps, hparams.INPUT.EXIF_ORIENTATION)
        pages.append(write_page(folder / "index.html", result, retrieval, options, shown)[0])
    return pages


def ranking_options(hparams: CfgNode, protocol: str) -> RankingOptions:
    """The ranking options of a configuration, for one protocol."""
    test = hparams.TEST
    return RankingOptions(
        metric=hparams.SOLVER.DISTANCE_FUNC,
        protocol=protocol,
        keep_camids=hparams.MODEL.KEEP_CAMID_CENTROIDS,
        feat_norm=test.FEAT_NORM,
        rerank=Rerank(test.RERANK_K1, test.RERANK_K2, test.RERANK_LAMBDA) if test.RERANK else None,
        query_expansion=QueryExpansion(test.QUERY_EXPANSION) if test.QUERY_EXPANSION else None,
    )
