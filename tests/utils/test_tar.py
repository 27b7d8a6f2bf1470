"""Archives are read as tarfile reads them, in all formats that it writes."""

import io
import tarfile

import pytest

from utils.tar import DamagedTarError, read_members

MEMBERS = {
    "a.jpg": b"x" * 1000,
    "empty.jpg": b"",
    "folder/ü.jpg": b"y" * 512,
    f"{'deep/' * 30}{'long' * 40}.jpg": b"z" * 513,
    "\udcff.jpg": b"not in UTF-8",
}


def archive(members=MEMBERS, **options):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as written:
        for kind in (tarfile.DIRTYPE, tarfile.CHRTYPE):
            header = tarfile.TarInfo("other.jpg")
            header.type, header.linkname = kind, "a.jpg" * 40
            written.addfile(header)
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            written.addfile(header, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats(form):
    content = archive(format=form)
    assert dict(read_members(io.BytesIO(content), lambda name: True)) == MEMBERS
    kept = dict(read_members(io.BytesIO(content), lambda name: name == "a.jpg"))
    assert kept == dict.fromkeys(MEMBERS, b"") | {"a.jpg": MEMBERS["a.jpg"]}


def test_ustar_splits_long_names_and_global_headers_are_passed_over():
    members = {f"{'deep/' * 30}a.jpg": b"x", "b.jpg": b"y"}
    content = archive(members, format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"})
    assert dict(read_members(io.BytesIO(content), lambda name: True)) == members
    (long, _) = members
    header = tarfile.TarInfo(long).tobuf(tarfile.USTAR_FORMAT)
    assert [name for name, _ in read_members(io.BytesIO(header + bytes(1024)), lambda name: True)] == [long]


def test_members_beyond_8_gb_are_not_misread():
    header = tarfile.TarInfo("big.jpg")
    header.size = 9 << 30
    with pytest.raises(DamagedTarError, match="cut off"):
        list(read_members(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096)), lambda name: False))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_cut_and_every_damaged_header_is_noticed(form):
    content = archive({"a.jpg": b"x" * 600, "ü.jpg": b"y"}, format=form)
    end = len(content.rstrip(b"\0"))
    end += -end % 512
    for length in range(0, end + 512, 64):
        with pytest.raises(DamagedTarError, match="cut off"):
            list(read_members(io.BytesIO(content[:length]), lambda name: True))
    assert len(list(read_members(io.BytesIO(content[: end + 512]), lambda name: True))) == 2
    for place in (0, 124, 148, 156):
        broken = bytearray(content)
        broken[place] ^= 0x15
        with pytest.raises(DamagedTarError, match="damaged"):
            list(read_members(io.BytesIO(bytes(broken)), lambda name: True))


def test_members_whose_content_stands_elsewhere_are_named():
    """Passed over, they would be images that nobody misses."""
    links = ((tarfile.LNKTYPE, "hard link"), (tarfile.SYMTYPE, "symbolic link"))
    for kind, what in (*links, (tarfile.GNUTYPE_SPARSE, "sparse file")):
        header = tarfile.TarInfo("b.jpg")
        header.type, header.linkname = kind, "a.jpg"
        stream = io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        with pytest.raises(DamagedTarError, match=f"b.jpg is a {what}: write it with tar --dereference --hard-der"):
            list(read_members(stream, lambda name: name.endswith(".jpg")))
        stream.seek(0)
        assert list(read_members(stream, lambda name: False)) == []
