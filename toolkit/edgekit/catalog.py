"""Which model is meant: a catalogue name, a hub id, a directory, or the model that comes with the package."""

import difflib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from edgekit.checkpoint import Checkpoint, Source, declared_license, open_checkpoint
from edgekit.errors import DownloadError, EdgekitError, ModelNotFound, UsageError
from edgekit.files import shown
from edgekit.foreign import FILES, a_file
from edgekit.progress import Progress, silent
from edgekit.records import RecordError, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
HERE = Path(__file__).parent
EMBEDDED = "tiny-phi"
# As the hub allows them: letters, digits, "-", "_", "."; a revision is a commit, tag or branch (which may hold "/").
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"[\w][\w./+-]{0,254}", re.ASCII)


@dataclass(frozen=True)
class _Row:
    """One table of catalog.toml."""

    architecture: str
    license: str
    parameters: int
    context: int
    hub: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class CatalogEntry:
    """A model known to work. ``hub`` is its id there (None: it comes with the package), ``revision`` the pinned commit, if one is;
    ``license`` an SPDX id or the licence's name; ``parameters`` counts tied weights once; ``context`` in tokens.
    """

    name: str
    hub: str | None
    revision: str | None
    architecture: str
    license: str
    parameters: int
    context: int

    @property
    def gigabytes(self) -> float:
        """Size of the weights in bf16, in 10^9 bytes: about what is downloaded."""
        return self.parameters * 2 / 1e9


@lru_cache(maxsize=1)
def _entries() -> tuple[CatalogEntry, ...]:
    path = HERE / "catalog.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        rows = {name: parse(_Row, table, unknown="refuse", path=name) for name, table in tables.items()}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecordError) as error:
        raise EdgekitError(f"{path}: {error}; install edgekit again") from None
    return tuple(CatalogEntry(n, r.hub, r.revision, r.architecture, r.license, r.parameters, r.context) for n, r in rows.items())


def catalogue() -> list[CatalogEntry]:
    """All known models, in the order of catalog.toml."""
    return list(_entries())


FromHub = Callable[[str, str | None, str | None], T]
"""Hub id, revision and licence, as far as they are known, to what is wanted of the model."""


def resolve(model: str, *, revision: str | None = None, offline: bool = False, progress: Progress) -> Checkpoint:
    """Find ``model``, download it where needed, and open it.

    model:    a catalogue name, ``org/name`` or either with ``@revision``; the path of a directory; or ``tiny-phi`` (in the package).
              A catalogue name wins over a directory of that name: write ``./name`` for the directory.
    revision: commit, tag or branch of a hub model; the pinned commit (catalogue) or the newest where not given.
    offline:  take the hub's cache as it is. The environment variable HF_HUB_OFFLINE does the same.
    progress: told the bytes of a download, as stage "download".

    Raises ModelNotFound, UsageError, DownloadError, EngineMissing (no huggingface_hub) and what ``open_checkpoint`` raises.
    """

    def from_hub(hub: str, revision: str | None, license: str | None) -> Checkpoint:
        # Imported here: huggingface_hub is slow to load and not part of the base install.
        from edgekit.hub import download

        directory, commit = download(hub, revision, offline=offline, progress=progress)
        return open_checkpoint(directory, Source(hub, "hub", commit, license or declared_license(directory)))

    return _resolve(model, revision, from_hub)


@dataclass(frozen=True)
class Outlined:
    """A checkpoint whose weights need not be here, so that none can be read. download: bytes a build would fetch, were nothing there.
    sizes: bytes of its other files by name; empty where the checkpoint is a directory, which says that itself."""

    checkpoint: Checkpoint
    download: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)


def outline(model: str, *, revision: str | None = None, offline: bool = False) -> Outlined:
    """What ``resolve`` finds, without downloading weights. Of a model of the catalogue, at the revision that it pins, all that is needed
    comes with the package; of any other hub model config.json and the safetensors' headers are fetched. Raises as it does."""
    if (entry := _listed(model, revision)) is not None:
        return _from_shapes(entry)

    def from_hub(hub: str, revision: str | None, license: str | None) -> Outlined:
        from edgekit.hub import outline

        if offline:
            return Outlined(resolve(hub, revision=revision, offline=True, progress=silent))
        try:
            found = outline(hub, revision)
        except DownloadError as error:
            raise DownloadError(
                f"{error}. Models of the catalogue (`edge models`) are planned without the hub: a fine-tune takes what its base does"
            ) from None
        # Some store a tied lm_head as well; a build compares it with the embedding, which takes the weights.
        tied = found.config.get("tie_word_embeddings") is True
        twice = tied and any(name.endswith("embed_tokens.weight") for name in found.tensors)
        tensors = {name: info for name, info in found.tensors.items() if not (twice and name == "lm_head.weight")}
        return Outlined(
            Checkpoint(Path(hub), Source(hub, "hub", found.commit, license), found.config, tensors), found.download, found.sizes
        )

    found = _resolve(model, revision, from_hub)
    return found if isinstance(found, Outlined) else Outlined(found)


def _listed(model: str, revision: str | None) -> CatalogEntry | None:
    """The entry of the catalogue that a name or hub id means, unless it is a directory here or asks for another revision."""
    name, revision = _split(model, revision)
    if name.lower() not in {e.name for e in _entries()} and _directory(model) is not None:
        return None
    entry = next((e for e in _entries() if e.hub is not None and name.lower() in (e.name, e.hub.lower())), None)
    return entry if entry is not None and revision in (None, entry.revision) else None


def _from_shapes(entry: CatalogEntry) -> Outlined:
    # Imported here: the catalogue is read by commands that need no model.
    from edgekit.shapes import TOKEN_BYTES, shapes, weightless

    shape, hub = shapes()[entry.name], str(entry.hub)
    config = shape.config(entry.architecture, entry.context)
    tokenizer = TOKEN_BYTES * shape.vocab_size
    checkpoint = Checkpoint(Path(hub), Source(hub, "hub", entry.revision, entry.license), config, weightless(config, hub))
    return Outlined(checkpoint, 2 * entry.parameters + tokenizer, {"tokenizer.json": tokenizer})


def _resolve(model: str, revision: str | None, from_hub: FromHub[T]) -> Checkpoint | T:
    name, revision = _split(model, revision)
    entry = next((e for e in _entries() if e.name == name.lower()), None)
    if entry is not None and entry.hub is not None:
        return from_hub(entry.hub, revision or entry.revision, entry.license)
    if entry is not None:
        _no_revision(model, revision, "the model that comes with the package")
        directory = HERE / "tiny_phi"
        if not directory.is_dir():
            raise ModelNotFound(f"{EMBEDDED} is missing from this installation ({directory}); install edgekit again")
        return open_checkpoint(directory, Source(EMBEDDED, "embedded", None, entry.license))
    path = _directory(model)
    if path is not None:
        _no_revision(model, revision, "a directory")
        return open_checkpoint(path, Source(shown(path.resolve().name), "local", None, declared_license(path)))
    if (file := _file(model)) is not None:
        raise ModelNotFound(f"{a_file(*file)}{_hint(file[0].stem)}")
    if _looks_like_path(model):
        raise ModelNotFound(f"no such directory: {model}{_neighbours(model)}")
    if HUB_ID.fullmatch(name):
        listed = next((e for e in _entries() if e.hub is not None and e.hub.lower() == name.lower()), None)
        try:
            return from_hub(name, revision, listed.license if listed else None)
        except (ModelNotFound, DownloadError) as error:
            hint = _similar(name) if isinstance(error, ModelNotFound) and listed is None else ""
            raise type(error)(f"{error}{hint}{_neighbours(model)}") from None
    raise _unknown(name)


def _split(model: str, revision: str | None) -> tuple[str, str | None]:
    """``name@revision`` apart. A path may hold an @, so what exists as a directory stays whole."""
    name, at, inline = model.partition("@")
    if not at or _looks_like_path(model) or _directory(model) is not None:
        name, inline = model, ""
    elif not inline:
        raise UsageError(f"{model!r} ends with @; write the revision after it, or leave it out")
    if inline and revision is not None and inline != revision:
        raise UsageError(f"two revisions are given: {inline!r} in {model!r}, and {revision!r}")
    revision = inline or revision
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"{revision!r} is no revision: a commit hash, tag or branch is needed")
    return name, revision


def _directory(model: str) -> Path | None:
    """The directory of this name, if there is one."""
    try:
        path = Path(model).expanduser()
        return path if model and path.is_dir() else None
    except (OSError, RuntimeError):  # too long a name; no such user in ~user
        return None


def _file(model: str) -> tuple[Path, bool] | None:
    """The file that is meant, and whether it is there; None for what is no file's name."""
    try:
        path = Path(model).expanduser()
        if model and path.is_file():
            return path, True
    except (OSError, RuntimeError, ValueError):
        return None
    return (path, False) if path.suffix.lower() in FILES and len(model) < 4096 else None


def _neighbours(model: str) -> str:
    """Said of a path that is not there although the directory that it would be in is: what is there by a like name."""
    try:
        parent = Path(model).expanduser().parent
        if parent == Path() or not parent.is_dir():
            return ""
        close = difflib.get_close_matches(Path(model).name, [path.name for path in parent.iterdir() if path.is_dir()], n=3, cutoff=0.6)
    except (OSError, RuntimeError, ValueError):
        return ""
    named = f"; did you mean {', '.join(str(parent / name) for name in close)}?" if close else ""
    return f" (nor is there a directory {model}{named})" if not _looks_like_path(model) else named


def _similar(hub: str) -> str:
    """Models of the catalogue with nearly this id."""
    listed = {e.hub.lower(): e.hub for e in _entries() if e.hub is not None}
    close = difflib.get_close_matches(hub.lower(), listed, n=2, cutoff=0.8)
    return f". Did you mean {' or '.join(listed[name] for name in close)}?" if close else ""


def _hint(stem: str) -> str:
    """The catalogue's models that a file of this name may be of."""
    plain = re.sub(r"[^a-z0-9]", "", stem.lower())
    found = [e.name for e in _entries() if e.hub is not None and re.sub(r"[^a-z0-9]", "", e.hub.rpartition("/")[2].lower()) in plain]
    return f". By its name it may be of {' or '.join(found)}, which the catalogue knows: `edge build {found[0]} ...`" if found else ""


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1 + ("@" in model) or model[1:2] == ":"


def _no_revision(model: str, revision: str | None, what: str) -> None:
    if revision is not None:
        raise UsageError(f"{model} is {what}: it has no revision {revision!r}")


def _unknown(name: str) -> ModelNotFound:
    names = [e.name for e in _entries()]
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "`edge models` lists the names."
    return ModelNotFound(f"unknown model {name!r}: {hint} A hub id (org/name) or a directory works too.")
