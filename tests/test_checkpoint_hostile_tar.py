"""Hostile packed folders: nothing leaves the archive, nothing grows beyond its limit, nothing stays behind."""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest
from checkpoint_helpers import make_folder
from hostile_helpers import Prison, assert_refused, deflated

from ms_gpt import checkpoint
from ms_gpt.checkpoint import tarball
from ms_gpt.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as on Linux")


@pytest.fixture(scope="module")
def prison():
    prison = Prison()
    yield prison
    prison.close()


@pytest.fixture
def refused(prison, tmp_path):
    """A function that asserts that an archive can be neither opened nor converted."""

    def check(path, *reasons):
        assert_refused([prison(path), prison(path, "convert", tmp_path / "out")], *reasons)
        assert not (tmp_path / "out").exists()

    return check


@pytest.fixture
def hf(tmp_path):
    """A sound folder."""
    make_folder(tmp_path / "hf")
    return tmp_path / "hf"


def member(name="hf/a", kind=tarfile.REGTYPE, size=0, link="", pax=None):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.pax_headers = kind, size, link, pax or {}
    return info


def packed(members, tail=b"", form=tarfile.PAX_FORMAT):
    content = b""
    for info, data in members:
        content += info.tobuf(form) + data + bytes(-len(data) % 512)
    return content + tail


def write_tar(path, content):
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


class TestTar:
    @pytest.mark.parametrize("packing", ["a.tar", "a.tar.gz"])
    @pytest.mark.parametrize(("name", "content"), {
        "leaves upwards": packed([(member("../canary"), b"")]),
        "leaves from within": packed([(member("hf/../../canary"), b"")]),
        "absolute": packed([(member("/tmp/canary"), b"")]),
        "backslashes": packed([(member("..\\canary"), b"")]),
        "a name with NUL": packed([(member("x", pax={"path": "hf/a\0b"}), b"")]),
        "a name of control characters": packed([(member("../\n\x1b[2J"), b"")]),
        "a long name": packed([(member("hf/" + "a" * 300), b"")]),
        "a very long name": packed([(member("hf/" + "a/" * 100_000), b"")]),
        "a file as a folder": packed([(member("a", size=1), b"a"), (member("a/b", size=1), b"b")]),
        "a file twice": packed([(member(size=1), b"a"), (member(size=1), b"b")]),
        "no name": packed([(member("."), b"")]),
        "symlink": packed([(member("hf/config.json", tarfile.SYMTYPE, link="/etc/passwd"), b"")]),
        "symlink to a folder": packed([(member("hf", tarfile.SYMTYPE, link="/tmp"), b""), (member("hf/canary"), b"")]),
        "hard link": packed([(member("hf/config.json", tarfile.LNKTYPE, link="/etc/passwd"), b"")]),
        "device": packed([(member("hf/model.safetensors", tarfile.CHRTYPE), b"")]),
        "pipe": packed([(member("hf/model.safetensors", tarfile.FIFOTYPE), b"")]),
        "unknown kind": packed([(member(kind=b"Z", size=2**40), b"")]),
        "folder with a size": packed([(member("hf", tarfile.DIRTYPE, 2**40), b"")]),
        "larger than the archive": packed([(member(size=2**33), b"a")]),
        "size in pax": packed([(member(size=1, pax={"size": str(2**60)}), b"a")]),
        "negative size in pax": packed([(member(size=1, pax={"size": "-512"}), b"a")]),
        "size in pax that is none": packed([(member(size=1, pax={"size": "9" * 5000}), b"a")]),
        "sparse of the old kind": packed([(member(kind=tarfile.GNUTYPE_SPARSE, size=0), b"")], form=tarfile.GNU_FORMAT),
        "sparse": packed([(member(size=8, pax={"GNU.sparse.map": "0,1", "GNU.sparse.size": f"{2**50}"}), bytes(8))]),
        "sparse 1.0": packed([(member(size=512, pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                                                  "GNU.sparse.realsize": str(2**50)}), b"0\n".ljust(512, b"\0"))]),
        "pax without records": packed([(member("x", tarfile.XHDTYPE, 3_000_000), b"1" * 3_000_000)]),
        "pax of short records": packed([(member("x", tarfile.XHDTYPE, 30_000), b"2 " * 14_999 + b"=\n")]),
        "pax of an empty record": packed([(member("x", tarfile.XHDTYPE, 10), b"0 path=a\n ")]),
        "pax for all": packed([(member("x", tarfile.XGLTYPE, 2**33), b"")]),
        "pax after pax": packed([(member("x", tarfile.XHDTYPE, 512), b"11 path=hf\n".ljust(512, b"\0"))] * 3000),
        "long name after long name": packed([(member("x", tarfile.GNUTYPE_LONGNAME, 512), bytes(512))] * 3000),
        "a long name of 1 GB": packed([(member("x", tarfile.GNUTYPE_LONGNAME, 2**30), b"")]),
        "many members": packed([(member(f"hf/{number}"), b"") for number in range(2000)]),
        "many folders": packed([(member(f"{number}", tarfile.DIRTYPE), b"") for number in range(20_000)]),
        "nothing": packed([], bytes(1024)),
        "only a folder": packed([(member("hf", tarfile.DIRTYPE), b"")], bytes(1024)),
        "rubbish": b"rubbish ".ljust(257, b"x") + b"ustar" + b"x" * 10_000,
        "two folders": packed([(member("a/x"), b""), (member("b/x"), b"")]),
    }.items())
    def test_members(self, tmp_path, refused, packing, name, content):
        refused(write_tar(tmp_path / packing, content))
        assert not (tmp_path / "canary").exists()
        assert not Path("/tmp/canary").exists()

    def test_bomb(self, tmp_path, refused):
        """10 GB of zeros in 10 MB."""
        head = member("hf/model.safetensors", size=10 * 2**30).tobuf()
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"")[:10] + deflated(head) + deflated(bytes(2**24)) * 640)
        assert (tmp_path / "a.tar.gz").stat().st_size < 2**24
        refused(tmp_path / "a.tar.gz", "bomb")

    @pytest.mark.parametrize(("name", "content"), {
        "a name in the header without end": b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 50_000_000,
        "many empty members": gzip.compress(b"") * 500_000,
        "rubbish": b"\x1f\x8b" + b"x" * 1000,
        "cut short": gzip.compress(packed([(member(size=10**6), os.urandom(10**6))]))[:-1000],
        "damaged": gzip.compress(packed([(member(size=10**6), bytes(10**6))])).replace(b"\0\0", b"\1\0"),
    }.items())
    def test_gzip(self, tmp_path, refused, name, content):
        (tmp_path / "a.tar.gz").write_bytes(content)
        refused(tmp_path / "a.tar.gz")

    def test_nothing_stays_behind(self, hf, tmp_path, monkeypatch):
        (tmp_path / "tmp").mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(hf, "hf")
        opened = checkpoint.open_checkpoint(tmp_path / "a.tar")
        assert os.listdir(tmp_path / "tmp")
        assert len(opened.tensors)
        del opened
        with pytest.raises(UserError):
            checkpoint.open_checkpoint(write_tar(tmp_path / "b.tar", packed([(member("../a"), b"")])))
        assert not os.listdir(tmp_path / "tmp")

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    @pytest.mark.parametrize("packing", ["a.tar", "a.tar.gz"])
    def test_what_tar_writes_is_read(self, hf, tmp_path, form, packing):
        inside = "hf" if form == tarfile.USTAR_FORMAT else "ä" * 60 + "x" * 60
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form, pax_headers={"comment": "ü"}) as archive:
            archive.add(hf, inside)
        folder, holder = tarball.unpack(write_tar(tmp_path / packing, file.getvalue()))
        assert folder.name == inside
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in hf.iterdir()}
        holder.cleanup()
