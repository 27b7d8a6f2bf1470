"""Files behind URLs: broken connections are mended, what cannot be mended is said at once."""

import io
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from utils import remote
from utils.errors import MissingPathError, UserError

CONTENT = bytes(range(256)) * 20_000  # several reads


class Flaky(MemoryFileSystem):
    """Opens and reads fail as often as ``failures`` says, each time in the middle."""

    protocol = "flaky"
    cachable = False
    failures: list[Exception] = []  # noqa: RUF012 - shared by design: the code under test makes the instances
    seekable = True
    opened = 0

    def _open(self, path, mode="rb", **kw):
        file = super()._open(path, mode, **kw)
        if mode != "rb":
            return file
        Flaky.opened += 1
        return Breaking(file.getvalue())


class Breaking(io.RawIOBase):
    def __init__(self, content):
        self.inner, self.size, self.reads = io.BytesIO(content), len(content), 0

    def read(self, count=-1):
        self.reads += 1
        if self.reads > 1 and Flaky.failures:
            raise Flaky.failures.pop(0)
        return self.inner.read(min(count, 100_000) if count >= 0 else count)

    def seek(self, offset, whence=0):
        if not Flaky.seekable:
            raise ValueError("Cannot seek streaming file")
        return self.inner.seek(offset, whence)


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "seekable", True)
    monkeypatch.setattr(Flaky, "opened", 0)
    Flaky.failures = []
    with fsspec.open("flaky://box/file.bin", "wb") as file:
        file.write(CONTENT)
    return Flaky


class StatusError(Exception):
    def __init__(self, status):
        super().__init__(f"answered {status}")
        self.status = status


# Each read that succeeds starts the waits anew; without seeking, what was skipped does not count as one.
@pytest.mark.parametrize(("seekable", "expected"), [(True, [1.0, 1.0, 1.0]), (False, [1.0, 2.0, 4.0])])
def test_a_broken_read_goes_on_where_it_stopped(flaky, seekable, expected, caplog):
    flaky.seekable = seekable
    flaky.failures = [ConnectionResetError("reset"), TimeoutError("late"), StatusError(503)]
    waits = []
    assert remote.read_file("flaky://box/file.bin", waits.append) == CONTENT
    assert flaky.failures == []
    assert flaky.opened == 4
    assert waits == expected
    assert "flaky://box/file.bin: TimeoutError: late; trying again in " in caplog.text


def test_a_connection_that_ends_early_without_an_error_is_a_broken_one(flaky, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0,))
    cut = Breaking.read
    lost = []

    def read(self, count=-1):
        if len(lost) < 1 and self.inner.tell() > 200_000:
            lost.append(self.inner.tell())
            return b""
        return cut(self, count)

    monkeypatch.setattr(Breaking, "read", read)
    assert remote.read_file("flaky://box/file.bin") == CONTENT
    assert lost


def test_the_last_try_names_the_url_and_hides_passwords():
    def work():
        raise ConnectionResetError("flaky://me:secret@box is away")

    waits = []
    with pytest.raises(UserError) as raised:
        remote.retrying(work, "flaky://me:secret@box/file.bin", waits.append)
    assert str(raised.value) == (
        "flaky://***@box/file.bin cannot be read, tried 5 times (ConnectionResetError: flaky://***@box is away); run "
        "again when it can be reached."
    )
    assert waits == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PermissionError("no"), "PermissionError: no"),
        (StatusError(403), "answered 403"),
        (ValueError("?"), "ValueError"),
    ],
)
def test_what_does_not_pass_is_not_tried_again(error, text):
    def work():
        raise error

    with pytest.raises(UserError, match=text):
        remote.retrying(work, "flaky://box/file.bin", lambda _: pytest.fail("waited"))


@pytest.mark.parametrize("path", ["memory://nowhere/a.txt", "nowhere/a.txt"])
def test_a_missing_file(path):
    with pytest.raises(MissingPathError, match=f"^{path} does not exist"):
        remote.read_file(path)
    with pytest.raises(MissingPathError):
        remote.size_of(path)


def test_unknown_protocols_and_packages():
    with pytest.raises(UserError, match="nothere://a/b cannot be read .*expected a URL that fsspec knows"):
        remote.check_protocols(["/local", "nothere://a/b"])


def test_without_fsspec_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    remote.check_protocols(["a.jpg"])
    with pytest.raises(UserError, match=r"s3://bucket/a.jpg is a URL: reading it needs the package fsspec.*\[remote\]"):
        remote.read_file("s3://bucket/a.jpg")


def test_patterns_here_and_behind_a_url(tmp_path):
    for name in ("b2.tar", "a1.tar", "ü3.tar", "x.txt", ".hidden.tar"):
        (tmp_path / name).write_bytes(b"")
        with fsspec.open(f"memory://patterns/{name}", "wb") as file:
            file.write(b"")
    (tmp_path / "folder.tar").mkdir()
    for root in (str(tmp_path), "memory://patterns"):
        assert remote.expand(f"{root}/*.tar") == [f"{root}/{name}.tar" for name in ("a1", "b2", "ü3")], root
        assert remote.list_folder(root) == [f"{root}/{name}" for name in ("a1.tar", "b2.tar", "x.txt", "ü3.tar")]
        assert remote.list_folder(f"{root}/a1.tar") is None
        assert remote.expand(f"{root}/{{b,a}}{{1..2}}.tar") == [f"{root}/{n}.tar" for n in ("b1", "b2", "a1", "a2")]
    (tmp_path / "odd{1,2}[x].txt").write_bytes(b"")
    assert remote.expand(str(tmp_path / "odd{1,2}[x].txt")) == [str(tmp_path / "odd{1,2}[x].txt")]
    assert remote.expand("https://host/a.csv?token=1") == ["https://host/a.csv?token=1"]


def test_paths_below_a_folder():
    assert remote.join("s3://bucket/lists", "a/b.jpg") == "s3://bucket/lists/a/b.jpg"
    assert remote.join("lists", "s3://bucket/a.jpg") == "s3://bucket/a.jpg"
    assert remote.join("s3://bucket", "/data/a.jpg") == "/data/a.jpg"
    assert remote.join("", "a.jpg") == "a.jpg"
    assert remote.folder_of("s3://bucket/lists/all.txt") == "s3://bucket/lists"
