"""Pictures of rankings: which results, which frames, which files."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.transforms.pixels import resize_to_planes
from evaluation.ranked_images import Ranking, rank_distances, rank_for_display, render_rankings
from evaluation.retrieval import RankingOptions, RetrievalSet
from tests.evaluation import oracle
from tests.support import UPRIGHT, save_turned, stored_pixels
from utils.errors import MissingPathError, UserError

GREEN, RED, BLACK = (0, 255, 0), (255, 0, 0), (0, 0, 0)
SIZE = (48, 24)


def draw(seed, m=12, n=40):
    rng = np.random.default_rng(seed)
    feats = rng.integers(-2, 3, (m + n, 2)).astype(np.float32)
    pids, camids = rng.integers(0, 6, m + n), rng.integers(0, 3, m + n)
    return feats[:m], feats[m:], pids[:m], pids[m:], camids[:m], camids[m:]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("topk", [1, 10, 100])
def test_instances_equal_plain_loop(seed, topk):
    query, gallery, q_pids, g_pids, q_camids, g_camids = data = draw(seed)
    order = oracle.stable_order(oracle.squared_euclidean(query, gallery))
    rankings = rank_for_display(RetrievalSet(*data), topk=topk)
    assert [ranking.query for ranking in rankings] == list(range(len(query)))
    for i, ranking in enumerate(rankings):
        kept = [j for j in order[i] if g_pids[j] != q_pids[i] or g_camids[j] != q_camids[i]][:topk]
        assert ranking.images.tolist() == kept
        assert ranking.right.tolist() == [g_pids[j] == q_pids[i] for j in kept]
        np.testing.assert_array_equal(ranking.distances, oracle.squared_euclidean(query[i : i + 1], gallery[kept])[0])


@pytest.mark.parametrize("keep_camids", [True, False])
@pytest.mark.parametrize("protocol", ["centroid", "centroid_strict"])
def test_centroids_are_shown_by_a_member(protocol, keep_camids):
    query, gallery, q_pids, g_pids, q_camids, g_camids = data = draw(1)
    rankings = rank_for_display(
        RetrievalSet(*data), RankingOptions(protocol=protocol, keep_camids=keep_camids), topk=100
    )
    for i, ranking in enumerate(rankings):
        assert np.all(np.diff(ranking.distances) >= 0)
        for image, right in zip(ranking.images, ranking.right, strict=True):
            assert right == (g_pids[image] == q_pids[i])
            if right and protocol == "centroid_strict" and keep_camids:
                assert g_camids[image] != q_camids[i]
    if protocol == "centroid_strict":
        ranks = oracle.strict_ranks(query, gallery, q_pids, g_pids, q_camids, g_camids, keep_camids)
        for i, ranking in enumerate(rankings):
            assert (np.flatnonzero(ranking.right) + 1).tolist() == [ranks[i]] * (i in ranks)


def test_chosen_queries_in_the_order_wanted():
    retrieval = RetrievalSet(*draw(2))
    everything = rank_for_display(retrieval)
    chosen = rank_for_display(retrieval, queries=[7, 2, 11])
    assert [ranking.query for ranking in chosen] == [7, 2, 11]
    for ranking in chosen:
        np.testing.assert_array_equal(ranking.images, everything[ranking.query].images)
    assert rank_for_display(retrieval, queries=[]) == []


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_given_distances_rank_as_embeddings_do(convert):
    query, gallery, *labels = draw(3, m=90)  # more than are searched at a time
    distances = oracle.squared_euclidean(query, gallery)
    before = distances.copy()
    found = rank_distances(convert(distances), *labels, topk=7)
    for ours, expected in zip(found, rank_for_display(RetrievalSet(query, gallery, *labels), topk=7), strict=True):
        assert ours.query == expected.query
        np.testing.assert_array_equal(ours.images, expected.images)
        np.testing.assert_array_equal(ours.right, expected.right)
        np.testing.assert_array_equal(ours.distances, expected.distances)
    np.testing.assert_array_equal(distances, before)
    assert [ranking.query for ranking in rank_distances(convert(distances), *labels, queries=[80, 1])] == [80, 1]


def save(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 50), colour).save(path)
    return str(path)


@pytest.fixture
def files(tmp_path):
    root = tmp_path / "bilder ärger 図"
    queries = [save(root / "a" / "0001_c1.jpg", "blue"), save(root / "b" / "0001_C1.png", "blue")]
    queries.append(save(root / "a" / "größe.jpg", "blue"))
    gallery = [save(root / f"g{i}.png", (90, 90, 20 * i)) for i in range(4)]
    return root, queries, gallery


def ranking(query, images, right):
    return Ranking(
        query, np.array(images, dtype=np.int64), np.array(right, dtype=bool), np.zeros(len(images), np.float32)
    )


def test_pictures(files):
    root, queries, gallery = files
    out = root / "out" / "visrank"
    rankings = [ranking(0, [3, 1, 0], [True, False, True]), ranking(1, [2], [False]), ranking(2, [], [])]
    written = render_rankings(rankings, queries, gallery, out, SIZE)
    assert {index: path.name for index, path in written.items()} == {
        0: "0001_c1.png",
        1: "0001_C1_1.png",
        2: "größe.png",
    }
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in written.values())
    picture = np.asarray(Image.open(written[0]))
    height, width = SIZE
    assert picture.shape[0] == height
    gap = 4
    assert picture.shape[1] == width + 3 * (gap + width) + 2 * gap
    cells, lefts = [], set()
    for row in (0, height - 1):
        inked = (picture[row] != 255).any(-1)
        edges = np.flatnonzero(np.diff(inked.astype(int), prepend=0, append=0)).reshape(-1, 2)
        cells.append([(stop - start, tuple(picture[row, start])) for start, stop in edges])
        lefts.add(tuple(edges[:, 0]))
    # The query stands further from the results than these from one another.
    assert lefts == {(0, *(width + 3 * gap + i * (width + gap) for i in range(3)))}
    assert cells[0] == cells[1] == [(width, BLACK), (width, GREEN), (width, RED), (width, GREEN)]
    middle = picture[height // 2]
    assert (middle == (90, 90, 60)).all(-1).sum() == (middle == (90, 90, 20)).all(-1).sum() > width // 2
    shapes = {np.asarray(Image.open(path)).shape for path in written.values()}
    assert shapes == {picture.shape}


def drawn_inside(pixels, folder):
    """What a strip of SIZE shows of an image: of the query, and of the result, which must be the same."""
    Image.fromarray(pixels).save(folder / "x.png")
    files = [folder / "x.png"]
    (strip,) = render_rankings([ranking(0, [0], [True])], files, files, folder / "out", SIZE).values()
    (height, width), frame, gaps = SIZE, 2, 12
    rows = np.asarray(Image.open(strip))[frame : height - frame]
    query, result = (rows[:, left + frame : left + width - frame] for left in (0, width + gaps))
    np.testing.assert_array_equal(query, result)
    return query.astype(int)


@pytest.mark.parametrize("file", [(88, 40), (132, 77), (44, 20), (22, 10), (22, 40), (88, 10)])
def test_images_are_scaled_as_those_of_the_network(tmp_path, file):
    pixels = np.random.default_rng(0).integers(0, 256, (*file, 3), dtype=np.uint8)
    expected = resize_to_planes(Image.fromarray(pixels), (44, 20)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(drawn_inside(pixels, tmp_path), expected)


@pytest.mark.parametrize("upright", [True, False])
def test_images_are_turned_upright(tmp_path, upright):
    """A strip of eight files with the same stored pixels is that of eight files that need no turning."""
    turned = [save_turned(tmp_path / "turned" / f"{value}.png", value) for value in UPRIGHT]
    plain = [
        save_turned(tmp_path / "plain" / f"{value}.png", 1, UPRIGHT[value if upright else 1](stored_pixels()))
        for value in UPRIGHT
    ]
    strips = []
    for files in (turned, plain):
        rankings = [ranking(5, list(range(8)), [True] * 8)]
        written = render_rankings(rankings, files, files, tmp_path / "out", SIZE, exif_orientation=upright)
        strips.append(np.asarray(Image.open(written[5])))
    np.testing.assert_array_equal(*strips)


def test_the_smallest_images_are_one_pixel_and_its_frame(files):
    _, queries, gallery = files
    written = render_rankings([ranking(0, [0], [True])], queries, gallery, files[0] / "out", (1, 1))
    assert np.asarray(Image.open(written[0])).shape == (5, 5 + (5 + 4) + 2 * 4, 3)


def test_names_that_meet_by_numbering(tmp_path):
    names = ["x", "X", "x_1", "x"]
    paths = [save(tmp_path / str(i) / f"{name}.png", "blue") for i, name in enumerate(names)]
    written = render_rankings([ranking(i, [], []) for i in range(4)], paths, [], tmp_path / "out", SIZE)
    assert len({path.name.casefold() for path in written.values()}) == 4


def test_errors_name_the_file(files, tmp_path):
    root, queries, gallery = files
    with pytest.raises(MissingPathError, match=r"gone\.jpg does not exist"):
        render_rankings([ranking(0, [0], [True])], queries, [str(root / "gone.jpg")], tmp_path / "out", SIZE)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        render_rankings([ranking(0, [0], [True])], queries, gallery, tmp_path / "taken", SIZE)
