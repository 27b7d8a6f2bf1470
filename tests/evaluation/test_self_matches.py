"""The query's own image among a gallery without cameras: how it is found, and that no other item leaves the ranking."""

import hashlib

import numpy as np
import pytest

from evaluation.metrics import evaluate
from evaluation.ranked_images import rank_for_display
from evaluation.retrieval import RankingOptions, RetrievalSet
from evaluation.self_matches import SelfMatches, find_copies, find_self_matches
from evaluation.verification import roc_table
from utils.errors import NoValidQueryError


def write(folder, **contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    return [str(folder / f"{name}.jpg") for name in contents]


def groups(own):
    return own.queries.tolist(), own.gallery.tolist()


def test_the_same_file_however_its_path_is_written(tmp_path):
    (one, two) = write(tmp_path / "a", one=b"1", two=b"2")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    own = find_self_matches([one, two], [str(tmp_path / "b/../a/two.jpg"), str(tmp_path / "link" / "one.jpg"), "x"])
    assert groups(own) == ([0, 1], [1, 0, -1])
    assert (own.count, own.first) == (2, 0)


def test_paths_of_files_that_are_not_here():
    own = find_self_matches(["data/q/1.jpg", "data/q/2.jpg"], ["data/g/1.jpg", "./data/q/2.jpg", "data/q/2.jpg"])
    assert groups(own) == ([-1, 0], [-1, 0, 0])
    assert own.first == 1


def test_copies_are_found_by_content_and_only_files_of_a_shared_size_are_read(tmp_path, monkeypatch):
    queries = write(tmp_path / "q", a=b"one", b=b"a long one", c=b"one", d=b"two", empty=b"")
    gallery = write(tmp_path / "g", copy=b"one", other=b"six", link=b"x", empty=b"", alone=b"quite another size")
    (tmp_path / "g" / "link.jpg").unlink()
    (tmp_path / "g" / "link.jpg").symlink_to(queries[3])
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    own = find_self_matches(queries, gallery)
    # An empty file is no image, and equal to every other one.
    assert groups(own) == ([0, -1, 0, 1, -1], [0, -1, 1, -1, -1])
    assert sorted(read) == sorted([queries[0], queries[2], queries[3], *gallery[:3]])


@pytest.fixture
def images():
    """9 queries that are also among 40 gallery images, and the groups."""
    rng = np.random.default_rng(4)
    pids = rng.integers(0, 6, 40)
    feats = (rng.normal(size=(6, 4))[pids] + 2 * rng.normal(size=(40, 4))).astype(np.float32)
    queries = rng.permutation(40)[:9]
    own = SelfMatches(np.arange(9), np.array([list(queries).index(i) if i in queries else -1 for i in range(40)]))
    labels = (pids[queries], pids, np.zeros(9, int), np.ones(40, int))
    return feats[queries], feats, labels, queries, own


def sets(images):
    query, gallery, labels, _, own = images
    without = RetrievalSet(query, gallery, *labels, has_cameras=False, self_matches=own)
    return without, RetrievalSet(query, gallery, *labels, has_cameras=False)


def test_single_images_by_a_plain_loop(images):
    query, gallery, (q_pids, g_pids, *_), queries, _ = images
    without, with_own = sets(images)
    expected = []
    for feat, pid, own in zip(query, q_pids, queries, strict=True):
        others = np.delete(np.arange(40), own)
        order = others[np.argsort(((gallery[others] - feat) ** 2).sum(1), kind="stable")]
        hits = np.flatnonzero(g_pids[order] == pid)
        expected.append(np.mean((np.arange(len(hits)) + 1) / (hits + 1)))
    result = evaluate(without)
    np.testing.assert_allclose(result.average_precision, expected, rtol=1e-6)
    assert evaluate(with_own).topk[1] == 1 > result.topk[1]
    assert all(queries[r.query] not in r.images for r in rank_for_display(without, topk=40))
    assert all(queries[r.query] == r.images[0] for r in rank_for_display(with_own, topk=1))
    kept, dropped = (roc_table(retrieval).genuine.sum() for retrieval in (with_own, without))
    assert kept - dropped == 9


def test_strict_centroids_leave_the_query_out_and_the_published_ones_keep_it(images):
    query, gallery, (q_pids, g_pids, *_), queries, _ = images
    without, with_own = sets(images)
    # As evaluate_protocols has it for data without cameras: no other camera rule.
    strict, published = (RankingOptions(protocol=p, keep_camids=False) for p in ("centroid_strict", "centroid"))
    ranks = []
    for feat, pid, own in zip(query, q_pids, queries, strict=True):
        kept = np.arange(40) != own
        means = [gallery[(g_pids == p) & (kept if p == pid else True)].mean(0) for p in range(6)]
        distances = ((np.array(means) - feat) ** 2).sum(1)
        ranks.append(1 + int((distances < distances[pid]).sum()))
    assert evaluate(without, strict).first_match.tolist() == ranks
    assert evaluate(with_own, strict).mAP > evaluate(without, strict).mAP
    assert evaluate(with_own, published).mAP == evaluate(without, published).mAP == evaluate(with_own, strict).mAP


def test_the_same_image_under_another_identity_stays_a_distractor():
    own = SelfMatches(np.array([0]), np.array([0, 0, -1]))
    retrieval = RetrievalSet(
        [[1.0]], [[1.0], [1.0], [0.0]], [7], [8, 7, 7], [0], [1, 1, 1], has_cameras=False, self_matches=own
    )
    assert evaluate(retrieval).first_match.tolist() == [2]
    strict = evaluate(retrieval, RankingOptions(protocol="centroid_strict"))
    assert strict.first_match.tolist() == [2]


def test_a_query_that_finds_only_itself_is_skipped():
    own = SelfMatches(np.array([0, -1]), np.array([0, -1]))
    labels = ([7, 8], [7, 8], [0, 0], [1, 1])
    retrieval = RetrievalSet([[1.0], [0.0]], [[1.0], [0.2]], *labels, has_cameras=False, self_matches=own)
    for protocol in ("instance", "centroid_strict"):
        result = evaluate(retrieval, RankingOptions(protocol=protocol))
        assert (result.num_skipped, result.query_index.tolist()) == (1, [1])
    alone = RetrievalSet(
        [[1.0]], [[1.0]], [7], [7], [0], [1], has_cameras=False, self_matches=find_self_matches("a", "a")
    )
    with pytest.raises(NoValidQueryError, match="except the queries' own images, which are left out") as error:
        evaluate(alone)
    assert "camera" not in str(error.value)


def test_without_cameras_the_numbers_of_cameras_do_not_matter(images):
    query, gallery, (q_pids, g_pids, *_), _, own = images
    for more in ({}, {"self_matches": own}):
        for protocol in ("instance", "centroid", "centroid_strict"):
            one_camera = RetrievalSet(query, gallery, q_pids, g_pids, [3] * 9, [3] * 40, has_cameras=False, **more)
            usual = RetrievalSet(query, gallery, q_pids, g_pids, [0] * 9, [1] * 40, has_cameras=False, **more)
            options = RankingOptions(protocol=protocol)
            assert evaluate(one_camera, options).mAP == evaluate(usual, options).mAP


def test_copies_among_images_that_draws_divide(tmp_path):
    one, two, three, again = write(tmp_path / "a", one=b"1", two=b"2", three=b"33", again=b"1")
    copies = find_copies([one, two, three, again, "gone.jpg", "gone.jpg", "other.jpg", ""])
    assert copies == {one: 0, again: 0, "gone.jpg": 1}
    own = SelfMatches.among_copies(copies, [two, one, "gone.jpg"], [again, three])
    assert groups(own) == ([-1, 0, -1], [0, -1])
    assert find_copies([]) == find_copies(["", ""]) == {}
