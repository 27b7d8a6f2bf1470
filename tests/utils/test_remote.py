"""Files behind URLs: broken connections are mended, what cannot be mended is said at once."""

import io
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from fsspec import AbstractFileSystem
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
    opened: list["Breaking"] = []  # noqa: RUF012
    cat_file = AbstractFileSystem.cat_file

    def _open(self, path, mode="rb", **kw):
        file = super()._open(path, mode, **kw)
        if mode != "rb":
            return file
        Flaky.opened.append(Breaking(file.getvalue()))
        return Flaky.opened[-1]


class Breaking(io.RawIOBase):
    def __init__(self, content):
        self.inner, self.size, self.reads = io.BytesIO(content), len(content), 0

    def read(self, count=-1):
        self.reads += 1
        if (self.reads > 1 or self.size == 1) and Flaky.failures:
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
    monkeypatch.setattr(Flaky, "opened", [])
    Flaky.failures = []
    for name, content in (("file.bin", CONTENT), ("small.bin", b"x")):
        with fsspec.open(f"flaky://box/{name}", "wb") as file:
            file.write(content)
    return Flaky


class StatusError(Exception):
    def __init__(self, status):
        super().__init__(f"answered {status}")
        self.status = status


@pytest.mark.parametrize(("seekable", "opened"), [(True, 4), (False, 7)])
def test_a_broken_read_goes_on_where_it_stopped(flaky, seekable, opened, caplog):
    flaky.seekable = seekable
    flaky.failures = [ConnectionResetError("reset"), TimeoutError("late"), StatusError(503)]
    waits = []
    with remote.open_file("flaky://box/file.bin", waits.append) as file:
        assert file.read() == CONTENT
    assert flaky.failures == []
    assert len(flaky.opened) == opened  # one that cannot seek is opened once more
    assert all(file.closed for file in flaky.opened)
    assert waits == [1.0, 2.0, 4.0]
    assert "flaky://box/file.bin: TimeoutError: late; trying again in " in caplog.text


def test_a_file_that_breaks_again_on_the_way_back_is_closed(flaky):
    flaky.seekable = False
    with remote.open_file("flaky://box/file.bin", lambda seconds: None) as file:
        start = file.read(350_000)
        flaky.failures = [ConnectionResetError("reset"), ConnectionResetError("again, while what is known is skipped")]
        assert start + file.read() == CONTENT
    assert flaky.failures == []
    assert len(flaky.opened) == 5 and all(file.closed for file in flaky.opened)


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
    with remote.open_file("flaky://box/file.bin") as file:
        assert file.read() == CONTENT
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


def test_a_small_file_is_fetched_anew(flaky):
    flaky.failures = [ConnectionResetError("reset"), TimeoutError("late")]
    waits = []
    assert remote.read_file("flaky://box/small.bin", waits.append) == b"x"
    assert waits == [1.0, 2.0]


class Server(BaseHTTPRequestHandler):
    """Breaks off the first answer in its middle; gives parts of a file (after that) only if it is told to."""

    gives_parts = False
    answers: list[int] = []  # noqa: RUF012 - shared by design: the server makes the instances

    def do_HEAD(self):
        self.answer(200, CONTENT, "HEAD")

    def do_GET(self):
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and self.gives_parts:
            self.answer(206, CONTENT[int(asked[1]) : int(asked[2]) + 1], "GET", f"bytes {asked[1]}-{asked[2]}")
        else:
            self.answer(200, CONTENT, "GET")

    def answer(self, status, content, verb, part=""):
        if not self.path.endswith("file.bin"):
            self.send_error(404)
            return
        self.send_response(status)
        if self.gives_parts:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"{part}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if verb == "GET":
            self.answers.append(status)
            self.wfile.write(content if len(self.answers) > 1 else content[: len(content) // 2])

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("gives_parts", "second"), [(True, 206), (False, 200)])
def test_https(monkeypatch, gives_parts, second, caplog):
    """The server closes the connection in the middle; then it is away."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "WAITS", (0.0,))
    monkeypatch.setattr(Server, "gives_parts", gives_parts)
    monkeypatch.setattr(Server, "answers", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.handle_error = lambda *_: None  # whoever goes on elsewhere closes the connection
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with remote.open_file(f"{url}/file.bin") as file:
            assert file.read() == CONTENT
        assert Server.answers[:2] == [200, second]
        assert f"{url}/file.bin: ClientPayloadError" in caplog.text
        with pytest.raises(MissingPathError, match=f"^{url}/other does not exist"):
            remote.size_of(f"{url}/other")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UserError, match=f"^{url}/file.bin cannot be read, tried 2 times"):
        remote.read_file(f"{url}/file.bin")
    assert remote.size_of(f"{url}/file.bin") is None


@pytest.mark.parametrize("path", ["memory://nowhere/a.txt", "nowhere/a.txt"])
def test_a_missing_file(path):
    with pytest.raises(MissingPathError, match=f"^{path} does not exist"):
        remote.open_file(path)
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
