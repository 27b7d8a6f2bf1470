import numpy as np
import pytest

from utils.errors import UserError
from utils.labels import Cameras, int_array

ITEMS = np.array([0, 0, 1])


@pytest.mark.parametrize(
    ("values", "single", "seen"),
    [
        ([1, 2], True, [True, False, False]),
        (np.array([[1, 2], [1, 3]]), False, [True, True, True]),
        ([{1, 2}, {3}], False, [True, True, False]),
        ([frozenset({1}), set()], False, [True, False, False]),
        # The first item decides.
        ([{1, 2}, 1], False, [True, True, True]),
        ([[1, 2], 3], False, [True, True, False]),
    ],
    ids=str,
)
def test_cameras_are_one_each_or_a_set_each(values, single, seen):
    cameras = Cameras("g_camids", values, 2)
    assert cameras.single is single
    assert cameras.contain(ITEMS, np.array([1, 2, 1])).tolist() == seen


def test_cameras_of_one_item_and_of_none():
    cameras = Cameras("g_camids", [{7, 5}], 1)
    assert not cameras.single
    assert cameras.of(0) == [5, 7]
    assert Cameras("g_camids", [], 0).single


def test_truth_values_are_no_numbers():
    with pytest.raises(UserError, match=r"pids\[0\] is True; expected a whole number"):
        int_array("pids", np.array([True, False]))
    assert int_array("pids", np.array([3, -1], dtype=np.int8)).tolist() == [3, -1]
