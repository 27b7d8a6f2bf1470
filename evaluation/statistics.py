"""Mean and spread of metrics over several evaluations: runs with other seeds, or other draws of a gallery."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def summarize(evaluations: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and single values of each metric that all evaluations have.

    Args:
        evaluations: metrics of each, such as :func:`evaluation.metrics.metrics_dict` gives; at least one.

    Returns:
        Metric -> "mean", "std" (of a sample, with n - 1 in the denominator; None for a single evaluation) and "values".

    Example:
        >>> summarize([{"mAP": 0.5}, {"mAP": 0.75}])
        {'mAP': {'mean': 0.625, 'std': 0.1767766952966369, 'values': [0.5, 0.75]}}
    """
    shared = [name for name in evaluations[0] if all(name in metrics for metrics in evaluations)]
    table = {}
    for name in shared:
        values = [float(metrics[name]) for metrics in evaluations]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        table[name] = {"mean": math.fsum(values) / len(values), "std": std, "values": values}
    return table


def describe_summary(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """One line with the mean and standard deviation of each metric, in per cent.

    Example:
        >>> describe_summary(summarize([{"mAP": 0.5}, {"mAP": 0.75}]))
        'mAP 62.50 ± 17.68%'
    """
    parts = []
    for name, found in summary.items():
        spread = "" if found["std"] is None else f" ± {100 * found['std']:.2f}"
        parts.append(f"{name} {100 * found['mean']:.2f}{spread}%")
    return "  ".join(parts)
