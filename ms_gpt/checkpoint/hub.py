"""Names of models turned into local folders: a path as it is, a name on the Hugging Face hub as a download."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ms_gpt.checkpoint.errors import CheckpointError, one_line, some
from ms_gpt.checkpoint.files import (
    CONFIG_FILE,
    GENERATION_FILE,
    HPARAMS_FILE,
    INDEX_SUFFIX,
    MODEL_FILES,
    OPENAI_TOKENIZER,
    TOKENIZER_FILES,
    read_json,
)

SMALL_FILES = (CONFIG_FILE, HPARAMS_FILE, GENERATION_FILE, *TOKENIZER_FILES, *OPENAI_TOKENIZER)
# The first that a repository has is fetched, and no other.
WEIGHTS = (*MODEL_FILES, "mindspore_model.ckpt")
# What ends so was meant as a file, however much it looks like a name.
FILE_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".mindir", ".npz", ".npy", ".pkl", ".h5", ".onnx", ".msgpack",
    ".json", ".index", ".txt", ".gz", ".tar", ".zip",
)
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_PART}(?:/{_PART})?)(?:@({_PART}(?:/{_PART})*))?")
_LONGEST_NAME = 96


@dataclass(frozen=True)
class HubName:
    """The name of a model on the hub.

    Args:
        given: What was typed.
        repo_id: ``"model"`` or ``"owner/model"``.
        revision: A branch, a tag or a commit.
    """

    given: str
    repo_id: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """Read ``"model"``, ``"owner/model"`` or either with ``"@revision"``; ``None`` for what can be no such name."""
        match = _NAME.fullmatch(text)
        # The hub forbids the rest of these; ".." in a revision would also leave the cache's folder.
        if match is None or ".." in text or "--" in match[1] or match[1].endswith(".git"):
            return None
        if len(match[1]) > _LONGEST_NAME or match[1].lower().endswith(FILE_SUFFIXES):
            return None
        return cls(text, match[1], match[2] or "main")


def resolve(name_or_path: str | Path) -> Path:
    """Return the path of a model: what exists here as it is, a name on the hub as the folder of its download.

    Of a repository the configuration, the tokenizer and one form of the weights are fetched: safetensors, else
    ``pytorch_model.bin``, else a single ``.ckpt``. The environment variables of ``huggingface_hub`` hold, among them
    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``. Where the hub cannot be reached, a whole copy in
    its cache is used.

    Args:
        name_or_path: A path, or ``"model"`` or ``"owner/model"`` on the hub, with ``"@revision"`` if it should not be
            the newest. A ``Path``, and a text that can be no name on the hub, is returned unchanged, whether or not it
            exists.

    Returns:
        A path to open.

    Raises:
        CheckpointError: Nothing of that name is here, and on the hub it does not exist, is not open to the user, has
            no weights that can be read, or cannot be fetched.
    """
    if not isinstance(name_or_path, str):
        return Path(name_or_path)
    if not name_or_path:
        raise CheckpointError("'' is neither a path nor the name of a model: give one")
    for path in (Path(name_or_path), Path(os.path.expanduser(name_or_path))):
        if not _is_absent(path):
            return path
    name = HubName.parse(name_or_path)
    return Path(name_or_path) if name is None else _fetch(name)


def _is_absent(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        # Something is in the way (no permission, a file as a parent): whoever opens the path says what.
        return False
    return False


def _fetch(name: HubName) -> Path:
    with _quiet():
        try:
            return _download(name)
        except CheckpointError:
            raise
        # Which exceptions a dead network raises depends on the version of huggingface_hub and its HTTP library.
        except Exception as error:
            cause = _unwrap(error)
        _raise_if_refused(name, cause)
        folder = _cached(name)
        if folder is None:
            _raise_unreachable(name, cause)
        return folder


def _unwrap(error: Exception) -> BaseException:
    from huggingface_hub.utils import LocalEntryNotFoundError

    # The hub's answer about one file, reported as if the matter were that the file is not in the cache.
    return error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error


def _download(name: HubName) -> Path:
    # Imported late: most paths are local.
    from huggingface_hub import HfApi, constants, hf_hub_download

    # Not snapshot_download: it lists the repository without a timeout, and in any order that the files arrive.
    info = HfApi().model_info(name.repo_id, revision=name.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    listing = [item.rfilename for item in info.siblings or () if item.rfilename.isprintable()]
    weights = _weights_in(listing)
    if weights is None:
        _fail(name, f"the model of that name on {constants.ENDPOINT} has no weights that can be read (one of "
                    f"{', '.join(WEIGHTS)}, or a single .ckpt); found: {some(sorted(listing), shown=8) or 'nothing'}")

    def download(file: str, revision: str) -> Path:
        return Path(hf_hub_download(name.repo_id, file, revision=revision))

    # In this order, an interrupted download lacks weights, whatever else it has.
    for file in SMALL_FILES:
        if file in listing:
            download(file, info.sha)
    if weights.endswith(INDEX_SUFFIX):
        for shard in sorted(_shards(name, download(weights, info.sha), listing)):
            download(shard, info.sha)
    # The cache ties a revision to a commit when a file is asked for by the revision: last, so that until now a
    # whole copy of an older commit was what the cache would give.
    folder = download(weights, name.revision).parent
    if folder.name != info.sha:
        _fail(name, f"the model of that name on {constants.ENDPOINT} changed while it was fetched: try again")
    return folder


def _weights_in(files: Collection[str]) -> str | None:
    known = next((file for file in WEIGHTS if file in files), None)
    others = [file for file in files if file.endswith(".ckpt") and "/" not in file]
    return others[0] if known is None and len(others) == 1 else known


def _shards(name: HubName, index: Path, files: Collection[str]) -> set[str]:
    """Return the shards that an index names; all of them are among ``files`` and stand in the folder itself."""
    try:
        shards = set(read_json(index)["weight_map"].values())
    except (CheckpointError, LookupError, TypeError, AttributeError):
        shards = set()
    if not shards:
        _fail(name, f"{index.name} of the model of that name names no shards")
    lacking = [shard for shard in shards if shard not in files or "/" in shard]
    if lacking:
        _fail(name, f"the model of that name lacks {some(sorted(map(repr, lacking)))}, which its {index.name} names")
    return shards


def _cached(name: HubName) -> Path | None:
    """Return the folder of a whole copy in the cache, or ``None``."""
    from huggingface_hub import snapshot_download

    try:
        # Some versions hold the cache against a list of all files: config.json alone keeps them from that.
        folder = Path(snapshot_download(name.repo_id, revision=name.revision, local_files_only=True,
                                        allow_patterns=SMALL_FILES[0]))
        files = {item.name for item in folder.iterdir() if item.is_file()}
        weights = _weights_in(files)
        if weights is not None and weights.endswith(INDEX_SUFFIX):
            _shards(name, folder / weights, files)
    except (OSError, CheckpointError):
        return None
    return folder if weights is not None else None


def _raise_if_refused(name: HubName, error: BaseException) -> None:
    """Raise if the hub has answered, and the answer is no."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = _status(error)
    if isinstance(error, GatedRepoError) or status == 403:
        _fail(name, f"{constants.ENDPOINT}/{name.repo_id} is not open to you: ask for access there, then set HF_TOKEN "
                    "to a token of yours")
    if isinstance(error, RevisionNotFoundError):
        _fail(name, f"{name.repo_id!r} on {constants.ENDPOINT} has no revision {name.revision!r}: correct what follows "
                    "the @")
    if isinstance(error, RepositoryNotFoundError) or (
        status in (401, 404) and not isinstance(error, EntryNotFoundError)
    ):
        _fail(name, f"{constants.ENDPOINT} has no model of that name that you may read: correct the path or the name; "
                    "for a private model set HF_TOKEN to a valid token")


def _raise_unreachable(name: HubName, error: BaseException) -> NoReturn:
    from huggingface_hub import constants
    from huggingface_hub.utils import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        _fail(name, f"HF_HUB_OFFLINE is set while {constants.HF_HUB_CACHE} has no whole copy of a model of that name: "
                    "correct the path, or unset HF_HUB_OFFLINE")
    network = isinstance(error, (ConnectionError, TimeoutError))
    if isinstance(error, OSError) and error.errno is not None and not network:
        _fail(name, f"what is fetched from {constants.ENDPOINT} cannot be kept in {constants.HF_HUB_CACHE} "
                    f"({one_line(error)}): make room there, or name another folder by HF_HOME")
    _fail(name, f"{constants.ENDPOINT} cannot be reached ({_reason(error)}): correct the path, try again later, or "
                "download the model elsewhere and give its path; HF_ENDPOINT names a mirror")


def _fail(name: HubName, why: str) -> NoReturn:
    # A mistyped path is the likeliest cause of all, so that comes first.
    raise CheckpointError(f"{name.given!r} is not a file or folder here, and {why}") from None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: BaseException) -> str:
    """Return the innermost cause in a few words; HTTP libraries wrap "Connection refused" in three lines."""
    # Chains can be cyclic, hence the bound.
    for _ in range(20):
        inner = error.__cause__ or error.__context__
        if _status(error) is not None or inner is None:
            break
        error = inner
    status = _status(error)
    return one_line(error, limit=100) or type(error).__name__ if status is None else f"HTTP {status}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub's warnings to itself, unless the user has set how much it says."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
