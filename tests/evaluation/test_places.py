"""Where the evaluations of several runs and test sets are kept, and what their lines begin with."""

from pathlib import Path

from evaluation.metrics import evaluate_distances
from evaluation.places import EvaluationPlace


def folders(*args):
    return [folder.as_posix() for folder in EvaluationPlace(*args).folders(Path("e"))]


def test_a_single_evaluation_is_kept_where_it_always_was():
    place = EvaluationPlace()
    assert folders() == ["e"]
    assert (place.label("test"), place.prefix, place.about(7)) == ("test", "", {})


def test_each_run_has_a_folder_and_the_last_one_the_old_place_too():
    assert folders(1) == ["e/run_1", "e"]
    assert EvaluationPlace(0).about(7) == {"run": {"number": 0, "seed": 7}}


def test_the_first_test_set_has_the_old_place_too():
    assert folders(None, "veri776") == ["e", "e/veri776"]
    assert folders(None, "veri776", False) == ["e/veri776"]
    assert folders(1, "veri776") == ["e/run_1", "e/run_1/veri776", "e", "e/veri776"]


def test_a_colon_is_in_no_name_of_a_file_or_metric():
    place = EvaluationPlace(None, "shop.data:Shop", False, trained_on="veri776")
    assert (place.name, place.prefix, place.label("test")) == (
        "shop.data.Shop", "shop.data.Shop/", "shop.data:Shop, test",
    )  # fmt: skip
    assert place.about(None) == {"trained_on": "veri776"}


def test_a_caveat_stands_before_that_of_the_protocol():
    result = evaluate_distances([[0.5, 0.1]], [7], [7, 8], [0], [1, 1])
    assert EvaluationPlace().with_caveat(result) is result
    marked = EvaluationPlace(caveat="those of trained images").with_caveat(result)
    assert (marked.caveat, marked.mAP) == ("those of trained images", result.mAP)
    assert EvaluationPlace(caveat="more").with_caveat(marked).caveat == "more, those of trained images"
