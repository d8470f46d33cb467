"""The artifact directory and its manifest ``edgekit.json``: the only contract between the build and the device (docs/artifact.md)."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit import strict_json
from edgekit.errors import ArtifactError
from edgekit.manifest_checks import check_values, check_version
from edgekit.parallel import in_threads
from edgekit.progress import Progress, silent
from edgekit.records import RecordError, parse

if TYPE_CHECKING:
    from edgekit.signing import Trust

MANIFEST = "edgekit.json"
SIGNATURE = "edgekit.json.sig"
SIGNATURE_LENGTH = 64
"""Bytes of an Ed25519 signature."""
VERSION = 1
MANIFEST_LIMIT = 16 << 20
"""Bytes; a larger manifest is refused before it is parsed."""

SourceKind = Literal["embedded", "hub", "local"]
Scalar = str | int | float | bool | None


FILE_BITS = "file_bits_per_weight"
"""Of an engine's details: storage of all matrices in its own file, where that is not ``scheme.bits_per_weight``."""


@dataclass(frozen=True)
class TensorFormat:
    """``bits`` 4 or 8 with a scale and zero point for each ``group`` weights along the input, or 16/32 (floats) with group None."""

    bits: int
    group: int | None


@dataclass(frozen=True)
class ModelInfo:
    """Where the weights came from. files: name -> sha256 of every checkpoint file that was read."""

    name: str
    source: SourceKind
    revision: str | None
    license: str | None
    architecture: str
    parameters: int
    files: Mapping[str, str]


@dataclass(frozen=True)
class EngineInfo:
    name: str
    requires: Mapping[str, str]
    details: Mapping[str, Scalar]


@dataclass(frozen=True)
class SchemeInfo:
    """exceptions: canonical weight name -> format, for what is stored otherwise than its kind. method: how 4-bit weights were rounded."""

    name: str
    bits_per_weight: float
    linear: TensorFormat
    embedding: TensorFormat
    lm_head: TensorFormat
    exceptions: Mapping[str, TensorFormat]
    method: str = "search"


@dataclass(frozen=True)
class ContextInfo:
    """length: most tokens of prompt and answer together. rope_switch: the LongRoPE original length, beyond which the long factors hold."""

    length: int
    rope_switch: int | None
    sliding_window: int | None


@dataclass(frozen=True)
class TokenInfo:
    """stop: every id that ends an answer. add_bos: whether raw text (no chat template) gets ``bos`` in front."""

    vocab_size: int
    bos: int | None
    stop: tuple[int, ...]
    add_bos: bool

    @property
    def opening(self) -> list[int]:
        """What raw text begins with."""
        return [self.bos] if self.add_bos and self.bos is not None else []


@dataclass(frozen=True)
class EncodeVector:
    """The tokenizer turns ``text`` into ``ids`` (special tokens in the text are recognized; none is added)."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class ChatVector:
    """The chat template renders ``messages`` with a generation prompt to ``rendered``."""

    messages: tuple[Message, ...]
    rendered: str


@dataclass(frozen=True)
class ToolVector:
    """As a ChatVector, with ``tools``: the JSON text of a list of tools."""

    messages: tuple[Message, ...]
    tools: str
    rendered: str


@dataclass(frozen=True)
class GreedyVector:
    """Greedy decoding after ``prompt`` gives ``continuation`` (it ends early only after a stop id)."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Greedy:
    """computed_by: the engine's name, or None with the ``reason`` there is no vector."""

    computed_by: str | None
    vectors: tuple[GreedyVector, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Conformance:
    encode: tuple[EncodeVector, ...]
    chat: tuple[ChatVector, ...]
    greedy: Greedy
    tools: tuple[ToolVector, ...] = ()


@dataclass(frozen=True)
class FileInfo:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CalibrationInfo:
    """How 4-bit weights were fitted to text. tokens: how many of it were used."""

    method: str
    tokens: int
    text_sha256: str


@dataclass(frozen=True)
class FidelityPart:
    """Figures (docs/fidelity.md) of one kind of window, ``context`` tokens or fewer before each position. error: standard error of the
    mean, None of a single position."""

    name: str
    context: int
    positions: int
    mean_kl: float
    mean_kl_error: float | None
    kl_p999: float
    same_top: float
    rms_delta_p: float
    reference_perplexity: float
    perplexity: float


@dataclass(frozen=True)
class FidelityInfo:
    """How far the artifact's predictions are from its checkpoint's, as measured when it was built.

    verified: "quick": the portable weights in the reference decoder; "run": the artifact itself, by its engine, on the same text; "full":
    that on more text; "not verified" for the ``reason`` given. reference: what was compared with. max_kl, min_top1: the limits that were
    kept.
    """

    verified: Literal["quick", "run", "full", "not verified"]
    reason: str | None = None
    reference: str | None = None
    text_sha256: str | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    parts: tuple[FidelityPart, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """All that a runtime needs to know of an artifact, and all that a user may ask about its origin.

    weights: canonical weight name -> digest of its portable form, equal on every engine (docs/artifact.md); empty where not recorded.
    calibration: None where 4-bit weights were rounded by themselves. fidelity: None where an older edgekit did not measure it.
    release: its publisher's number, by which a device tells an older one; None where it was never given one. tool_template: what renders
    chats with tools; None: ``chat_template`` does.
    """

    format: Literal["edgekit"]
    version: int
    producer: str
    model: ModelInfo
    target: str
    engine: EngineInfo
    scheme: SchemeInfo
    context: ContextInfo
    tokens: TokenInfo
    chat_template: str | None
    conformance: Conformance
    files: Mapping[str, FileInfo]
    weights: Mapping[str, str] = field(default_factory=dict)
    calibration: CalibrationInfo | None = None
    fidelity: FidelityInfo | None = None
    release: int | None = None
    tool_template: str | None = None

    def to_json(self) -> str:
        """The text of ``edgekit.json``: keys in the order of the specification, two spaces, one line feed at the end."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        # A list of token ids on one line. No string is hit: inside one a line feed is written as \\n.
        return re.sub(r"\[\n[\s\d,-]*\]", lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text) + "\n"

    @staticmethod
    def from_json(text: str, *, where: str = MANIFEST) -> "Manifest":
        """Parses and checks. Raises ArtifactError naming ``where`` and the path of the key that is wrong."""
        try:
            data = strict_json.load(text, finite=True)
        except ValueError as error:
            raise ArtifactError(f"{where}: {error}; build the artifact again") from None
        check_version(data, VERSION, where)
        try:
            manifest = parse(Manifest, data, unknown="ignore")
        except RecordError as error:
            raise ArtifactError(f"{where}: {error}; build the artifact again") from None
        check_values(manifest, where, (MANIFEST, SIGNATURE))
        return manifest


@dataclass(frozen=True)
class Artifact:
    directory: Path
    manifest: Manifest


def read_manifest(directory: Path | str) -> bytes:
    """The bytes of ``edgekit.json``, not parsed. Raises ArtifactError."""
    directory = Path(directory)
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            raw = file.read(MANIFEST_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        what = "is no artifact: it has no edgekit.json" if directory.is_dir() else "does not exist"
        if directory.is_file():
            raise ArtifactError(f"{directory} is a file; an artifact is a directory: give the one that edge build made") from None
        if (directory / "artifact" / MANIFEST).is_file():
            raise ArtifactError(f"{directory} is a package, and its artifact lies in it; give {directory / 'artifact'}") from None
        raise ArtifactError(f"{directory} {what}; make an artifact with: edge build MODEL --target cpu --out DIR") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(raw) > MANIFEST_LIMIT:
        raise ArtifactError(f"{path}: larger than {MANIFEST_LIMIT >> 20} MB, that is no manifest")
    return raw


def load_artifact(directory: Path | str, *, trust: "Trust | None" = None, whole: bool = False, progress: Progress = silent) -> Artifact:
    """Opens an artifact: the one door for every command and every program that is given a directory.

    trust: whose signature it must bear; None takes the keys that EDGEKIT_TRUSTED_KEY pins (``signing.pinned``).
    whole: compare every file's digest, as is always done for a trusted key; else only that each is there with its size.
    Raises SignatureError, ArtifactError, and as ``signing.open_trusted`` does.
    """
    from edgekit import signing  # imports this file

    trust = trust or signing.pinned()
    if trust is not None:
        return signing.open_trusted(directory, trust, progress)
    artifact = read_artifact(directory)
    if whole:
        check_digests(artifact, progress)
    return artifact


def read_artifact(directory: Path | str, *, raw: bytes | None = None) -> Artifact:
    """``load_artifact`` without the question of who made it: for what edgekit itself has just written or was let in by the door.

    raw: the manifest, where it was read already. Raises ArtifactError.
    """
    directory = Path(directory)
    where = str(directory / MANIFEST)
    manifest = parse_manifest(read_manifest(directory) if raw is None else raw, where)
    for name, info in manifest.files.items():
        _check_file(directory, name, info)
    return Artifact(directory, manifest)


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """Raises ArtifactError naming ``where`` and the key that is wrong."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{where}: not UTF-8: {error}") from None
    return Manifest.from_json(text, where=where)


def unlisted(artifact: Artifact) -> list[str]:
    """Files and links that lie in the directory and are no part of the artifact."""
    names = (
        path.relative_to(artifact.directory).as_posix() for path in artifact.directory.rglob("*") if path.is_symlink() or not path.is_dir()
    )
    return sorted(name for name in names if name not in (MANIFEST, SIGNATURE) and name not in artifact.manifest.files)


def check_files(artifact: Artifact) -> None:
    """A signature speaks for listed files alone, and an engine's loader may read others. Raises ArtifactError naming one."""
    if extra := unlisted(artifact):
        raise ArtifactError(f"{artifact.directory / extra[0]} is no part of the artifact, and a signed one holds nothing else; remove it")


def check_digests(artifact: Artifact, progress: Progress = silent) -> None:
    """Reads every file and compares its sha256 with the manifest. Raises ArtifactError naming the first that differs."""
    listed = artifact.manifest.files
    try:
        found = digests({name: artifact.directory / name for name in listed}, "digest of the artifact", progress)
    except OSError as error:
        raise _unreadable(error.filename, error) from None
    for name, info in listed.items():
        if found[name].sha256 != info.sha256:
            raise ArtifactError(
                f"{artifact.directory / name}: its content{_what(artifact, name)} is not what was built (sha256 {found[name].sha256}, "
                f"the manifest says {info.sha256}); copy or build it again"
            )


def _what(artifact: Artifact, name: str) -> str:
    known = {
        artifact.manifest.chat_template: "the chat template",
        artifact.manifest.tool_template: "the chat template for tools",
        "generation_config.json": "the stop ids",
        "tokenizer.json": "the tokenizer",
    }
    return f", {known[name]}," if name in known else ""


def digests(paths: Mapping[str, Path], stage: str, progress: Progress, threads: int | None = None) -> dict[str, FileInfo]:
    """Size and sha256 of each file, several at a time, telling ``progress`` about ``stage``. Raises OSError."""
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    total, done = sum(sizes.values()), 0
    found: dict[str, FileInfo] = {}

    def read(name: str) -> Iterator[int]:
        digest, size, buffer = hashlib.sha256(), 0, bytearray(1 << 20)
        with paths[name].open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
                size += count
                yield count
        found[name] = FileInfo(size, digest.hexdigest())

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress(stage, done, total)

    # The largest first, so that no thread is left with it at the end.
    in_threads(read, sorted(paths, key=lambda name: -sizes[name]), threads, tell)
    return {name: found[name] for name in paths}


def list_files(directory: Path, progress: Progress) -> dict[str, FileInfo]:
    """Size and digest of every file below ``directory`` but the manifest and its signature, by its relative name with ``/``, sorted."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return digests({name: directory / name for name in names if name not in (MANIFEST, SIGNATURE)}, "digest of the artifact", progress)


def _unreadable(path: Path | str, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path} cannot be read: {error.strerror or error}; check its permissions, or copy the artifact again")


def _check_file(directory: Path, name: str, info: FileInfo) -> None:
    path = directory / name
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise _unreadable(path, error) from None
    if size is None:
        raise ArtifactError(f"{path} is missing; copy the whole artifact again or rebuild it")
    if size != info.bytes:
        raise ArtifactError(f"{path} has {size} bytes, the manifest says {info.bytes}; copy the whole artifact again or rebuild it")
