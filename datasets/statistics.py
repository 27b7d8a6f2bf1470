"""What the subsets of a data set hold, and whether they can be evaluated at all."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from datasets.loading import Sample


def statistics_table(subsets: Mapping[str, Sequence[Sample]]) -> str:
    """A table of identities, images and cameras.

    Args:
        subsets: samples by the name of the subset, in the order of the rows.

    Returns:
        Lines of equal width, without a line break at the end.
    """
    lines = [f"{'subset':<8} | {'ids':>6} | {'images':>8} | {'cameras':>7}"]
    lines.append("-" * len(lines[0]))
    for name, samples in subsets.items():
        pids = {pid for _, pid, _, _ in samples}
        camids = {camid for _, _, camid, _ in samples}
        lines.append(f"{name:<8} | {len(pids):>6} | {len(samples):>8} | {len(camids):>7}")
    return "\n".join(lines)


def find_evaluation_problem(query: Sequence[Sample], gallery: Sequence[Sample]) -> str | None:
    """Why no query could be scored: gallery images of the query's own identity and camera do not count as matches.

    Args:
        query: samples, not empty.
        gallery: samples, not empty.

    Returns:
        What is wrong and what follows from it, or None if at least one query has a match.
    """
    cameras = {camid for _, _, camid, _ in (*query, *gallery)}
    if len(cameras) == 1:
        return (
            f"All query and gallery images are from one camera ({cameras.pop() + 1}). Gallery images from the query's "
            "own camera are not counted as matches, so no query has a match and no mAP can be computed; the test set "
            "needs images from a second camera."
        )
    cameras_of: defaultdict[int, set[int]] = defaultdict(set)
    for _, pid, camid, _ in gallery:
        cameras_of[pid].add(camid)
    if any(cameras_of[pid] - {camid} for _, pid, camid, _ in query):
        return None
    return (
        "No query has a gallery image of the same identity from another camera, so no mAP can be computed; the query "
        "and gallery images must share identities across cameras."
    )
