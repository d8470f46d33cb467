"""The processes in which an engine is measured, one after the other: nothing but the engine and the runtime lies in their memory.

Only ``session.forward`` runs between the two readings of the clock that a figure of an engine comes from; what the runtime adds
(tokenizing, sampling, text) is timed apart.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from edgekit import child
from edgekit.artifact import read_artifact
from edgekit.engines.observing import observer
from edgekit.errors import EdgekitError
from edgekit.profile import files, journal, machine, memory
from edgekit.profile.energy import Meter
from edgekit.profile.energy import find as find_meter
from edgekit.profile.subject import weight_files
from edgekit.runtime import Runtime, open_runtime
from edgekit.runtime.sampling import GREEDY, Sampler, Sampling

PARAGRAPH = (
    "The kitchen light is on, the heating in the bedroom is set to 21 degrees, and the last train leaves at 11:40 in the evening. "
    "Write down what has to be bought, who will call the landlord, and when the parcel may be fetched from the shop next door.\n"
)
DRAWS = 20
"""Of each sampler, in each round."""
WARM = Sampling(temperature=0.8, top_p=0.95, seed=0)
SPAN = 256
READ, MOMENT, MOMENTS = 0.1, 1.0, 240
"""Seconds between two readings of a meter; least seconds between two moments of a sustained run, and the most moments."""
Words = tuple[str, tuple[int, ...]]


def main() -> None:
    """A process that was asked for one thing: ``{"do": "bandwidth" | "load" | "rounds", ...}``."""
    child.serve(lambda request: WORK[str(request["do"])](request))


def _bandwidth(request: child.Json) -> child.Json:
    return {"tries": machine.bandwidth(cast(int, request["threads"]))}


def _load(request: child.Json) -> child.Json:
    """The model is loaded and says one token."""
    directory, threads = Path(str(request["directory"])), cast("int | None", request["threads"])
    artifact = read_artifact(directory)  # the parent was let in by the door
    held = files.cached(weight_files(artifact))
    began = time.perf_counter()
    with open_runtime(artifact, threads=threads) as runtime:
        loaded = time.perf_counter()
        peak = memory.peak()
        _, ids = words(runtime, cast(int, request["prompt"]))
        next(runtime.generate(ids, max_tokens=2))
        return {"seconds": loaded - began, "first_token": time.perf_counter() - loaded, "cached": held, "peak": peak}


def words(runtime: Runtime, count: int) -> Words:
    """A text of about ``count`` tokens, and exactly so many ids of it."""
    ids = runtime.tokenizer.encode(PARAGRAPH, add_bos=True)
    while len(ids) < count:
        ids += runtime.tokenizer.encode(PARAGRAPH)
    return runtime.tokenizer.decode(ids[:count]), tuple(ids[:count])


@dataclass(frozen=True)
class Round:
    """Of one length. seconds: of every decoded token."""

    encode: float
    prefill: float
    ttft: float
    seconds: tuple[float, ...]


def measure(runtime: Runtime, prompt: Words, tokens: Sequence[int]) -> Round:
    """A prompt from an empty cache, from text to its first token's text; then ``tokens`` one after the other."""
    session, tokenizer, (text, ids) = runtime.session, runtime.tokenizer, prompt
    session.rewind(0)
    sampler = Sampler(GREEDY)
    began = time.perf_counter()
    given = (tokenizer.encode(text) + list(ids))[: len(ids)]
    encoded = time.perf_counter()
    logits = session.forward(given)
    computed = time.perf_counter()
    token, _ = sampler.choose(given, logits)
    tokenizer.stream(given).push(token)
    ended = time.perf_counter()
    return Round(encoded - began, computed - encoded, ended - began, decode(runtime, tokens))


def decode(runtime: Runtime, tokens: Sequence[int]) -> tuple[float, ...]:
    """Seconds of each."""
    clock, forward = time.perf_counter, runtime.session.forward
    seconds = []
    for token in tokens:
        began = clock()
        forward((token,))
        seconds.append(clock() - began)
    return tuple(seconds)


def text(runtime: Runtime, prompt: Words) -> child.Json:
    """Seconds a token of each thing that the runtime does beside the engine."""
    ids = list(prompt[1])
    runtime.session.rewind(0)
    logits = runtime.session.forward(ids[:1])
    found: dict[str, object] = {}
    for name, sampling in (("greedy", GREEDY), ("sampled", WARM)):
        sampler = Sampler(sampling)
        began = time.perf_counter()
        for _ in range(DRAWS):
            sampler.choose(ids, logits)
        found[name] = (time.perf_counter() - began) / DRAWS
    stream = runtime.tokenizer.stream(ids[:1])
    began = time.perf_counter()
    for token in ids:
        stream.push(token)
    found["decode"] = (time.perf_counter() - began) / len(ids)
    began = time.perf_counter()
    encoded = runtime.tokenizer.encode(prompt[0])
    found["encode"] = len(encoded) / (time.perf_counter() - began)
    return found


def _rounds(request: child.Json) -> child.Json:
    """Everything that needs the model loaded once; each measurement goes into the journal as it is made."""
    path, directory = Path(str(request["journal"])), Path(str(request["directory"]))
    lengths, rounds = cast("list[int]", request["prompts"]), cast(int, request["rounds"])
    before = memory.peak()
    done = journal.load(path)
    with open_runtime(read_artifact(directory), threads=cast("int | None", request["threads"])) as runtime:
        held = {"runtime": before, "loaded": memory.peak()}
        prompts = {length: words(runtime, length) for length in lengths}
        rng = np.random.default_rng(0)
        steps = rng.integers(0, runtime.manifest.tokens.vocab_size, cast(int, request["tokens"])).tolist()
        broken = {length: str(error) for length in lengths if (error := _warm_up(runtime, prompts[length], steps)) is not None}
        for length, reason in broken.items():
            journal.append(path, {"part": f"length/{length}", "error": reason})
        for number in range(rounds):
            for length in lengths:
                if length not in broken and number >= done.done(f"length/{length}"):
                    found = measure(runtime, prompts[length], steps)
                    journal.append(path, {"part": f"length/{length}", "round": number, **found.__dict__, **held, **_held(runtime)})
            if number >= done.done("text"):
                journal.append(path, {"part": "text", "round": number, **text(runtime, prompts[lengths[0]])})
        _power(runtime, prompts[lengths[0]], steps, request, done)
    return {}


def _power(runtime: Runtime, prompt: Words, steps: Sequence[int], request: child.Json, done: journal.Journal) -> None:
    """Energy and a sustained run, where there is a meter and where it was asked for."""
    rounds, seconds = cast(int, request["rounds"]), cast(float, request["sustained"])
    meter, reason = find_meter(graphics=not observer(runtime.manifest.engine.name).host_memory(runtime.manifest))
    if meter is None and not done.done("energy"):
        journal.append(done.path, {"part": "energy", "cannot": reason})
    elif meter is not None:
        for number in range(done.done("energy"), rounds):
            journal.append(done.path, {"part": "energy", "round": number, **energy(runtime, prompt, steps, meter)})
    if seconds and not done.done("sustained/end"):
        # A run that was broken off cannot go on: the device has cooled. What it told stays beside the new one.
        attempt = 1 + max((cast(int, entry["attempt"]) for entry in done.entries if entry["part"] == "sustained"), default=-1)
        sustain(
            runtime,
            prompt,
            steps,
            seconds,
            meter,
            lambda moment: journal.append(done.path, {"part": "sustained", "attempt": attempt, **moment}),
        )
        journal.append(done.path, {"part": "sustained/end", "round": 0})
    if meter is not None:
        meter.close()


def endlessly(runtime: Runtime, prompt: Words, tokens: Sequence[int]) -> Iterator[float]:
    """Seconds of one decoded token after the other, for as long as one likes. Where the context is full, or after as many tokens as
    SPAN, the sequence begins again from the prompt, so that the depth stays much the same."""
    session, ids = runtime.session, prompt[1]
    session.rewind(0)
    session.forward(ids)
    end = min(session.context, len(ids) + SPAN)
    for token in itertools.cycle(tokens):
        if session.position == end:
            session.rewind(len(ids))
        began = time.perf_counter()
        session.forward((token,))
        yield time.perf_counter() - began


def energy(runtime: Runtime, prompt: Words, tokens: Sequence[int], meter: Meter) -> child.Json:
    """Joules of decoding for as long as the meter needs to tell, and watts of doing nothing before."""
    began, first = time.perf_counter(), meter.joules()
    while (idle := time.perf_counter() - began) < meter.window:
        time.sleep(READ)
        meter.joules()
    resting = (meter.joules() - first) / idle
    steps = endlessly(runtime, prompt, tokens)
    next(steps)
    began = last = time.perf_counter()
    first, count = meter.joules(), 0
    while (now := time.perf_counter()) - began < meter.window:
        next(steps)
        count += 1
        if now - last >= READ:
            meter.joules()
            last = now
    used, seconds = meter.joules() - first, time.perf_counter() - began
    found: child.Json = {"meter": meter.name, "covers": meter.covers, "idle": resting}
    return found | {"joules": used, "watts": used / seconds, "tokens": count}


def sustain(
    runtime: Runtime, prompt: Words, tokens: Sequence[int], seconds: float, meter: Meter | None, tell: Callable[[child.Json], None]
) -> None:
    """Decodes without a pause and tells every moment of it: how fast, how hot, at what clock and power. What looking takes is no part of
    the engine's time."""
    pause = max(MOMENT, seconds / MOMENTS)
    steps = endlessly(runtime, prompt, tokens)
    next(steps)
    began = last = time.perf_counter()
    joules = meter.joules() if meter is not None else 0.0
    while last - began < seconds:
        spent, count = 0.0, 0
        while time.perf_counter() - last < pause:
            spent += next(steps)
            count += 1
        now, used = time.perf_counter(), meter.joules() if meter is not None else None
        watts = None if used is None else (used - joules) / (now - last)
        tell(
            {
                "seconds": now - began,
                "rate": count / spent,
                "clock": machine.clock(),
                "temperature": machine.temperature(),
                "watts": watts,
                "tokens": count,
            }
        )
        last, joules = now, used or 0.0


def _warm_up(runtime: Runtime, prompt: Words, steps: Sequence[int]) -> EdgekitError | None:
    """A round that is not counted: page faults, lazily made kernels, memory that grows. The error where the engine cannot do it."""
    try:
        measure(runtime, prompt, steps)
    except EdgekitError as error:
        return error
    return None


def _held(runtime: Runtime) -> dict[str, object]:
    """Of memory, now."""
    own = observer(runtime.manifest.engine.name).device_memory()
    drm = memory.device()
    device, source = own or ((drm, "DRM fdinfo of the kernel") if drm is not None else (None, None))
    return {"peak": memory.peak(), "anonymous": memory.anonymous(), "device": device, "device_source": source}


WORK = {"bandwidth": _bandwidth, "load": _load, "rounds": _rounds}
