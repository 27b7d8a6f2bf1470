"""Query and gallery images as further training images (DATASETS.COMBINEALL), for networks that are to be used.

torchreid calls it combineall (Zhou and Xiang, "Torchreid: A Library for Deep Learning Person Re-Identification in
PyTorch", arXiv:1910.10093, 2019).
"""

from collections.abc import Collection, Sequence

# path of the image, pid as the data set has it, camid
Image = tuple[str, int, int]


def combine_all(
    train: Sequence[Image],
    evaluated: Sequence[Image],
    title: str,
    one_numbering: bool,
    left_out: Collection[int] = (),
    has_cameras: bool = True,
) -> tuple[list[Image], str]:
    """Add query and gallery images to the training images.

    Args:
        train: training images; they come first, unchanged.
        evaluated: queries, then the gallery.
        title: what the note calls the data set.
        one_numbering: whether a pid means the same identity in both. Otherwise those of ``evaluated`` are numbered on
            from the greatest of ``train``.
        left_out: pids that are no identity, such as distractors; those below 0 are none either.
        has_cameras: False for data whose gallery has a stand-in for a camera: all images get the one of training, 0.

    Returns:
        The images, each file once; and a sentence that says how many were added and left out, and what follows.
    """
    shift = 0 if one_numbering else 1 + max((pid for _, pid, _ in train), default=-1)
    known = {path for path, _, _ in train}
    added: dict[str, Image] = {}
    without_identity: dict[str, None] = {}
    for path, pid, camid in evaluated:
        if pid < 0 or pid in left_out:
            without_identity[path] = None
        elif path not in known:
            added.setdefault(path, (path, pid + shift, camid if has_cameras else 0))
    identities = len({pid for _, pid, _ in added.values()} - {pid for _, pid, _ in train})
    note = f"DATASETS.COMBINEALL: {title} trains on {len(added)} images of query and gallery besides its {len(train)} "
    note += f"training images (further identities: {identities}"
    if without_identity:
        first = next(iter(without_identity))
        note += f"; distractors and junk, which are left out: {len(without_identity)}, such as {first}"
    return [*train, *added.values()], f"{note}). Tests on {title} measure images that were trained on."
