"""Downloads: kept once, resumed, checked, and never written outside their folder."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from ms_gpt.data import download, load_dataset
from ms_gpt.errors import UserError


def refuses(*words: str):
    """Expect a UserError of one line that holds the words in this order."""
    return pytest.raises(UserError, match=r"\A(?=[^\n]*\Z).*" + ".*".join(words))


def make_tar(files: dict[str, str], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return buffer.getvalue()


IMDB_FILES = {
    f"aclImdb/{part}/{name}/{index}_9.txt": f"{part} {name} {index} " + "word " * 500
    for part in ("train", "test")
    for name in ("pos", "neg", "unsup")
    for index in range(2)
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A web server that knows ranges; ``body`` is what it serves, ``cut`` where it hangs up."""
    state = SimpleNamespace(body=make_tar(IMDB_FILES, "aclImdb/train/pos/9_9.txt"), cut=None, ranges=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if start >= len(state.body):
                self.send_error(416)
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(state.body) - start))
            self.end_headers()
            self.wfile.write(state.body[start : state.cut])

        def log_message(self, *args: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("MS_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state.url = f"http://127.0.0.1:{web.server_port}/aclImdb_v1.tar.gz"
    archive = download.ARCHIVES["imdb"]
    serve(monkeypatch, download.Archive(archive.title, state.url, md5(state.body), archive.folder, archive.wanted))
    yield state
    web.shutdown()
    web.server_close()


def serve(monkeypatch, archive: download.Archive) -> None:
    monkeypatch.setitem(download.ARCHIVES, "imdb", archive)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_imdb_is_downloaded_once_and_kept(server, tmp_path):
    seen = []
    parts = load_dataset("imdb", progress=lambda done, total: seen.append((done, total)))
    assert {name: part["label"] for name, part in parts.items()} == {"train": [0, 0, 1, 1], "test": [0, 0, 1, 1]}
    assert seen[-1] == (len(server.body), len(server.body))
    assert load_dataset("imdb")["train"][:] == parts["train"][:]
    assert len(server.ranges) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["aclImdb"]
    assert not (tmp_path / "cache" / "aclImdb" / "train" / "unsup").exists()
    assert not (tmp_path / "cache" / "aclImdb" / "train" / "pos" / "9_9.txt").exists()


def test_a_broken_download_goes_on_where_it_stopped(server):
    server.cut = 300
    with refuses("broke off at 300 of", "run again"):
        load_dataset("imdb")
    server.cut = None
    assert len(load_dataset("imdb")["train"]) == 4
    assert server.ranges == [None, "bytes=300-"]


def test_a_part_that_is_too_long_is_fetched_anew(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "aclImdb_v1.tar.gz.part").write_bytes(bytes(len(server.body) + 1))
    assert len(load_dataset("imdb")["train"]) == 4
    assert server.ranges[1] is None


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server, tmp_path):
    server.body = b"x" * len(server.body)
    with refuses("MD5", "instead of"):
        load_dataset("imdb")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("MS_GPT_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    archive = download.ARCHIVES["imdb"]
    serve(monkeypatch, download.Archive("IMDB", "http://127.0.0.1:9/x.tar.gz", "0", archive.folder, archive.wanted))
    with refuses("cannot download IMDB", "check the network", "aclImdb"):
        load_dataset("imdb")


@pytest.mark.parametrize("name", ["../escaped.txt", "/tmp/../escaped.txt", "data/../../escaped.txt", "other/x.txt"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, name, kind):
    packed = tmp_path / f"x.{kind}"
    if kind == "tar":
        packed.write_bytes(make_tar({"data/a.txt": "fine", name: "evil"}))
    else:
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("data/a.txt", "fine")
            archive.writestr(name, "evil")
    (tmp_path / "out").mkdir()
    with refuses("leads out of its folder"):
        download.unpack(packed, tmp_path / "out" / "data", "data", ".*")
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "escaped.txt").exists()


def test_zip_unpacks_the_wanted_files_only(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("train", "dev", "test"):
            archive.writestr(f"SST-2/{name}.tsv", "sentence\tlabel\nfine \t1\n" if name != "test" else "index\n")
    target = tmp_path / "SST-2"
    download.unpack(tmp_path / "x.zip", target, "SST-2", download.ARCHIVES["sst2"].wanted)
    assert {name: part[0] for name, part in load_dataset(target).items()} == {
        name: {"text": "fine ", "label": 1} for name in ("train", "validation")
    }
