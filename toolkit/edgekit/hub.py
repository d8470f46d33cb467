"""Downloads from the Hugging Face hub through huggingface_hub: its cache, tokens, mirrors and offline mode are kept as they are."""

import errno
import importlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.checkpoint import MAX_JSON, TensorInfo, header_length, parse_config, parse_header, parse_object, read_config, read_header
from edgekit.errors import CheckpointError, ConfigError, DownloadError, EdgekitError, EngineMissing, ModelNotFound, OutputError, UsageError
from edgekit.fetch import TIMEOUT, beginning, chain, check, fetch, patiently
from edgekit.foreign import BEGINNING, absent_weights, check_beginning
from edgekit.progress import Progress
from edgekit.redact import without_secrets as without_secrets

# Weights, configuration and tokenizer; never pickles or code.
LEGAL = ["LICENSE*", "License*", "license*", "LICENCE*", "NOTICE*", "Notice*", "notice*", "USE_POLICY*"]
WANTED = ["*.safetensors", "*.json", "*.jinja", "README.md", *LEGAL]
TEMPLATES = "additional_chat_templates"
# Other subdirectories hold other formats (onnx/, original/): patterns of every path with a slash that does not begin with that folder's,
# as patterns know no "but". consolidated.* is Mistral's second copy of the weights.
OTHER_FOLDERS = [
    pattern
    for i, letter in enumerate(TEMPLATES + "/")
    for pattern in ([f"{TEMPLATES[:i]}/*"] if i < len(TEMPLATES) else []) + [f"{TEMPLATES[:i]}[!{letter}]*/*"]
]
UNWANTED = [*OTHER_FOLDERS, f"{TEMPLATES}/*/*", f"{TEMPLATES}/*[!a]", "consolidated*", "adapter_*"]
NO_WEIGHTS = "has no safetensors on the hub, and PyTorch pickles are not read. Take a repository that has them, or convert it."
OLDEST = (1, 2)  # of huggingface_hub: reports bytes while a file is under way
COMMIT = re.compile(r"[0-9a-f]{40}")
FIRST = 1 << 18
MAX_ADAPTER = 1 << 20
"""Bytes of a safetensors file that are asked for at first; most headers are shorter."""


@dataclass(frozen=True)
class Outline:
    """A model of the hub without its weights. download: bytes of all files that a build would fetch; sizes: of each but the weights."""

    commit: str
    config: Mapping[str, object]
    tensors: Mapping[str, TensorInfo]
    download: int
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Selection:
    """Which files of a repository, by patterns. missing: what to say where none of them are weights; None takes whatever is there."""

    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]
    missing: str | None


CHECKPOINT = Selection(tuple(WANTED), tuple(UNWANTED), NO_WEIGHTS)


def download(model: str, revision: str | None, *, offline: bool, progress: Progress, select: Selection = CHECKPOINT) -> tuple[Path, str]:
    """The snapshot of ``model`` in the hub's cache, and its commit. What is there already is not downloaded again; a download that
    was broken off goes on where it stopped.

    Raises ModelNotFound (no such model or revision), DownloadError (unreachable, gated, or offline and not in the cache),
    CheckpointError (no safetensors), OutputError (disk full), EngineMissing (no huggingface_hub).
    """
    api = library()
    offline = offline or api.constants.HF_HUB_OFFLINE
    try:
        folder = _cached(api, model, revision, select) if offline else _online(api, model, revision, select, progress)
    except (api.errors.HFValidationError, api.errors.HTTPError, OSError) as error:
        raise _translated(api, error, model, revision, offline) from None
    if not COMMIT.fullmatch(folder.name):
        raise DownloadError(f"{model}: the cache folder {folder} is not named after a commit; edgekit cannot say which revision it is")
    return folder, folder.name


def outline(model: str, revision: str | None) -> Outline:
    """config.json and the headers of the safetensors, by requests for the beginnings of files. Keeps nothing, and takes what is in the
    hub's cache from there. Raises as ``download`` does, and what is said of malformed files in checkpoint.py."""
    api = library()
    try:
        planned = patiently(api, lambda: _plan(api, model, revision, CHECKPOINT))
        commit = next(file.commit_hash for file in planned)
        files = {file.filename: file for file in planned}
        if "config.json" not in files:
            raise ConfigError(f"{model} has no config.json: it is no checkpoint in Hugging Face layout")
        weights = [name for name in files if name.endswith(".safetensors")]
        tensors: dict[str, TensorInfo] = {}
        for name in ["model.safetensors"] if "model.safetensors" in weights else weights:
            tensors |= _header(api, model, commit, files[name])
        config = _config(api, model, commit, files["config.json"])
    except (api.errors.HFValidationError, api.errors.HTTPError, OSError) as error:
        raise _translated(api, error, model, revision, False) from None
    sizes = {name: file.file_size for name, file in files.items() if name not in weights}
    return Outline(commit, config, tensors, sum(file.file_size for file in planned), sizes)


def _config(api: Any, model: str, commit: str, file: Any) -> Mapping[str, object]:
    if not file.will_download:
        return read_config(Path(file.local_path).parent)
    content, size = beginning(api, model, commit, file.filename, MAX_JSON)
    if size > MAX_JSON:
        raise ConfigError(f"config.json of {model}: {size} bytes; at most {MAX_JSON} are accepted")
    return parse_config(content, Path(model, file.filename))


def _header(api: Any, model: str, commit: str, file: Any) -> dict[str, TensorInfo]:
    if not file.will_download:
        return read_header(Path(file.local_path))
    path = Path(model, file.filename)
    content, size = beginning(api, model, commit, file.filename, FIRST)
    check_beginning(path, content[:BEGINNING])
    end = 8 + header_length(content[:8], path, size)
    if end > len(content):
        content, size = beginning(api, model, commit, file.filename, end)
    return parse_header(content[8:end], path, size)


def _cached(api: Any, model: str, revision: str | None, select: Selection) -> Path:
    return Path(api.snapshot_download(model, revision=revision, **_patterns(select), local_files_only=True))


def _patterns(select: Selection) -> dict[str, list[str]]:
    return {"allow_patterns": list(select.wanted), "ignore_patterns": list(select.unwanted)}


def _online(api: Any, model: str, revision: str | None, select: Selection, progress: Progress) -> Path:
    """Every file that the cache lacks is fetched and compared with the hub's digest; then huggingface_hub lays out the snapshot."""
    planned = patiently(api, lambda: _plan(api, model, revision, select))
    fresh = [file.filename for file in planned if file.will_download]
    commit = next((file.commit_hash for file in planned), "")
    # Without symbolic links (Windows, mostly) huggingface_hub would copy what is fetched.
    linked = not fresh or api.file_download.are_symlinks_supported(api.constants.HF_HUB_CACHE)
    if linked:
        fetch(api, model, commit, fresh, progress)
    total = 0 if linked else sum(file.file_size for file in planned if file.will_download)
    folder = Path(
        patiently(
            api,
            lambda: api.snapshot_download(model, revision=revision, **_patterns(select), tqdm_class=_bars(progress, total)),
        )
    )
    if folder.name != commit:
        raise DownloadError(f"{model} was changed on the hub while it was downloaded; run it again")
    if not linked:
        check(api, model, commit, fresh, folder)
        if total:
            progress("download", total, total)
    return folder


def library() -> Any:
    """huggingface_hub, its telemetry switched off. Raises EngineMissing: it is not installed, or too old."""
    # Before the import, which reads it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        api = importlib.import_module("huggingface_hub")
        for part in ("constants", "errors", "file_download", "utils"):
            importlib.import_module(f"huggingface_hub.{part}")
    except ImportError:
        raise EngineMissing('the hub needs huggingface_hub: pip install "edgekit[build]"') from None
    if tuple(int(part) for part in re.findall(r"\d+", api.__version__)[:2]) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise EngineMissing(f'huggingface_hub {api.__version__} is too old, {needed} is needed: pip install -U "edgekit[build]"')
    return api


def _plan(api: Any, model: str, revision: str | None, select: Selection) -> list[Any]:
    """What is selected, and whether it is in the cache. Raises CheckpointError where weights are wanted and none are there."""
    if revision is not None and COMMIT.fullmatch(revision):
        # A commit's list of files is asked for again and again by huggingface_hub, for half a minute, even where there is no network.
        api.HfApi().repo_info(model, revision=revision, timeout=TIMEOUT)
    planned: list[Any] = api.snapshot_download(model, revision=revision, **_patterns(select), tqdm_class=_Quiet, dry_run=True)
    if not planned:
        raise ModelNotFound(f"{model} holds no {' or '.join(select.wanted)}")
    if select.missing is not None and not any(file.filename.endswith(".safetensors") for file in planned):
        raise CheckpointError(_missing(api, model, revision, select.missing))
    return planned


def _missing(api: Any, model: str, revision: str | None, usual: str) -> str:
    """What a repository without safetensors is, by the names of all its files."""
    names = [name for name in api.HfApi().list_repo_files(model, revision=revision) if "/" not in name]
    if not any(name.startswith(("adapter_", "consolidated")) or name.endswith(".gguf") for name in names):
        return f"{model} {usual}"
    config: Mapping[str, object] | None = None
    if "adapter_config.json" in names:
        content, _ = beginning(api, model, revision or "main", "adapter_config.json", MAX_ADAPTER)
        try:
            config = parse_object(content)
        except ValueError:
            config = {}
    return f"{model} has no weights that edgekit reads. {absent_weights(names, model, config)}"


class _Quiet:
    """What huggingface_hub expects of a tqdm bar, saying nothing. Takes any arguments, as its callers differ between versions."""

    _lock = threading.RLock()

    @classmethod
    def get_lock(cls) -> Any:
        return cls._lock

    @classmethod
    def set_lock(cls, lock: Any) -> None:
        cls._lock = lock

    def __init__(self, iterable: Any = None, **options: Any) -> None:
        self.iterable = iterable
        self.total = options.get("total")
        self.unit = options.get("unit")
        self.n = 0
        self.format_dict: dict[str, object] = {}

    def __enter__(self) -> "_Quiet":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterable or ())

    def update(self, n: int = 1) -> None:
        self.n += int(n or 0)

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass

    def set_description(self, desc: str = "", refresh: bool = True) -> None:
        pass

    set_description_str = set_postfix_str = set_description


def _bars(progress: Progress, total: int) -> type[_Quiet]:
    """A bar class that passes bytes on. Some versions keep two bars of bytes (received, written): the one that is ahead counts."""
    lock = threading.Lock()
    reported = 0

    class Bytes(_Quiet):
        def update(self, n: int = 1) -> None:
            nonlocal reported
            with lock:
                super().update(n)
                if self.unit == "B" and reported < min(self.n, total):
                    reported = min(self.n, total)
                    progress("download", reported, total)

    return Bytes


def _translated(api: Any, error: BaseException, model: str, revision: str | None, offline: bool) -> EdgekitError:
    """huggingface_hub's error as ours, with the next step. It wraps the one that matters in others, so the whole chain is looked at."""
    errors = api.errors
    causes = list(chain(error))

    def any_is(kind: type[BaseException]) -> bool:
        return any(isinstance(e, kind) for e in causes)

    at = f"{model} at revision {revision}" if revision else model
    if any_is(errors.HFValidationError):
        return UsageError(without_secrets(f"{model!r} is no hub id: {error}"))
    if any_is(errors.GatedRepoError):
        return DownloadError(
            f"{model} is gated: accept its licence at https://huggingface.co/{model}, then run `hf auth login` or set HF_TOKEN"
        )
    if any_is(errors.RevisionNotFoundError):
        return ModelNotFound(f"{model} has no revision {revision!r} on the hub")
    if any_is(errors.RepositoryNotFoundError):
        return ModelNotFound(
            f"the hub has no model {model!r}, or it is private. Check the spelling; for a private model run `hf auth login`"
        )
    if any(isinstance(e, OSError) and e.errno == errno.ENOSPC for e in causes):
        return OutputError(f"the disk is full: {model} does not fit into {api.constants.HF_HUB_CACHE}; HF_HOME moves the cache elsewhere")
    if offline:
        return DownloadError(
            f"{at} is not wholly in the cache, and the hub is switched off (--offline or HF_HUB_OFFLINE): build once with it"
        )
    if any(type(e).__name__ in ("ConnectError", "ConnectTimeout") for e in causes):
        reason = without_secrets((str(causes[-1]).strip() or type(causes[-1]).__name__).splitlines()[0])
        return DownloadError(
            f"{at} could not be downloaded: {without_secrets(api.constants.ENDPOINT)} cannot be reached ({reason}). Check the connection, "
            "a proxy (HTTPS_PROXY) or mirror (HF_ENDPOINT); --offline takes what is in the cache already, and the directory of a model "
            "needs no hub"
        )
    reason = without_secrets((str(causes[-1]).strip() or type(causes[-1]).__name__).splitlines()[0])
    return DownloadError(
        f"{at} could not be downloaded: {reason}. Run it again: a download goes on where it stopped; "
        "--offline takes what is in the cache already"
    )
