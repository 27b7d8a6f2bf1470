"""Several arrays read as one: what numpy says of their concatenation, by property."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import rows as rows_module
from utils.errors import UserError
from utils.rows import Rows

sizes = st.lists(st.integers(0, 5), min_size=1, max_size=6)
bounds = st.one_of(st.none(), st.integers(-40, 40))


def numbers(lengths, width=2, dtype=np.float32):
    whole = np.arange(sum(lengths) * width, dtype=dtype).reshape(-1, width)
    return whole, Rows(np.split(whole, np.cumsum(lengths)[:-1]))


@given(sizes, bounds, bounds, st.sampled_from([None, 1, 2, -1, -3]))
def test_slices_are_those_of_the_concatenation(lengths, start, stop, step):
    whole, rows = numbers(lengths)
    np.testing.assert_array_equal(rows[start:stop:step], whole[start:stop:step])
    assert rows[start:stop:step].dtype == whole.dtype


@given(sizes, st.data())
def test_rows_by_number_are_those_of_the_concatenation(lengths, data):
    whole, rows = numbers(lengths)
    assert (len(rows), rows.shape, rows.ndim, rows.dtype) == (len(whole), whole.shape, 2, whole.dtype)
    np.testing.assert_array_equal(np.asarray(rows), whole)
    assert [row.tolist() for row in rows] == whole.tolist()
    chosen = data.draw(st.lists(st.integers(-len(whole), len(whole) - 1), max_size=8)) if len(whole) else []
    np.testing.assert_array_equal(rows[chosen], whole[np.array(chosen, np.int64)])
    for row in chosen:
        np.testing.assert_array_equal(rows[row], whole[row])
    for outside in (len(whole), -len(whole) - 1):
        with pytest.raises(IndexError):
            rows[outside]
        with pytest.raises(IndexError):
            rows[[outside]]


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1, max_size=4), min_size=1))
def test_text_is_as_wide_as_the_widest(parts):
    rows, whole = Rows([np.array(part) for part in parts]), [text for part in parts for text in part]
    assert list(rows) == whole
    assert rows[:].tolist() == whole
    assert rows[range(len(whole))].tolist() == whole


def test_masks_are_refused():
    with pytest.raises(TypeError, match="not by bool"):
        numbers([2, 1])[1][np.array([True, False, True])]
    with pytest.raises(TypeError, match="by one index, not by several"):
        numbers([2, 1])[1][2, 0]


def mapped(tmp_path: Path, count: int) -> list[np.ndarray]:
    for number in range(count):
        np.save(tmp_path / f"{number}.npy", np.full((3, 2), number, np.float32))
    return [np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(count)]


def test_a_slice_within_a_file_is_a_view_of_it(tmp_path):
    rows = Rows(mapped(tmp_path, 2))
    assert isinstance(rows[3:5], np.memmap)
    assert rows[3:5].base is not None
    assert type(rows[2:4]) is np.ndarray
    assert [path.name for path in rows.files] == ["0.npy", "1.npy"]


def test_many_files_are_opened_as_they_are_read_and_not_mixed_with_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "MOST_OPEN", 3)
    arrays = mapped(tmp_path, 5)
    rows, whole = Rows(arrays), np.concatenate(arrays)
    del arrays
    assert not {"0.npy", "4.npy"} & {Path(line.split()[-1]).name for line in open("/proc/self/maps") if "/" in line}  # noqa: SIM115, PTH123
    np.testing.assert_array_equal(rows[2:11], whole[2:11])
    np.testing.assert_array_equal(rows[[14, 0, 7]], whole[[14, 0, 7]])
    np.testing.assert_array_equal(np.asarray(rows), whole)
    np.save(tmp_path / "new.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "new.npy").replace(tmp_path / "2.npy")
    np.testing.assert_array_equal(rows[:6], whole[:6])
    with pytest.raises(UserError, match="2.npy has changed while it was being read"):
        rows[4:7]
