"""What must be said beside the numbers of a protocol, and why no query could be evaluated."""

from evaluation.retrieval import EvalResult, RankingOptions, RetrievalSet

TITLES = {
    "instance": "single images",
    "centroid": "centroids, published protocol",
    "centroid_strict": "centroids, strict protocol",
}
SAME_CAMERA = "Gallery images of the query's identity from the query's camera are removed."
_MEAN_AP = "One item is relevant, so mAP is the mean reciprocal rank."
_USE_STRICT = "use strict_mAP and strict_Top-k of the strict protocol"

NO_VALID_QUERY = (
    "No query can be evaluated: none has a gallery item of its identity from another camera. Check the identities and "
    "cameras of queries and gallery; for data without cameras, give queries and gallery different camera numbers."
)


def note_of(retrieval: RetrievalSet, options: RankingOptions) -> str:
    """What a protocol ranks and leaves out, in one or two sentences.

    Example:
        >>> images = RetrievalSet([[1.0]], [[0.9], [0.2]], [7], [7, 8], [0], [1, 1], has_cameras=False)
        >>> note_of(images, RankingOptions())
        "There are no cameras: every gallery image of the query's identity counts."
    """
    by_camera = retrieval.has_cameras and options.keep_camids
    if options.protocol == "instance":
        if retrieval.has_cameras:
            return SAME_CAMERA
        rest = ", except the query's own image" if retrieval.self_matches is not None else ""
        return f"There are no cameras: every gallery image of the query's identity counts{rest}."
    if options.protocol == "centroid":
        built = "Built as in the published code"
        if by_camera:
            built += ", whose camera look-up error inflates the scores"
        elif retrieval.self_matches is not None:
            built += ": a query's own image, where the gallery holds it, is part of its centroid"
        return f"{built}. Usually one item is relevant to a query, and mAP is then the mean reciprocal rank."
    own = "; the query's own leaves out the query's camera" if by_camera else ""
    own = "; the query's own leaves out the query itself" if retrieval.self_matches is not None else own
    return f"One centroid for each identity{own}. {_MEAN_AP}"


def title_of(result: EvalResult) -> str:
    """What an evaluation ranks, and how, in a few words.

    Example:
        >>> from evaluation.metrics import evaluate_distances
        >>> title_of(evaluate_distances([[0.5]], [7], [7], [0], [1]))
        'single images'
    """
    return ", ".join(filter(None, (TITLES[result.protocol], result.applied)))


def applied(options: RankingOptions) -> str:
    """What looks at more than one query and the gallery item at hand, for the title of an evaluation; "" for nothing.

    Example:
        >>> from evaluation.rerank import QueryExpansion, Rerank
        >>> applied(RankingOptions(rerank=Rerank(), query_expansion=QueryExpansion(k=3)))
        'query expansion (k 3, alpha 3), re-ranking (k1 20, k2 6, lambda 0.3)'
    """
    expansion, rerank = options.query_expansion, options.rerank
    parts = [] if expansion is None else [f"query expansion (k {expansion.k}, alpha {expansion.alpha:g})"]
    if rerank is not None:
        parts.append(f"re-ranking (k1 {rerank.k1}, k2 {rerank.k2}, lambda {rerank.lambda_value:g})")
    return ", ".join(parts)


def caveat_of(retrieval: RetrievalSet, options: RankingOptions) -> str:
    """Why the numbers are too high, and which ones to use; "" for numbers that are not.

    Example:
        >>> images = RetrievalSet([[1.0]], [[0.9], [0.2]], [7], [7, 8], [0], [1, 1])
        >>> caveat_of(images, RankingOptions(protocol="centroid")).partition(";")[0]
        "inflated by the published code's camera look-up error"
    """
    if options.protocol != "centroid":
        return ""
    if retrieval.has_cameras and options.keep_camids:
        return f"inflated by the published code's camera look-up error; {_USE_STRICT}"
    if retrieval.self_matches is not None:
        return f"inflated by queries' own images, which the published code keeps in their centroids; {_USE_STRICT}"
    return ""


def own_images_note(retrieval: RetrievalSet, way_back: str) -> str:
    """What is said where the gallery holds queries themselves; ``way_back`` is the setting that counts them.

    Example:
        >>> import numpy as np
        >>> from evaluation.self_matches import SelfMatches
        >>> own = SelfMatches(queries=np.array([0]), gallery=np.array([0, -1]))
        >>> files = {"q_paths": ["a.jpg"], "g_paths": ["a.jpg", "b.jpg"]}
        >>> images = RetrievalSet([[1.0]], [[1], [0.2]], [7], [9, 7], [0], [0, 0], **files, self_matches=own)
        >>> own_images_note(images, "keep").rpartition("; ")[2]
        'of 1 of them the gallery has another identity, under which it stays a wrong result.'
    """
    own, paths = retrieval.self_matches, retrieval.q_paths
    assert own is not None and paths is not None
    note = (
        f"the gallery holds {own.count} of the {len(paths)} queries themselves, as the same file or a copy of it (the "
        f"first is {paths[own.first]}); they are left out of the queries' own rankings ({way_back}: they count)"
    )
    held = set(zip(own.gallery.tolist(), retrieval.g_pids.tolist(), strict=True))
    labelled = zip(own.queries.tolist(), retrieval.q_pids.tolist(), strict=True)
    conflicts = sum(group >= 0 and (group, pid) not in held for group, pid in labelled)
    if conflicts:
        note += f"; of {conflicts} of them the gallery has another identity, under which it stays a wrong result"
    return f"{note}."


def no_valid_query(retrieval: RetrievalSet) -> str:
    """The message for a set none of whose queries has a match.

    Example:
        >>> images = RetrievalSet([[1.0]], [[0.9]], [7], [8], [0], [1], has_cameras=False)
        >>> no_valid_query(images)
        "No query can be evaluated: the gallery holds no image of a query's identity. Check the identities."
    """
    if retrieval.has_cameras:
        return NO_VALID_QUERY
    rest = ", except the queries' own images, which are left out" if retrieval.self_matches is not None else ""
    return f"No query can be evaluated: the gallery holds no image of a query's identity{rest}. Check the identities."
