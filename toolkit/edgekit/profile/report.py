"""What ``edge profile`` measured: one document for all engines, versioned (docs/profile.md, docs/profile.schema.json)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edgekit import strict_json
from edgekit.errors import UsageError
from edgekit.profile.statistics import Spread
from edgekit.records import RecordError, parse
from edgekit.resources import read_text

FORMAT: Literal["edgekit-profile"] = "edgekit-profile"
VERSION = 1
Kind = Literal["cold", "warm"]
Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Settings:
    """What was asked for. prompts: prompt lengths, which are the depths decoding is measured at as well. tokens: decoded at each depth in
    each round. rounds: of all lengths, one after the other, after one that is not counted. loads: cold and warm, each in a new process.
    threads: None where the engine chose. sustained: seconds of decoding without a pause, 0 for none."""

    prompts: tuple[int, ...]
    tokens: int
    rounds: int
    loads: int
    threads: int | None
    sustained: float


@dataclass(frozen=True)
class Subject:
    """The artifact. manifest_sha256: of edgekit.json, which names every other file's. bytes: of its files.

    weights_read: bytes of weights that one token has to read: all but an embedding that only looks up rows. cache_token: bytes of KV cache
    that each earlier token adds to that. cache_window: the most earlier tokens that are read, None where there is no window.
    """

    directory: str
    manifest_sha256: str
    model: str
    parameters: int
    target: str
    engine: str
    scheme: str
    bits_per_weight: float
    context: int
    bytes: int
    weights_read: int
    cache_token: int
    cache_window: int | None


@dataclass(frozen=True)
class Machine:
    """Where it ran. cores: this process may use. memory: bytes. load_average: of the last minute, as it began (other programs' work; None
    where the system has none). governor: of the first core's clock, None where the system does not tell."""

    processor: str
    architecture: str
    cores: int
    memory: int | None
    system: str
    python: str
    packages: Mapping[str, str]
    load_average: float | None
    governor: str | None


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second that this machine reads from memory: the most of several tries (a limit is what was reached once)."""

    rate: float
    method: str
    threads: int
    tries: tuple[float, ...]


@dataclass(frozen=True)
class Load:
    """In a new process each time. cold: the files were dropped from the page cache; warm: they were read just before.

    seconds: until the model is loaded. first_token: from then until the first token of a prompt of ``prompt`` tokens, which pays for what
    an engine puts off until its first run. cached: share of the weights' bytes that was in the page cache as each load began, None where
    the system does not tell.
    """

    kind: Kind
    seconds: Spread
    first_token: Spread
    prompt: int
    cached: tuple[float | None, ...]
    peak: int | None


@dataclass(frozen=True)
class Prefill:
    """A prompt of so many tokens in an empty cache. rate: tokens a second of the engine. ttft: seconds from text to the first token's text,
    tokenizing, engine, sampling and decoding together."""

    tokens: int
    rate: Spread
    ttft: Spread
    encode: Spread


@dataclass(frozen=True)
class Decode:
    """One token after the other, from ``depth`` tokens in the cache on. rate: tokens a second of the engine, a sample for each round.
    p50, p95, p99: seconds of single tokens over all rounds. bytes: read for a token. share: of the memory bandwidth, None where the
    weights do not lie in the host's memory or it was not measured."""

    depth: int
    rate: Spread
    p50: float
    p95: float
    p99: float
    tokens: int
    bytes: int
    share: float | None


@dataclass(frozen=True)
class Text:
    """What the runtime adds to the engine. encode: tokens a second. greedy, sampled (temperature, top-p), decode: seconds a token."""

    encode: Spread
    greedy: Spread
    sampled: Spread
    decode: Spread


@dataclass(frozen=True)
class Memory:
    """Bytes of the process that held the engine, and of no other. loaded: the peak when the model was loaded. peak: of the whole run.
    anonymous: the most of it that was not pages of files, as seen after each measurement. runtime: before the engine was imported.
    device: of its own on an accelerator, at most, as ``device_source`` told; None where no driver tells."""

    runtime: int | None
    loaded: int | None
    peak: int | None
    anonymous: int | None
    device: int | None
    device_source: str | None


@dataclass(frozen=True)
class Energy:
    """While decoding. meter: what told, and covers: what its figure includes. idle: watts just before, the model loaded, nothing done."""

    meter: str
    covers: str
    joules_per_token: Spread
    watts: float
    idle: float | None


@dataclass(frozen=True)
class Moment:
    """Of a sustained run. seconds: since it began. rate: tokens a second since the last moment. clock: MHz, the mean over the cores this
    process may use. temperature: degrees Celsius, the hottest sensor of a processor. watts: of the meter."""

    seconds: float
    rate: float
    clock: float | None
    temperature: float | None
    watts: float | None


@dataclass(frozen=True)
class Sustained:
    """Decoding without a pause. kept: the rate of the last fifth of the time over that of the first."""

    seconds: float
    tokens: int
    kept: float
    moments: tuple[Moment, ...]


@dataclass(frozen=True)
class Operator:
    """A kind of operator in the trace. share: of the time of all operators."""

    kind: str
    phase: Phase
    count: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Missing:
    """A measurement that was not made, or not as often as asked, and why. cannot: this machine or engine has no means for it; else it
    failed or was broken off."""

    part: str
    reason: str
    cannot: bool


@dataclass(frozen=True)
class Report:
    """See docs/profile.md. began: UTC. complete: nothing failed or was broken off. missing: also what this machine cannot tell."""

    format: Literal["edgekit-profile"]
    version: int
    producer: str
    command: str
    began: str
    seconds: float
    complete: bool
    subject: Subject
    machine: Machine
    settings: Settings
    bandwidth: Bandwidth | None
    load: tuple[Load, ...]
    prefill: tuple[Prefill, ...]
    decode: tuple[Decode, ...]
    text: Text | None
    memory: Memory
    energy: Energy | None
    sustained: Sustained | None
    operators: tuple[Operator, ...] | None
    missing: tuple[Missing, ...]


def as_json(report: Report) -> dict[str, object]:
    """The document of ``edge profile --json``."""
    return asdict(report)


def read(path: Path) -> Report:
    """A report that ``--json`` wrote. Raises UsageError: it cannot be read, is none, or of another version."""
    try:
        data = strict_json.load(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}); give what `edge profile DIR --json` printed") from None
    return from_json(data, str(path))


def from_json(data: object, where: str) -> Report:
    """As ``read``, of what is parsed already."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(f"{where} is no profile (no format {FORMAT!r}); give what `edge profile DIR --json` printed")
    if data.get("version") != VERSION:
        raise UsageError(f"{where} is a profile of version {data.get('version')!r}, and this edgekit reads {VERSION}; measure again")
    try:
        return parse(Report, data, unknown="ignore")
    except RecordError as error:
        raise UsageError(f"{where}: {error}; measure again") from None
