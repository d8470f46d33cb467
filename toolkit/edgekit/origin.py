"""Does an artifact hold what its checkpoint makes of it? Weights, rotary factors, chat template, tokenizer and stop ids, each compared.

Digests tell whether files are those that were built; this tells whether what was built is right. Weights and factors are read back from
the engine's own files by its ``read`` module, which shares nothing with the exporter.
"""

import importlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgekit import __version__
from edgekit.artifact import Artifact, Manifest, TensorFormat
from edgekit.companions import Companions, read_companions
from edgekit.digest import Ledger, weight_digests
from edgekit.engines import ENGINES
from edgekit.equalize import equalize
from edgekit.errors import ArtifactError
from edgekit.models import Model
from edgekit.parallel import in_threads
from edgekit.progress import Progress
from edgekit.quant import dequantize
from edgekit.quant.scheme import SCHEMES, Format, QuantizedTensor
from edgekit.quantized import Matrix, Quantizer, block, cuts
from edgekit.stored import Stored
from edgekit.template_files import TEMPLATE, TOOL_TEMPLATE

WORSE = 4.0
"""How many times the error of plain rounding a matrix may have that was fitted to a text or built by another edgekit. GPTQ's was 1.1 to 2.1
times as large on tiny-phi and two random models; shuffled scales came out at 2.0 to 9.2, so here the manifest's digests tell more."""
IN_PLACE = ("minmax", "search", "gptq")
"""Methods that change no weight but by rounding it."""
PARTS = ("codes", "scales", "zero points")


class Reader(Protocol):
    """The ``read`` module of an engine."""

    def open_stored(self, directory: Path, manifest: Manifest, model: Model) -> Stored: ...


@dataclass(frozen=True)
class Origin:
    """problems: what is wrong, each naming it. weights: how they were compared, for people. errors: by canonical name of every matrix that
    was read back, relative (``|W - Q| / |W|``)."""

    problems: tuple[str, ...]
    weights: str
    errors: Mapping[str, float]


@dataclass
class _Found:
    """Of one matrix, filled from several threads. wrong: which of PARTS are not what plain quantization gives."""

    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    wrong: set[str] = field(default_factory=set)


def check_origin(artifact: Artifact, model: Model, *, same_source: bool, progress: Progress, threads: int | None = None) -> Origin:
    """Compares ``artifact`` with the checkpoint ``model``.

    same_source: whether it is the one that the artifact was built from, by its digests; of another one only the vocabulary's use can be
    compared, and weights with nothing but the manifest's digests. Raises CheckpointError, ConfigError and TemplateError from reading it.
    """
    manifest = artifact.manifest
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    problems = _text(artifact, model, companions) + _context(manifest, model) if same_source else []
    reader = ENGINES[manifest.engine.name].read
    if reader is None:
        return Origin(tuple(problems), f"not read back: {manifest.engine.name} has no reader", {})
    module = cast(Reader, importlib.import_module(reader))
    try:
        stored = module.open_stored(artifact.directory, manifest, model)
        if same_source:
            wrong = stored.rope(model.decoder.rope, manifest.context.length)
            problems += [f"rope factors: {what} in {artifact.directory} is not what {_name(model)}'s config.json says" for what in wrong]
            for file, ids in stored.stops().items():
                problems += _stops(f"{artifact.directory / file}", ids, companions)
        found, how, errors = _weights(artifact, model, stored, same_source, threads, progress)
        return Origin((*problems, *found), how, errors)
    except ArtifactError as error:
        return Origin((*problems, str(error)), "not read back", {})


def _name(model: Model) -> str:
    return model.checkpoint.source.name


def _text(artifact: Artifact, model: Model, companions: Companions) -> list[str]:
    """What is wrong with the chat template, the tokenizer and the stop ids."""
    manifest, problems = artifact.manifest, list[str]()
    templates = ((manifest.chat_template, TEMPLATE, companions.template), (manifest.tool_template, TOOL_TEMPLATE, companions.tool_template))
    for name, usual, wanted in templates:
        template = None if name is None else (artifact.directory / name).read_text(encoding="utf-8", errors="replace")
        if template != wanted:
            problems.append(f"chat template: {artifact.directory / (name or usual)} {_difference(template, wanted)}")
    path = artifact.directory / "tokenizer.json"
    own = companions.files.get(path.name)
    content = (model.checkpoint.directory / path.name).read_bytes() if own is None else own.encode()
    if not path.is_file() or path.read_bytes() != content:
        problems.append(f"tokenizer: {path} is not {_name(model)}'s")
    tokens = companions.tokens
    for key, found, right in (("bos", manifest.tokens.bos, tokens.bos), ("add_bos", manifest.tokens.add_bos, tokens.add_bos)):
        if found != right:
            problems.append(f"{key}: the manifest of {artifact.directory} says {found}, {_name(model)} has {right}")
    return problems + _stops(f"the manifest of {artifact.directory}", manifest.tokens.stop, companions)


def _difference(found: str | None, right: str | None) -> str:
    if found is None or right is None:
        return "is missing" if found is None else "should not be there: the checkpoint has none"
    pairs = zip([*found.split("\n"), ""], [*right.split("\n"), ""], strict=False)
    line, (got, wanted) = next(((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1]), (0, ("", "")))
    return f"is not the checkpoint's: line {line} begins {got[:60]!r} instead of {wanted[:60]!r}"


def _stops(where: str, found: tuple[int, ...], companions: Companions) -> list[str]:
    def shown(token: int) -> str:
        return f"stop id {token} ({companions.tokenizer.backend.id_to_token(token)!r})"

    right = companions.tokens.stop
    missing = [f"{shown(token)} is missing in {where}: answers would not end there" for token in right if token not in found]
    return missing + [f"{shown(token)} in {where} is none of the checkpoint's" for token in found if token not in right]


def _context(manifest: Manifest, model: Model) -> list[str]:
    length, decoder = manifest.context.length, model.decoder
    switch = decoder.rope.switch if decoder.rope.is_long(length) else None
    found = manifest.context.rope_switch
    if found == switch:
        return []
    return [f"rope factors: the manifest goes over to the long ones at {found} tokens, {_name(model)} at {switch}"]


def _weights(
    artifact: Artifact, model: Model, stored: Stored, same_source: bool, threads: int | None, progress: Progress
) -> tuple[list[str], str, dict[str, float]]:
    """What is wrong, how that was found, and the relative error of every matrix."""
    manifest, ledger = artifact.manifest, Ledger()
    if same_source and manifest.scheme.method == "equalize":
        formats = {m.weight: m.format for _, m in _stored_matrices(manifest, model)}
        model = equalize(model, formats, progress, threads=threads)
    quantizer = Quantizer(threads, search=manifest.scheme.method != "minmax")
    wanted = _stored_matrices(manifest, model)
    found = {m.weight: _Found() for _, m in wanted}
    lock, total, done = threading.Lock(), sum(m.shape[0] * m.shape[1] for _, m in wanted), 0

    def work(job: tuple[str, Matrix, int, int]) -> Iterator[int]:
        name, m, start, stop = job
        got = stored.block(name, start, stop, m.format)
        ledger.note(m.weight, m.shape, start, got)
        own = block(model, m, start, stop, quantizer)
        weight = model.rows(m.weight, start, stop)
        with np.errstate(all="ignore"):
            sums = [float(np.vdot(a, a)) for a in (weight - dequantize(got), weight, weight - dequantize(own))]
        with lock:
            found[m.weight].sums += sums
            found[m.weight].wrong |= _differing(got, own)
        yield weight.size

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress("weights read back", done, total)

    jobs = [(name, m, start, stop) for name, m in wanted for start, stop in cuts(m.shape)]
    in_threads(work, jobs, quantizer.threads, tell)
    problems, how = _judge(artifact, model, stored, same_source, found, weight_digests(model, ledger))
    if same_source and _plain(manifest):
        problems += _vectors(artifact, model, stored)
    sums = {name: one.sums for name, one in found.items()}
    return problems, how, {name: float(np.sqrt(s[0] / s[1])) if s[1] else 0.0 for name, s in sums.items()}


def _stored_matrices(manifest: Manifest, model: Model) -> list[tuple[str, Matrix]]:
    """Every matrix in the format that the manifest says, and the name it is stored under: that of the weight but for a tied lm_head in a
    format of its own."""
    scheme, known = manifest.scheme, SCHEMES.get(manifest.scheme.name)
    kinds = {"embed_tokens": scheme.embedding, "lm_head": scheme.lm_head}

    def form(name: str) -> Format:
        stored: TensorFormat = scheme.exceptions.get(name) or kinds.get(name, scheme.linear)
        symmetric = known is not None and known.linear.symmetric and stored.bits == 4
        return Format(stored.bits, stored.group or 0, symmetric)

    shapes = {name: (shape[0], shape[1]) for name, shape in model.decoder.weight_shapes().items() if len(shape) == 2}
    found = [(name, Matrix(name, shape, form(name))) for name, shape in shapes.items()]
    if model.decoder.tied and form("lm_head") != form("embed_tokens"):
        found.append(("lm_head", Matrix("embed_tokens", shapes["embed_tokens"], form("lm_head"))))
    return found


def _differing(got: QuantizedTensor, own: QuantizedTensor) -> set[str]:
    pairs: tuple[tuple[NDArray[Any], NDArray[Any]], ...] = ((got.codes, own.codes), (got.scales, own.scales), (got.zeros, own.zeros))
    return {name for name, (a, b) in zip(PARTS, pairs, strict=True) if not np.array_equal(a, b)}


def _plain(manifest: Manifest) -> bool:
    """Whether the weights are those that this edgekit's own quantization gives."""
    return manifest.calibration is None and manifest.producer == f"edgekit {__version__}"


def _judge(
    artifact: Artifact, model: Model, stored: Stored, same_source: bool, found: Mapping[str, _Found], digests: Mapping[str, str]
) -> tuple[list[str], str]:
    manifest, problems = artifact.manifest, []
    exact = same_source and _plain(manifest)
    rounded = same_source and manifest.scheme.method in IN_PLACE
    for name, one in found.items():
        error, _, own = one.sums
        where = f"{name} ({stored.where(name)} in {artifact.directory})"
        if exact and one.wrong:
            parts = " and ".join(part for part in PARTS if part in one.wrong)
            problems.append(f"weights of {where}: the {parts} are not those that {_name(model)} quantizes to")
        elif manifest.weights and digests.get(name) != manifest.weights.get(name):
            problems.append(f"weights of {where} are not those that its manifest says (their digest is another)")
        elif rounded and not error <= WORSE**2 * own:
            problems.append(f"weights of {where} are {np.sqrt(error / own):.3g} times as far from {_name(model)}'s as rounding explains")
    if exact:
        return problems, "equal to its model's, quantized again"
    return problems, "as far from its model's as rounding explains" if rounded else "those that its manifest says"


def _vectors(artifact: Artifact, model: Model, stored: Stored) -> list[str]:
    """Norms and biases, which are kept as they are but for the type of the file."""
    problems = []
    for name, shape in model.decoder.weight_shapes().items():
        if len(shape) != 1:
            continue
        got = stored.vector(name)
        if not np.array_equal(got, model.tensor(name).astype(got.dtype)):
            problems.append(f"weights of {name} ({stored.where(name)} in {artifact.directory}) are not {_name(model)}'s")
    return problems
