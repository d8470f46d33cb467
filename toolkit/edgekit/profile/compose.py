"""From what lies in the journal to the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from edgekit.profile import report
from edgekit.profile.journal import Entry, Journal
from edgekit.profile.machine import METHOD
from edgekit.profile.report import Bandwidth, Decode, Energy, Load, Memory, Missing, Moment, Prefill, Settings, Subject, Sustained, Text
from edgekit.profile.statistics import quantile, spread
from edgekit.profile.subject import read_for_token


def entries(journal: Journal, part: str) -> list[Entry]:
    """Those that hold a measurement."""
    return [entry for entry in journal.entries if entry["part"] == part and not {"error", "cannot"} & entry.keys()]


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


def energy(journal: Journal) -> Energy | None:
    found = entries(journal, "energy")
    if not found:
        return None
    each = [joules / tokens for joules, tokens in zip(numbers(found, "joules"), numbers(found, "tokens"), strict=True)]
    watts, idle = (spread(numbers(found, key)).median for key in ("watts", "idle"))
    return Energy(str(found[0]["meter"]), str(found[0]["covers"]), spread(each), watts, idle)


def sustained(journal: Journal) -> Sustained | None:
    """Of the last attempt; one that was broken off counts for as far as it came."""
    found = entries(journal, "sustained")
    moments = [entry for entry in found if entry["attempt"] == found[-1]["attempt"]]
    if not moments:
        return None
    keys = ("seconds", "rate", "clock", "temperature", "watts")
    told = tuple(Moment(*(cast(Any, entry[key]) for key in keys)) for entry in moments)
    end = told[-1].seconds
    first = [moment.rate for moment in told if moment.seconds <= end / 5] or [told[0].rate]
    last = [moment.rate for moment in told if moment.seconds > end * 4 / 5]
    kept = spread(last).median / spread(first).median
    return Sustained(end, int(sum(numbers(moments, "tokens"))), kept, told)


def most(found: Sequence[Mapping[str, object]], key: str) -> int | None:
    return max((int(value) for value in numbers(found, key)), default=None)


def missing(journal: Journal, settings: Settings, reason: str) -> Iterator[Missing]:
    """What was asked for and is not there, or not as often. ``reason``: why the run ended, where an entry says nothing itself."""
    parts = {f"load/{kind}": settings.loads for kind in ("cold", "warm")}
    parts |= {f"length/{length}": settings.rounds for length in settings.prompts} | {"text": settings.rounds, "bandwidth": 1}
    parts |= {"energy": settings.rounds} | ({"sustained/end": 1} if settings.sustained else {})
    for part, wanted in parts.items():
        there = len(entries(journal, part))
        if there < wanted:
            found = [entry for entry in journal.entries if entry["part"] == part]
            cannot = next((str(entry["cannot"]) for entry in found if "cannot" in entry), None)
            said = cannot or next((str(entry["error"]) for entry in reversed(found) if "error" in entry), reason)
            yield Missing(part, said if not there else f"{there} of {wanted}: {said}", cannot is not None)
