"""Distances up to which to accept results, from the threshold table or the calibration of an evaluation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import MissingPathError, UserError

if TYPE_CHECKING:
    from evaluation.calibration import Calibration
    from evaluation.verification import RocTable


def threshold_at_far(table: "RocTable", far: float) -> float:
    """The largest distance that accepts at most a share ``far`` of the pairs of different identities.

    Args:
        table: from :func:`evaluation.verification.roc_table`, made with the metric and normalisation of the search.
        far: false accept rate, 0 to 1; it need not be one of the table's levels.

    Returns:
        A value for ``max_distance``.

    Raises:
        UserError: far is outside 0 to 1, or the nearest pairs of different identities alone are a larger share.
    """
    if not 0 <= far <= 1:
        raise UserError(f"far is {far}; expected a rate from 0 to 1.")
    rates = table.impostor.cumsum() / table.impostor.sum()
    bins = rates.searchsorted([far], side="right")  # the first bins, which together keep to the rate
    if not bins[0]:
        raise UserError(f"no threshold keeps a false accept rate of {far:g}; the lowest possible is {rates[0]:g}.")
    return float(table.thresholds(bins)[0])


def threshold_from_file(rate: str, file: str, metric: str, normalize: bool) -> float:
    """The distance that an evaluation found for a false accept rate.

    Args:
        rate: one of the rates in the table.
        file: metrics.json of ``python -m evaluation --roc --output DIR``.
        metric, normalize: those of the search; the evaluation must have used the same.

    Returns:
        A value for ``max_distance``.

    Raises:
        UserError: there is no such file or table, or the table is of other distances or lacks the rate.
    """
    if not Path(file).is_file():
        raise MissingPathError(f"{file} does not exist; expected metrics.json of python -m evaluation --roc.")
    try:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
        settings = document["settings"]
        table = {float(row["far_level"]): row["threshold"] for row in document["verification"]}
        found = {"metric": settings["metric"], "normalize": bool(settings["normalize"])}
        other_ranking = settings["rerank"] or settings["query_expansion"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} has no table of thresholds; python -m evaluation --roc --output writes it.") from error
    differing = _differing(found, metric, normalize)
    if other_ranking:
        differing.append("distances after re-ranking or query expansion, but this search does neither")
    if differing:
        raise UserError(
            f"the thresholds in {file} are of {'; and of '.join(differing)}. Make the table with the settings of the "
            "search."
        )
    try:
        threshold = table[float(rate)]
    except (ValueError, KeyError):
        listed = ", ".join(f"{level:g}" for level in table)
        raise UserError(f"the false accept rate is {rate}; {file} has {listed}.") from None
    if threshold is None:
        raise UserError(f"no threshold keeps a false accept rate of {rate}, according to {file}; give a higher rate.")
    return float(threshold)


def _differing(found: Mapping[str, Any], metric: str, normalize: bool) -> list[str]:
    """How the distances of an evaluation differ from those of a search."""
    differing = []
    if found["metric"] != metric:
        differing.append(f"{found['metric']} distances, but this search uses {metric} ones (SOLVER.DISTANCE_FUNC)")
    if found["normalize"] != normalize:
        states = {True: "embeddings of unit length (--normalize)", False: "embeddings as they are"}
        here = "has" if normalize else "lacks"
        differing.append(f"{states[found['normalize']]}, but this search {here} --normalize_features")
    return differing


def calibration_from_file(file: str | Path, metric: str, normalize: bool) -> "Calibration":
    """The calibration of an evaluation, for the distances of a search.

    Args:
        file: calibration.json or metrics.json of ``python -m evaluation --calibrate METHOD --output DIR``.
        metric, normalize: those of the search; the evaluation must have used the same.

    Raises:
        UserError: there is no such file, or it is of other distances.
    """
    from evaluation.calibration import read_calibration

    calibration = read_calibration(file)
    differing = _differing({"metric": calibration.metric, "normalize": calibration.normalize}, metric, normalize)
    if differing:
        raise UserError(
            f"the calibration in {file} is of {'; and of '.join(differing)}. Make it with the settings of the search."
        )
    return calibration
