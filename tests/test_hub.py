"""Names of models: paths stay paths, and names on the hub become folders, against a server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from checkpoint_helpers import ROOT, assert_one_line, assert_same, make_folder, on_disk
from hypothesis import given
from hypothesis import strategies as st

from ms_gpt import checkpoint
from ms_gpt.checkpoint import hub

COMMIT, LATER = "a" * 40, "b" * 40
REPO = "someone/tiny-gpt"
# In a process of its own: huggingface_hub reads its environment when it is imported.
RUN = """
import sys
from ms_gpt.checkpoint.hub import resolve
from ms_gpt.errors import UserError
try:
    print(resolve(sys.argv[1]))
except UserError as error:
    sys.exit(str(error))
"""


class Hub:
    """What of the hub's interface a download uses, over HTTP on 127.0.0.1.

    Args:
        files: File name to content.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.commits = {COMMIT: files}
        self.revisions = {"main": COMMIT}
        self.requests: list[tuple[str, str]] = []
        # Path to (status, X-Error-Code), answered instead of what is there.
        self.refused: dict[str, tuple[int, str]] = {}
        # A path that answers with half of what it promises, and then waits.
        self.stuck: str | None = None
        self.is_stuck, self.release = threading.Event(), threading.Event()

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        return {path.split("/", 5)[5] for method, path in self.requests if method == "GET" and "/resolve/" in path}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        # A slash inside a revision arrives as %2F, and comes back only after the path is split.
        path = urlsplit(handler.path).path
        self.requests.append((handler.command, path))
        status, headers, body = self.look_up(path)
        handler.send_response(status)
        handler.send_header("X-HF-Warning", "login; what strangers are told, and nobody needs to see")
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET" and path == self.stuck:
            handler.wfile.write(body[: len(body) // 2])
            self.is_stuck.set()
            self.release.wait(60)
        elif handler.command == "GET":
            handler.wfile.write(body)

    def look_up(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path in self.refused:
            status, code = self.refused[path]
            return status, {"X-Error-Code": code, "Content-Length": "0"}, b""
        if path.startswith(f"/api/models/{REPO}/revision/"):
            commit = self.commit_of(path.split("/revision/")[1])
            if commit is None:
                return 404, {"X-Error-Code": "RevisionNotFound", "Content-Length": "0"}, b""
            siblings = [{"rfilename": name} for name in self.commits[commit]]
            counts = {"private": False, "downloads": 0, "likes": 0, "tags": []}
            body = json.dumps({"id": REPO, "sha": commit, "siblings": siblings, **counts}).encode()
            return 200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body
        if path.startswith(f"/{REPO}/resolve/"):
            revision, name = path.removeprefix(f"/{REPO}/resolve/").split("/", 1)
            commit = self.commit_of(revision)
            body = self.commits[commit][name]
            etag = hashlib.sha256(body).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Length": str(len(body))}, body
        # The hub does not tell a stranger whether a private repository exists.
        return 401, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"}, b""

    def commit_of(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.revisions.get(unquote(revision))


@pytest.fixture
def model(tmp_path) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """The files of a small model, tokenizer and all, and its arrays under their names on disk."""
    config, arrays = make_folder(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    files |= {"vocab.json": b'{"a": 0}', "merges.txt": b"#version: 0.2\n", "tokenizer_config.json": b"{}"}
    return files, on_disk(config, arrays)


@pytest.fixture
def server(model):
    """A hub with one model, stopped at the end of the test."""
    state = Hub(model[0])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    state.url = f"http://127.0.0.1:{web.server_port}"
    yield state
    state.release.set()
    web.shutdown()
    web.server_close()


@pytest.fixture
def ask(server, tmp_path):
    """Resolve a name in a new process with an empty cache; give its exit status and what it said, one line."""
    foreign = ("HF_", "HUGGING", "TRANSFORMERS_", "TQDM_")
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(foreign) and not name.lower().endswith("_proxy")}
    kept |= {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": server.url, "PYTHONPATH": str(ROOT),
             "HF_HUB_DISABLE_TELEMETRY": "1"}
    (tmp_path / "empty").mkdir()

    def start(name: str = REPO, **changes: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", RUN, name], cwd=tmp_path / "empty", env={**kept, **changes},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(name: str = REPO, **changes: str) -> tuple[int, str]:
        with start(name, **changes) as process:
            try:
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        said, silent = (err, out) if process.returncode else (out, err)
        assert silent == ""
        assert said.count("\n") == 1, said
        return process.returncode, said.strip()

    run.start = start
    return run


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def content(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def in_shards(files: dict[str, bytes], arrays: dict[str, np.ndarray], folder: Path) -> dict[str, bytes]:
    """The same model with its weights in two files and an index."""
    names = sorted(arrays)
    parts = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for file, chosen in parts.items():
        checkpoint.write_safetensors(folder / file, {name: arrays[name] for name in chosen})
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    files = {name: data for name, data in files.items() if name != "model.safetensors"}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files | {file: (folder / file).read_bytes() for file in parts}


@pytest.mark.parametrize("text", [
    "./gpt2", "../gpt2", "/gpt2", "~/gpt2-that-is-not-there", "a/b/c", "gpt2/", "/", "gpt2.ckpt", "gpt2.pth",
    "runs/best.safetensors", "model.safetensors.index.json", "weights.BIN", "gpt 2", "gpt2\n", "größe", "C:\\gpt2",
    "a--b", "a..b", "-gpt2", "gpt2.", "gpt2@", "gpt2@../../x", "gpt2@/x", "a@b@c", "repo.git", "x" * 97, "a\0b",
    "@main", "a//b", "x" * 5000,
])
def test_what_can_be_no_name_stays_a_path(text, monkeypatch):
    monkeypatch.setattr(hub, "_fetch", lambda name: pytest.fail("asked the hub"))
    assert hub.resolve(text) == Path(text)


@pytest.mark.parametrize(("text", "repo_id", "revision"), [
    ("gpt2", "gpt2", "main"),
    ("openai-community/openai-gpt", "openai-community/openai-gpt", "main"),
    ("gpt2@v1.0", "gpt2", "v1.0"),
    ("a/b_c.d@refs/pr/1", "a/b_c.d", "refs/pr/1"),
])
def test_names_are_read(text, repo_id, revision):
    assert hub.HubName.parse(text) == hub.HubName(text, repo_id, revision)


@given(st.one_of(st.from_regex(hub._NAME, fullmatch=True), st.text("ab9_-./@", max_size=100)))
def test_names_satisfy_the_rule_of_the_hub_and_stay_in_the_cache(text):
    from huggingface_hub.utils import validate_repo_id

    name = hub.HubName.parse(text)
    if name is not None:
        validate_repo_id(name.repo_id)
        assert os.path.normpath(f"/refs/{name.revision}") == f"/refs/{name.revision}"


def test_what_exists_is_never_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_fetch", lambda name: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    Path("broken").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    for text in ("folder", "file", "broken", "loop", "loop/model", "file/model", "."):
        assert hub.resolve(text) == Path(text)
    assert hub.resolve(Path("gpt2")) == Path("gpt2")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/folder") == tmp_path / "folder"


def test_an_empty_name_is_refused():
    with pytest.raises(checkpoint.CheckpointError) as error:
        hub.resolve("")
    assert_one_line(error, "''", "neither a path nor the name")


def test_a_model_is_fetched_as_it_is_served(server, ask, model):
    files, arrays = model
    server.commits[COMMIT] = files | {
        "pytorch_model.bin": b"no", "tf_model.h5": b"no", "flax_model.msgpack": b"no", "rust_model.ot": b"no",
        "64.tflite": b"no", "README.md": b"no", "other.ckpt": b"no", "onnx/model.onnx": b"no",
        "onnx/config.json": b"no",
    }
    code, folder = ask()
    assert code == 0
    assert content(folder) == files
    assert server.fetched() == set(files)
    assert not any("xet" in path for _, path in server.requests)
    config, tensors = checkpoint.read_folder(folder)
    assert config.n_layer == 2
    assert_same(tensors, arrays)


def test_a_second_call_downloads_nothing(server, ask):
    first = ask()
    server.requests.clear()
    assert ask() == first
    assert server.fetched() == set()


def test_shards_are_fetched_with_their_index(server, ask, model, tmp_path):
    files = in_shards(*model, tmp_path)
    server.commits[COMMIT] = files | {"pytorch_model.bin": b"no", "model-00003-of-00003.safetensors": b"no"}
    code, folder = ask()
    assert code == 0
    assert content(folder) == files
    assert_same(checkpoint.read_folder(folder)[1], model[1])


@pytest.mark.parametrize(("weights", "chosen"), [
    (["pytorch_model.bin", "tf_model.h5", "x.ckpt"], {"pytorch_model.bin"}),
    (["mindspore_model.ckpt", "x.ckpt", "flax_model.msgpack"], {"mindspore_model.ckpt"}),
    (["x.ckpt", "old/y.ckpt"], {"x.ckpt"}),
    (["pytorch_model.bin.index.json", "pytorch_model-1.bin", "x.ckpt"],
     {"pytorch_model.bin.index.json", "pytorch_model-1.bin"}),
])
def test_one_form_of_the_weights_is_fetched(weights, chosen, server, ask):
    index = json.dumps({"weight_map": {"wte.weight": "pytorch_model-1.bin"}}).encode()
    served = {name: index if name.endswith(".index.json") else name.encode() for name in weights}
    server.commits[COMMIT] = {"config.json": b"{}", **served}
    code, folder = ask()
    assert code == 0
    assert content(folder).keys() == {"config.json"} | chosen
    assert server.fetched() == {"config.json"} | chosen


@pytest.mark.parametrize("weights", [[], ["tf_model.h5"], ["a.ckpt", "b.ckpt"], ["checkpoint-5/model.safetensors"]])
def test_a_repository_without_weights_says_what_is_there(weights, server, ask):
    server.commits[COMMIT] = {"config.json": b"{}", **dict.fromkeys(weights, b"?")}
    code, said = ask()
    assert code == 1
    assert said.startswith(f"'{REPO}' is not a file or folder here, and the model of that name on {server.url} has no ")
    assert said.endswith("found: " + ", ".join(sorted(["config.json", *weights])))
    assert server.fetched() == set()


@pytest.mark.parametrize("index", [
    b"[" * 100_000, b"\xff", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": ["b"]}}',
    b'{"weight_map": {"a": "../../../config.json"}}', b'{"weight_map": {"a": "gone\\n.safetensors", "b": 1}}',
    b'{"weight_map": {"a": "sub/part.safetensors"}}',
])
def test_a_bad_index_is_one_line(index, server, ask, tmp_path):
    server.commits[COMMIT] = {"model.safetensors.index.json": index, "sub/part.safetensors": b"?"}
    code, said = ask()
    assert code == 1
    assert "model.safetensors.index.json" in said
    assert server.fetched() == {"model.safetensors.index.json"}


@pytest.mark.parametrize(("path", "status", "header", "parts"), [
    (f"/api/models/{REPO}/revision/main", 401, "RepoNotFound", ["no model of that name", "HF_TOKEN"]),
    (f"/api/models/{REPO}/revision/main", 401, "", ["no model of that name", "HF_TOKEN"]),
    (f"/api/models/{REPO}/revision/main", 404, "RepoNotFound", ["no model of that name", "HF_TOKEN"]),
    (f"/api/models/{REPO}/revision/main", 404, "", ["no model of that name", "HF_TOKEN"]),
    (f"/api/models/{REPO}/revision/main", 403, "", [f"/{REPO} is not open to you", "HF_TOKEN"]),
    (f"/api/models/{REPO}/revision/main", 500, "", ["cannot be reached (HTTP 500)", "HF_ENDPOINT"]),
    (f"/{REPO}/resolve/{COMMIT}/config.json", 403, "GatedRepo", [f"/{REPO} is not open to you", "HF_TOKEN"]),
    (f"/{REPO}/resolve/{COMMIT}/config.json", 401, "GatedRepo", [f"/{REPO} is not open to you", "HF_TOKEN"]),
    (f"/{REPO}/resolve/{COMMIT}/config.json", 403, "", [f"/{REPO} is not open to you", "HF_TOKEN"]),
    (f"/{REPO}/resolve/{COMMIT}/vocab.json", 404, "EntryNotFound", ["cannot be reached (HTTP 404)"]),
])
def test_a_refusal_is_one_line(path, status, header, parts, server, ask):
    server.refused[path] = (status, header)
    code, said = ask()
    assert code == 1
    assert said.startswith(f"'{REPO}' is not a file or folder here, and ")
    assert all(part in said for part in [*parts, server.url]), said


def test_revisions(server, ask, model):
    server.commits[LATER] = model[0] | {"config.json": model[0]["config.json"] + b"\n"}
    server.revisions["refs/pr/1"] = LATER
    assert content(ask(f"{REPO}@refs/pr/1")[1]) == server.commits[LATER]
    assert content(ask(f"{REPO}@{COMMIT}")[1]) == server.commits[COMMIT]
    code, said = ask(f"{REPO}@v9")
    assert code == 1
    assert said.startswith(f"'{REPO}@v9' is not a file or folder here")
    assert "has no revision 'v9'" in said


def test_a_branch_that_moves_meanwhile_is_noticed(server, ask, model):
    server.commits[LATER] = model[0] | {"model.safetensors": b"other"}
    server.revisions["main"] = LATER
    listing = server.look_up(f"/api/models/{REPO}/revision/main")
    original = server.look_up
    server.revisions["main"] = COMMIT
    server.look_up = lambda path: listing if path.startswith("/api/models/") else original(path)
    code, said = ask()
    assert code == 1
    assert "changed while it was fetched: try again" in said


def test_the_cache_stands_in_for_the_hub(server, ask):
    code, folder = ask()
    assert code == 0
    asked = len(server.requests)
    assert ask(HF_ENDPOINT=closed_port()) == (0, folder)
    assert ask(HF_HUB_OFFLINE="1") == (0, folder)
    assert len(server.requests) == asked
    server.refused[f"/api/models/{REPO}/revision/main"] = (503, "")
    assert ask() == (0, folder)


def test_without_hub_and_cache_one_line_says_what_to_do(server, ask, tmp_path):
    endpoint = closed_port()
    code, said = ask("gpt2", HF_ENDPOINT=endpoint)
    assert code == 1
    assert said.startswith("'gpt2' is not a file or folder here, and ")
    assert f"{endpoint} cannot be reached (Connection refused)" in said
    assert "HF_ENDPOINT names a mirror" in said
    code, said = ask("gpt2", HF_HUB_OFFLINE="1")
    assert code == 1
    assert said.startswith("'gpt2' is not a file or folder here, and HF_HUB_OFFLINE is set")
    assert server.requests == []


def test_a_server_that_is_no_hub_is_one_line(server, ask):
    server.look_up = lambda path: (200, {"Content-Length": "6"}, b"<html>")
    code, said = ask()
    assert code == 1
    assert "cannot be reached" in said


def test_a_hub_that_does_not_answer_is_given_up(server, ask):
    server.stuck = f"/api/models/{REPO}/revision/main"
    code, said = ask(HF_HUB_ETAG_TIMEOUT="1")
    assert code == 1
    assert "cannot be reached" in said
    assert "timed out" in said


def test_a_cache_that_cannot_be_written_is_one_line(server, ask, tmp_path):
    (tmp_path / "file").touch()
    code, said = ask(HF_HOME=str(tmp_path / "file"))
    assert code == 1
    assert f"cannot be kept in {tmp_path / 'file'}" in said
    assert "HF_HOME" in said


def interrupt(server, ask, path: str) -> None:
    """Kill a download in the middle of a file."""
    server.stuck = path
    with ask.start() as process:
        try:
            assert server.is_stuck.wait(60)
        finally:
            process.kill()
    server.stuck = None
    server.release.set()


@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "shards"])
def test_an_interrupted_download_is_not_taken_for_a_model(sharded, server, ask, model, tmp_path):
    files = in_shards(*model, tmp_path) if sharded else model[0]
    server.commits[COMMIT] = files
    # The weights of one file are asked for by the branch, the last shard by the commit.
    last = f"{COMMIT}/model-00002-of-00002.safetensors" if sharded else "main/model.safetensors"
    interrupt(server, ask, f"/{REPO}/resolve/{last}")
    code, said = ask(HF_HUB_OFFLINE="1")
    assert code == 1
    assert "no whole copy" in said
    code, folder = ask()
    assert code == 0
    assert content(folder) == files


def test_an_interrupted_update_leaves_the_old_copy(server, ask, model):
    _, old = ask()
    server.commits[LATER] = {**model[0], "config.json": b"{ }", "vocab.json": b"{  }"}
    server.revisions["main"] = LATER
    interrupt(server, ask, f"/{REPO}/resolve/{LATER}/vocab.json")
    assert ask(HF_HUB_OFFLINE="1") == (0, old)
    assert content(old) == model[0]
    code, new = ask()
    assert code == 0
    assert content(new) == server.commits[LATER]


@pytest.mark.parametrize("lost", ["model.safetensors.index.json", "model-00001-of-00002.safetensors"])
def test_a_cache_that_lost_a_file_is_not_taken_for_a_model(lost, server, ask, model, tmp_path):
    server.commits[COMMIT] = in_shards(*model, tmp_path)
    _, folder = ask()
    (Path(folder) / lost).resolve().unlink()
    assert ask(HF_HUB_OFFLINE="1")[0] == 1
    assert ask() == (0, folder)
    assert content(folder) == server.commits[COMMIT]
