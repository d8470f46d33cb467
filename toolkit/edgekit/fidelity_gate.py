"""The line between an artifact that may ship and one that may not.

Quality is a property of the quantized weights, equal on every engine, so it is measured on them: dequantized, in the reference decoder.
That is done once: a second target of the same weights takes the logits from the cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgekit.artifact import Artifact, FidelityInfo, FidelityPart
from edgekit.companions import Companions
from edgekit.engines.exported import Lossy
from edgekit.errors import FidelityError
from edgekit.fidelity import Fidelity, default_text, measure, score, source_digests, unquantized
from edgekit.fidelity_advice import LAST, advice
from edgekit.fidelity_report import Refused, html
from edgekit.files import beside
from edgekit.fitting import USUAL, Method
from edgekit.models import Model
from edgekit.precision import finest, stored_bits
from edgekit.progress import Progress
from edgekit.quant import VERSION as QUANT_VERSION
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import Quantizer, dequantizer
from edgekit.reference import VERSION
from edgekit.reference_cache import Weighted, logits
from edgekit.tensor_errors import tensor_errors
from edgekit.windows import FULL, QUICK, windows


@dataclass(frozen=True)
class Limits:
    """max_kl: of the mean KL divergence, nats. min_top1: of the share of positions with the same likeliest token. None: no limit."""

    max_kl: float | None = None
    min_top1: float | None = None


@dataclass(frozen=True)
class Gate:
    """What an artifact must show before it ships. limits: asked for by the user. full: run the artifact itself as well, on more text."""

    limits: Limits = Limits()
    full: bool = False


@dataclass(frozen=True)
class Quantized:
    """What a build has made. original: the checkpoint. model: what was quantized of it: itself, or one that computes the same with other
    weights. quantizer: gives the weights again. weights: their digests (``digest.weight_digests``). lossy: what else of the artifact
    costs quality, so that it is run as well. method, bits: how weights were rounded, and what was asked for with ``--bits``."""

    original: Model
    model: Model
    scheme: QuantScheme
    quantizer: Quantizer
    weights: Mapping[str, str]
    lossy: Lossy | None = None
    method: Method = USUAL
    bits: float | None = None


@dataclass(frozen=True)
class Missed:
    """A figure of one part that lies beyond its limit. option: by which the limit is set."""

    part: str
    context: int
    figure: Literal["mean KL divergence", "same likeliest token"]
    found: float
    limit: float
    option: str

    @property
    def beyond(self) -> str:
        """What was found, and its limit."""
        if self.figure == "mean KL divergence":
            return f"mean KL divergence {self.found:.4g} is above {self.limit:g} ({self.option})"
        return f"the likeliest token is the same at {self.found:.1%}, below {self.limit:.1%} ({self.option})"

    @property
    def distance(self) -> str:
        if self.figure == "mean KL divergence":
            return f"{self.found / self.limit:.3g} times as much" if self.limit else f"{self.found:.4g} more"
        return f"{100 * (self.limit - self.found):.3g} points less"


DEFAULT = Limits(0.2, 0.7)
"""Of every scheme: what may ship is a question of what comes out, so a finer one has no tighter limits (docs/fidelity.md says where the
figures come from)."""
GUESSING = Limits(1.0, 0.0)
"""For a checkpoint that knows nothing of the text: its perplexity there is that of guessing, so nothing holds its predictions in place.
Such are models with random weights; other weights than its own still lie beyond these limits."""


def limits_for(asked: Limits, fidelity: Fidelity, vocab_size: int) -> Limits:
    """Those asked for; where one is not, the default."""
    lost = all(part.figures.reference_perplexity.value >= vocab_size for part in fidelity.parts)
    own = GUESSING if lost else DEFAULT
    return Limits(
        own.max_kl if asked.max_kl is None else asked.max_kl,
        own.min_top1 if asked.min_top1 is None else asked.min_top1,
    )


def missed(fidelity: Fidelity, limits: Limits) -> list[Missed]:
    """Every limit that is not kept, in every part."""
    found = []
    for part in fidelity.parts:
        kl, top = part.figures.mean_kl.value, part.figures.same_top.value
        if limits.max_kl is not None and not kl <= limits.max_kl:
            found.append(Missed(part.name, part.context, "mean KL divergence", kl, limits.max_kl, "--max-kl"))
        if limits.min_top1 is not None and not top >= limits.min_top1:
            found.append(Missed(part.name, part.context, "same likeliest token", top, limits.min_top1, "--min-top1"))
    return found


def check(fidelity: Fidelity, limits: Limits, what: str, advice: str) -> None:
    """Raises FidelityError, once, naming all figures beyond their limits and what to do."""
    said: dict[str, list[str]] = {}
    for miss in missed(fidelity, limits):
        said.setdefault(f"{miss.part} context ({miss.context} tokens)", []).append(miss.beyond)
    if said:
        listed = "; ".join(f"{where}: {', '.join(beyond)}" for where, beyond in said.items())
        raise FidelityError(f"{what}, {listed}; {advice}")


def pass_gate(gate: Gate, made: Quantized, companions: Companions, artifact: Artifact, output: Path, progress: Progress) -> FidelityInfo:
    """Measures what a build has made. ``artifact`` is complete but for its manifest's ``files``, and will become ``output``.

    Raises FidelityError where it does not keep its limits, the report then lies beside ``output``; EngineError and EngineMissing from
    running it; UsageError for a model's own text that is too short, CheckpointError.
    """
    if not made.weights:
        return FidelityInfo("not verified", f"{artifact.manifest.engine.name} holds no weights")
    text, quantizer = default_text(made.original), made.quantizer
    vocab = made.original.decoder.vocab_size
    found = measure_weights(made, companions, text, progress)
    limits = limits_for(gate.limits, found, vocab)
    what = f"{made.original.checkpoint.source.name} as {made.scheme.name}"
    steps = advice(made.original, made.scheme, made.method, made.bits)
    try:
        check(found, limits, what, steps)
        if gate.full or made.lossy is not None:
            effort = FULL if gate.full else QUICK
            found = measure(artifact, made.original, text, effort, cache=quantizer.cache, progress=progress, threads=quantizer.threads)
            run = f"{what}, run by {artifact.manifest.engine.name}"
            if made.lossy is not None:
                run, steps = f"{run} with {made.lossy.what}", made.lossy.advice
            check(found, limits, run, steps)
    except FidelityError as error:
        page = report_place(output)
        errors = tensor_errors(made.model, made.scheme, {}, quantizer, progress)
        refused = Refused([[m.figure, f"{m.part} context", m.beyond, m.distance] for m in missed(found, limits)], steps)
        page.write_text(html(artifact.manifest, found, errors, refused), encoding="utf-8", newline="\n")
        raise FidelityError(f"{error}. Nothing was written but the report {page}") from None
    return info(found, limits, "full" if gate.full else "quick" if made.lossy is None else "run")


def check_reachable(
    gate: Gate, model: Model, scheme: QuantScheme, quantizer: Quantizer, companions: Companions, progress: Progress
) -> None:
    """Before a budget is spent, which takes long: whether the limits can be kept at all, by the weights in the finest formats there are.

    Raises FidelityError.
    """
    best = finest(model, scheme)
    sources = sorted(source.sha256 for source in quantizer.sources.values())
    made = Quantized(model, model, best, quantizer, {"finest": repr((QUANT_VERSION, best, sources))})
    found = measure_weights(made, companions, default_text(model), progress)
    what = f"{model.checkpoint.source.name} in the finest formats of {scheme.name} ({stored_bits(model, best):.2f} bits a weight)"
    limits = limits_for(gate.limits, found, model.decoder.vocab_size)
    check(found, limits, what, f"so no --bits and no --fit keeps these limits: {LAST}. Nothing was built")


def report_place(output: Path) -> Path:
    """Where the report of a build goes that was stopped."""
    return beside(output, "", ".fidelity.html")


def measure_weights(made: Quantized, companions: Companions, text: str, progress: Progress) -> Fidelity:
    """Compares quantized weights with their checkpoint on ``text``, a few hundred tokens of it.

    Raises UsageError for too short a text, CheckpointError, FidelityError for weights that give no finite logits.
    """
    decoder, quantizer = made.original.decoder, made.quantizer
    cut = windows(companions.tokenizer.encode(text), companions.tokens.opening, decoder.context, decoder.rope.switch, QUICK)
    wanted = [(w.given, w.scored) for w in cut]
    model = made.original.checkpoint.source.name
    reason = f"{made.scheme.name} weights of {model} give logits that are not finite"
    broken = FidelityError(f"{reason}, which is no matter of rounding; get an intact checkpoint")
    identity = [f"{name}:{digest}" for name, digest in made.weights.items()]
    sources = source_digests(made.original, quantizer.cache, progress, quantizer.threads)
    reference = logits(unquantized(made.original, sources), wanted, quantizer.cache, progress, "fidelity: the model itself")
    quantized = Weighted(made.model.decoder, dequantizer(made.model, made.scheme, quantizer), model, identity, broken)
    found = logits(quantized, wanted, quantizer.cache, progress, "fidelity: as quantized")
    return score(cut, reference, found, companions.tokenizer, text, same_source=True, greedy={})


def info(fidelity: Fidelity, limits: Limits, verified: Literal["quick", "run", "full"]) -> FidelityInfo:
    """For the manifest. Three digits, nine places: what is beyond them depends on the rounding of the machine that measured."""

    def rounded(value: float) -> float:
        return round(float(f"{value:.3g}"), 9)

    parts = []
    for part in fidelity.parts:
        f = part.figures
        error = None if np.isnan(f.mean_kl.error) else rounded(f.mean_kl.error)
        shown = (f.kl_p999, f.same_top.value, f.rms_delta_p.value, f.reference_perplexity.value, f.perplexity.value)
        parts.append(FidelityPart(part.name, part.context, f.positions, rounded(f.mean_kl.value), error, *map(rounded, shown)))
    reference = f"the checkpoint in float32, reference decoder {VERSION}"
    return FidelityInfo(verified, None, reference, fidelity.text_sha256, limits.max_kl, limits.min_top1, tuple(parts))
