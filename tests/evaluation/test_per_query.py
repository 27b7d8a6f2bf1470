"""The tables of queries: how they are read, what is refused, and how two of them are paired."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import evaluate_embeddings, metrics_dict
from evaluation.per_query import QueryTable, pair_queries, read_evaluation
from evaluation.retrieval import RetrievalSet
from evaluation.tables import write_evaluation
from utils.errors import UserError

FILES = Path("a.csv"), Path("b.csv")


@pytest.mark.parametrize("given", ["evaluation/per_query.csv", "evaluation", ""])
def test_reads_what_an_evaluation_writes(data, tmp_path, given):
    results = [evaluate_embeddings(*data, protocol=protocol) for protocol in ("instance", "centroid_strict")]
    paths = [f"bilder/{i},ä.jpg" for i in range(12)]
    write_evaluation(tmp_path / "evaluation", results, RetrievalSet(*data, q_paths=paths), {"metric": "cosine"})
    found = read_evaluation(tmp_path / given)
    assert found.file == tmp_path / "evaluation" / "per_query.csv"
    assert found.about["settings"] == {"metric": "cosine"}
    assert list(found.protocols) == ["instance", "centroid_strict"]
    for result in results:
        table = found.protocols[result.protocol]
        assert (table.path, table.pid) == (paths, [str(pid) for pid in data[2]])
        assert np.flatnonzero(np.isnan(table.ap)).tolist() == sorted({*range(12)} - {*result.query_index.tolist()})
        columns = table.metrics(result.protocol)
        valid = ~np.isnan(table.ap)
        means = {name: column[valid].mean() for name, column in columns.items()}
        expected = {name.removeprefix("strict_"): value for name, value in metrics_dict(result).items()}
        assert means == pytest.approx(expected, abs=1e-6)


HEADER = "protocol,query,path,pid,camera,AP,first_match_rank,INP,relevant\n"
ROW = "instance,0,a.jpg,7,0,0.5,2,0.5,1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; expected per_query.csv, or a folder that holds it"),
        ("", "has no rows; expected one for each query"),
        (HEADER, "has no rows; expected one for each query"),
        (b"PK\x03\x04\xff\xfe", "lacks the columns protocol, query, path, pid, AP, first_match_rank, INP; exp"),
        ('a,b\n"1,2\n', "cannot be read as a table ("),
        ("a,b\n1,2\n", "lacks the columns protocol, query, path, pid, AP, first_match_rank, INP; expected the"),
        (HEADER.replace("INP", "inp") + ROW, "lacks the column INP; expected the per_query.csv of an evaluation."),
        (HEADER + ROW + "instance,1,b.jpg\n", "line 3 has too many or too few values"),
        (HEADER + ROW[:-1] + ",9\n", "line 2 has too many or too few values"),
        (HEADER + ROW.replace("0.5", "x", 1), "line 2: AP is 'x'; expected a number from 0 to 1."),
        (HEADER + ROW.replace("0.5", "1.5", 1), "line 2: AP is '1.5'; expected a number from 0 to 1."),
        *(
            (
                HEADER + ROW.replace("2", rank),
                f"line 2: first_match_rank is '{rank}'; expected a rank, a whole number f",
            )
            for rank in ("0", "inf", "1.5", "1e300", "nan")
        ),
        (HEADER + "\n" + ROW.replace("a.jpg", '"a\nb"') + ROW.replace("0.5", "x", 1), "line 5: AP is 'x'; expected"),
        (
            HEADER + ROW.replace("instance", "mine"),
            "protocol is 'mine'; expected one of instance, centroid, centroid_s",
        ),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, text, message):
    file = tmp_path / "per_query.csv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read_evaluation(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_damaged_description_is_explained(tmp_path):
    (tmp_path / "per_query.csv").write_text(HEADER + ROW)
    assert read_evaluation(tmp_path).about == {}
    (tmp_path / "metrics.json").write_text("[1]")
    assert read_evaluation(tmp_path).about == {}
    (tmp_path / "metrics.json").write_text("{")
    (tmp_path / "metrics.json").write_bytes(b'\xef\xbb\xbf{"settings": {"x": 1}}')
    assert read_evaluation(tmp_path).about == {"settings": {"x": 1}}
    for text in ("{", '{"settings": {"x": NaN}}', '{"x": 1e999}', "[" * 200_000):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(UserError, match=r"metrics.json is damaged \(.*\); remove it to compare the tables alone"):
            read_evaluation(tmp_path)


@pytest.mark.parametrize("name", ["a" * 256, "a\0b"])
def test_a_name_that_no_file_can_have_is_explained(tmp_path, name):
    """Newer versions of Python call it missing, where older ones raise an error of the system."""
    with pytest.raises(
        UserError, match=r"^[^\n]* (cannot be looked up \([^\n]*\)|does not exist); expected per_query.csv"
    ):
        read_evaluation(tmp_path / name)


def test_ranks_that_a_table_program_wrote_as_floating_numbers_are_read(tmp_path):
    (tmp_path / "per_query.csv").write_text(HEADER + ROW.replace("2", "2.0"))
    assert read_evaluation(tmp_path).protocols["instance"].first.tolist() == [2]


def test_names_of_files_that_are_no_text_are_read(tmp_path):
    (tmp_path / "per_query.csv").write_bytes((HEADER + ROW).encode().replace(b"a.jpg", b"\xfc.jpg"))
    assert read_evaluation(tmp_path).protocols["instance"].path == ["\udcfc.jpg"]


def table(paths, pids, query=None):
    numbers = np.ones(len(paths))
    return QueryTable(query or [str(i) for i in range(len(paths))], paths, pids, numbers, numbers, numbers)


def pair(a, b):
    by, rows = pair_queries(a, b, FILES)
    return by, rows.tolist()


def test_queries_are_paired_by_path_wherever_the_data_lies():
    a = table(["/data/q/1.jpg", "/data/q/2.jpg", "/data/r/1.jpg"], ["7", "8", "9"])
    assert pair(a, table(a.path[::-1], a.pid[::-1])) == ("path", [2, 1, 0])
    elsewhere = ["D:\\sets\\q\\2.jpg", "D:\\sets\\r\\1.jpg", "D:\\sets\\q\\1.jpg"]
    assert pair(a, table(elsewhere, ["8", "9", "7"])) == ("path", [2, 0, 1])
    assert pair(table(["x/1.jpg"], ["7"]), table(["1.jpg"], ["7"])) == ("path", [0])
    with pytest.raises(UserError, match=r"1 only in a.csv \(such as 1.jpg\) and 1 only in b.csv \(such as 2.jpg\)"):
        pair(table(["x/1.jpg"], ["7"]), table(["y/2.jpg"], ["7"]))


def test_queries_without_paths_are_paired_by_number():
    other = table(["a.jpg", "b.jpg"], ["8", "7"], query=["1", "0"])
    assert pair(table(["", ""], ["7", "8"]), other) == ("number", [1, 0])
    assert pair(other, table(["", ""], ["7", "8"])) == ("number", [1, 0])


def test_rows_of_one_path_are_paired_in_their_order():
    a = table(["a.jpg", "a.jpg", "b.jpg"], ["7", "8", "9"])
    assert pair(a, table(["a.jpg", "b.jpg", "a.jpg"], ["7", "9", "8"])) == ("path", [0, 2, 1])
    with pytest.raises(
        UserError, match=r"1 only in a.csv \(such as a.jpg, row 2 of that name\) and 1 only in b.csv \("
    ):
        pair(a, table(["a.jpg", "b.jpg", "c.jpg"], ["7", "9", "8"]))
    with pytest.raises(UserError, match="0 are in both, 3 only in a.csv"):
        pair(a, table([f"/other/{i}.jpg" for i in range(3)], a.pid))


def test_a_table_that_holds_a_query_twice_is_refused():
    once, twice = (
        table(["a.jpg", "b.jpg"], ["7", "8"]),
        table(["a.jpg", "b.jpg", "b.jpg"], ["7", "8", "8"], ["0", "1", "1"]),
    )
    for sides, file in (((once, twice), "b.csv"), ((twice, once), "a.csv"), ((twice, twice), "a.csv")):
        with pytest.raises(UserError) as caught:
            pair(*sides)
        assert str(caught.value) == (
            f"{file} holds 1 of 2 queries of a protocol more than once (such as path b.jpg with number 1); expected "
            "one row for each: evaluate again."
        )
    with pytest.raises(UserError, match=r"^b.csv holds 1 of 2 queries .* \(such as number 1\); expected"):
        pair(table(["", ""], ["7", "8"]), twice)


def test_other_queries_are_refused():
    a, b = table(["1.jpg", "2.jpg", "3.jpg"], ["7"] * 3), table(["3.jpg", "4.jpg"], ["7"] * 2)
    with pytest.raises(UserError) as caught:
        pair(a, b)
    assert str(caught.value) == (
        "The two evaluations have other queries: by their path, 1 are in both, 2 only in a.csv (such as 1.jpg) and 1 "
        "only in b.csv (such as 4.jpg). Compare evaluations of the same queries."
    )
    with pytest.raises(
        UserError, match=r"by their number, 1 are in both, 0 only in a.csv and 1 only in b.csv \(su.* 1"
    ):
        pair(table([""], ["7"]), table(["", ""], ["7"] * 2))


def test_other_identities_are_refused():
    with pytest.raises(UserError) as caught:
        pair(table(["1.jpg", "2.jpg"], ["7", "8"]), table(["2.jpg", "1.jpg"], ["9", "7"]))
    assert str(caught.value) == (
        "1 of 2 queries have another identity in b.csv than in a.csv: path 2.jpg is 9, not 8. Compare evaluations of "
        "the same queries and labels."
    )
