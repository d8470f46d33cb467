"""From what lies in the journal to the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from edgekit.profile import report
from edgekit.profile.journal import Entry, Journal
from edgekit.profile.machine import METHOD
from edgekit.profile.report import Bandwidth, Decode, Load, Memory, Missing, Prefill, Settings, Subject, Text
from edgekit.profile.statistics import quantile, spread
from edgekit.profile.subject import read_for_token


def entries(journal: Journal, part: str) -> list[Entry]:
    """Those that hold a measurement."""
    return [entry for entry in journal.entries if entry["part"] == part and "error" not in entry]


def numbers(found: Sequence[Entry], key: str) -> list[float]:
    return [float(cast(float, entry[key])) for entry in found if entry.get(key) is not None]


def bandwidth(journal: Journal) -> Bandwidth | None:
    found = entries(journal, "bandwidth")
    tries = [rate for entry in found for rate in cast("list[float]", entry["tries"])]
    return Bandwidth(max(tries), METHOD, int(cast(int, found[0]["threads"])), tuple(tries)) if tries else None


def loads(journal: Journal, prompt: int) -> Iterator[Load]:
    kinds: tuple[report.Kind, ...] = ("cold", "warm")
    for kind in kinds:
        found = entries(journal, f"load/{kind}")
        if found:
            cached = tuple(cast("float | None", entry["cached"]) for entry in found)
            seconds, first = spread(numbers(found, "seconds")), spread(numbers(found, "first_token"))
            yield Load(kind, seconds, first, prompt, cached, most(found, "peak"))


def prefills(journal: Journal, settings: Settings) -> Iterator[Prefill]:
    for length in settings.prompts:
        found = entries(journal, f"length/{length}")
        if found:
            rate = spread([length / seconds for seconds in numbers(found, "prefill")])
            yield Prefill(length, rate, spread(numbers(found, "ttft")), spread(numbers(found, "encode")))


def decodes(journal: Journal, settings: Settings, of: Subject, limit: Bandwidth | None) -> Iterator[Decode]:
    for depth in settings.prompts:
        rounds = [cast("list[float]", entry["seconds"]) for entry in entries(journal, f"length/{depth}")]
        if not rounds:
            continue
        rate = spread([len(seconds) / sum(seconds) for seconds in rounds])
        single = [second for seconds in rounds for second in seconds]
        read = read_for_token(of, depth)
        share = read * rate.median / limit.rate if limit is not None else None
        p50, p95, p99 = (quantile(single, part) for part in (0.5, 0.95, 0.99))
        yield Decode(depth, rate, p50, p95, p99, len(single), read, share)


def text(journal: Journal) -> Text | None:
    found = entries(journal, "text")
    if not found:
        return None
    return Text(*(spread(numbers(found, key)) for key in ("encode", "greedy", "sampled", "decode")))


def memory(journal: Journal, settings: Settings) -> Memory:
    found = [entry for length in settings.prompts for entry in entries(journal, f"length/{length}")]
    source = next((str(entry["device_source"]) for entry in found if entry.get("device_source")), None)
    runtime, loaded, peak, anonymous, device = (most(found, key) for key in ("runtime", "loaded", "peak", "anonymous", "device"))
    return Memory(runtime, loaded, peak, anonymous, device, source)


def most(found: Sequence[Mapping[str, object]], key: str) -> int | None:
    return max((int(value) for value in numbers(found, key)), default=None)


def missing(journal: Journal, settings: Settings, reason: str) -> Iterator[Missing]:
    """What was asked for and is not there, or not as often. ``reason``: why the run ended, where an entry says nothing itself."""
    parts = {f"load/{kind}": settings.loads for kind in ("cold", "warm")}
    parts |= {f"length/{length}": settings.rounds for length in settings.prompts} | {"text": settings.rounds, "bandwidth": 1}
    for part, wanted in parts.items():
        there = len(entries(journal, part))
        if there < wanted:
            said = next((str(entry["error"]) for entry in reversed(journal.entries) if entry["part"] == part and "error" in entry), reason)
            yield Missing(part, said if not there else f"{there} of {wanted} rounds: {said}")
