"""How a model is cut into parts for an NPU, and whether they fit it: all from shapes, before the long job."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.engines.onnx_format.proto import DataType, Graph
from edgekit.engines.onnx_format.weights import DataFile
from edgekit.engines.qnn import genie
from edgekit.engines.qnn.graph import Part, build, effective
from edgekit.engines.qnn.options import QnnOptions, qnn_options
from edgekit.engines.qnn.socs import MEMORY
from edgekit.engines.qnn.stages import build_stages
from edgekit.errors import OutputError, TargetError
from edgekit.models import Model
from edgekit.quant.scheme import Format, QuantScheme
from edgekit.target import Target

PROMPT, TOKEN = "prompt", "token"
BINARY = 1.4
"""Bytes of a shared binary for each byte of its weights: 644 MB of 470 with 8 layers of Phi-3.5; two of them unshared, 2.2."""
UNSHARED = 2.3
COMPILER = 8.0
"""Bytes of memory that the compiler takes for each byte of a part's weights: 3.2 GB of 0.47 with 8 layers of Phi-3.5."""
COMPILER_BASE = 1_000_000_000
PART_DATA = "part.data"
SMALL = 600_000_000
"""Bytes of 8-bit weights of all layers. One file of a part holds them all, and so does the memory that quantizes them."""


@dataclass(frozen=True)
class PlannedPart:
    """graphs: by PROMPT and TOKEN. weights: their bytes as the NPU gets them."""

    part: Part
    graphs: dict[str, Graph]
    weights: int

    @property
    def layers(self) -> str:
        return f"layers {self.part.first} to {self.part.last - 1}"

    @property
    def memory(self) -> int:
        """Bytes that the compiler takes for it, about."""
        return COMPILER_BASE + int(COMPILER * self.weights)


@dataclass(frozen=True)
class Layout:
    """Everything on the NPU, before a weight is read."""

    options: QnnOptions
    context: int
    parts: tuple[PlannedPart, ...]

    @property
    def files(self) -> list[DataFile]:
        return [planned.part.data for planned in self.parts]

    @property
    def size(self) -> int:
        """Bytes of the artifact, about."""
        factor = BINARY if self.options.sharing else UNSHARED
        return int(factor * sum(planned.weights for planned in self.parts))

    @property
    def bits_per_weight(self) -> float:
        counts = [sum(m.shape[0] * m.shape[1] for m in file.matrices) for file in self.files]
        return sum(file.bits_per_weight * count for file, count in zip(self.files, counts, strict=True)) / sum(counts)


@dataclass(frozen=True)
class Pipeline(Layout):
    """For onnxruntime-genai: with what the CPU computes."""

    embeddings: Graph
    lm_head: Graph
    cpu: DataFile

    @property
    def files(self) -> list[DataFile]:
        return [self.cpu, *super().files]

    @property
    def size(self) -> int:
        return self.cpu.size + super().size


def plan(model: Model, scheme: QuantScheme, target: Target) -> Pipeline:
    """Raises TargetError saying what does not fit the chip."""
    options, context, where = settled(model, scheme, target)
    if options.activations == "uint16":
        check_small(model, options, where)
    parts = cut(model, scheme, context, options, build, where)
    embeddings, lm_head, cpu = build_stages(model.decoder, scheme, context, len(parts))
    return Pipeline(options, context, parts, embeddings, lm_head, cpu)


def settled(model: Model, scheme: QuantScheme, target: Target) -> tuple[QnnOptions, int, str]:
    """The options, the context, and the target for messages."""
    options, context, where = qnn_options(target), min(model.decoder.context, target.context), f"target {target.name}"
    chip = options.chip
    if not chip.float16 and options.activations == "float16":
        raise TargetError(f'{where}: the NPU of {chip.name} (HTP v{chip.arch}) computes no float16; set activations = "uint16"')
    check_context(context, options, where)
    check_formats(model, scheme, where)
    return options, context, where


def cut(
    model: Model, scheme: QuantScheme, context: int, options: QnnOptions, build: Callable[[Part, int], Graph], where: str
) -> tuple[PlannedPart, ...]:
    """Even parts: 32 layers by 8, but 33 by 7, 7, 7, 6, 6. Raises TargetError for one that the chip's memory or this build cannot hold."""
    decoder = model.decoder
    count = -(-decoder.layers // options.layers)
    bounds = [round(i * decoder.layers / count) for i in range(count + 1)]
    parts = []
    for i in range(count):
        part = Part(decoder, scheme, context, i, bounds[i], bounds[i + 1], DataFile(PART_DATA, DataType.FLOAT16))
        graphs = {PROMPT: build(part, options.chunk), TOKEN: build(part, 1)}
        parts.append(PlannedPart(part, graphs, part.data.size if options.activations == "float16" else bytes_in_integers(part)))
        check_memory(parts[-1], options, where)
    return tuple(parts)


def plan_genie(model: Model, scheme: QuantScheme, target: Target) -> Layout:
    """A bundle for Genie: everything in one part. Raises TargetError saying what does not fit the chip, or Genie."""
    options, context, where = settled(model, scheme, target)
    check_genie(model, scheme, context, options, where)
    return Layout(options, context, cut(model, scheme, context, options, genie.build, where))


def check_genie(model: Model, scheme: QuantScheme, context: int, options: QnnOptions, where: str) -> None:
    """What Genie computes itself, and how it opens binaries."""
    decoder, needs = model.decoder, f'{where}: runtime = "genie"'
    if options.activations != "float16":
        raise TargetError(f"{needs} is for NPUs that compute float16; leave runtime out")
    if decoder.layers > options.layers:
        # It would take them in the order of names, which are hashes that the compiler chooses.
        raise TargetError(
            f"{needs} needs all layers in one part, for Genie takes several in an order that cannot be set here: set layers = "
            f"{decoder.layers} in the target's [options], or leave runtime out"
        )
    if context <= options.chunk:
        raise TargetError(f"{needs} needs a context of more than a chunk of {options.chunk} tokens, found {context}")
    if decoder.rope.is_long(context):
        raise TargetError(
            f"{needs}: Genie has one set of LongRoPE factors for all sequences, and this model changes them beyond {decoder.rope.switch} "
            f"tokens: build with --context {decoder.rope.switch} or less"
        )
    window = next((w for w in decoder.windows if effective(w, context) is not None), None)
    if window is not None:
        raise TargetError(f"{needs}: Genie has no mask for a sliding window of {window} tokens: build with --context {window} or less")
    group = scheme.format_for("lm_head", decoder.hidden_size).group
    if decoder.hidden_size % group:
        raise TargetError(
            f"{needs}: the NPU takes whole groups only, and lm_head has {decoder.hidden_size} weights a row in groups of {group}"
        )


def check_context(context: int, options: QnnOptions, where: str) -> None:
    """A padded prompt must lie within the cache."""
    if context % options.chunk:
        least = context // options.chunk * options.chunk
        advice = f"build with --context {least}" if least else f"the chunk is larger than the context of {context}: set a smaller one"
        raise TargetError(
            f"{where}: the NPU takes prompts {options.chunk} tokens at a time, and a context of {context} is no multiple: {advice}"
        )


def check_formats(model: Model, scheme: QuantScheme, where: str) -> None:
    """What HTP's MatMulNBits takes (docs/qnn.md)."""
    for name, shape in model.decoder.weight_shapes().items():
        if len(shape) != 2 or not name.startswith("layers."):
            continue
        fmt: Format = scheme.format_for(name, shape[1])
        if shape[1] % fmt.group:
            raise TargetError(
                f"{where}: the NPU takes whole groups only, and {name} has {shape[1]} weights a row in groups of {fmt.group}: "
                "build this model for a target with another engine (edge targets)"
            )


def bytes_in_integers(part: Part) -> int:
    """A byte for each weight; the scales by row are nothing beside them."""
    return sum(m.shape[0] * m.shape[1] for m in part.data.matrices)


def check_small(model: Model, options: QnnOptions, where: str) -> None:
    """What the form of integers.py is for."""
    shapes = model.decoder.weight_shapes()
    weights = sum(shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2 and name.startswith("layers."))
    if weights > SMALL:
        raise TargetError(
            f"{where}: the NPU of {options.soc} takes weights of 8 bits: {weights / 1e6:,.0f} MB for {model.checkpoint.source.name}, and "
            f"{SMALL / 1e6:,.0f} MB is the most that is built for it; take a smaller model, or a chip with float16 (edge targets)"
        )


def check_memory(planned: PlannedPart, options: QnnOptions, where: str) -> None:
    """Weights and cache of one part against what one compiled file may use."""
    part = planned.part
    decoder, layers = part.decoder, part.last - part.first
    cache = 4 * layers * decoder.kv_heads * decoder.head_dim * part.context
    weights = int(BINARY * planned.weights)
    if weights + cache > MEMORY:
        room = max(0, (MEMORY - weights) // (cache // part.context) // options.chunk * options.chunk)
        advice = f"build with --context {room}" if room >= options.chunk else fewer_layers(options)
        raise TargetError(
            f"{where}: {planned.layers} take {weights / 1e6:,.0f} MB and their KV cache for {part.context:,} tokens {cache / 1e6:,.0f} MB; "
            f"one part may use {MEMORY / 1e6:,.0f} MB on the NPU: {advice}"
        )
    if planned.memory > options.memory_mb * 1_000_000:
        raise TargetError(
            f"{where}: compiling {planned.layers} takes about {planned.memory / 1e9:.1f} GB of memory, options.memory_mb allows "
            f"{options.memory_mb / 1e3:.1f} GB: allow more, or {fewer_layers(options)}"
        )


def fewer_layers(options: QnnOptions) -> str:
    """What to do about a part that is too large."""
    if options.runtime == "genie":
        return "take a smaller model, or leave out runtime, which needs all layers in one part"
    return "set fewer layers a part in the target's [options]"


def check_machine(layout: Layout, directory: Path) -> None:
    """Whether this machine can do the job. Raises OutputError (disk) and TargetError (memory)."""
    # Beside the artifact: one part's weights, and its binaries before they are moved.
    need = layout.size + int((1 + BINARY) * max(planned.weights for planned in layout.parts))
    free = shutil.disk_usage(directory).free
    if need > free:
        raise OutputError(
            f"compiling takes about {need / 1e6:,.0f} MB beside {directory}, which has {free / 1e6:,.0f} MB free; "
            "free some space or choose another place: --out DIR"
        )
    memory, available = max(planned.memory for planned in layout.parts), available_memory()
    if available is not None and memory > available:
        raise TargetError(
            f"compiling takes about {memory / 1e9:.1f} GB of memory, and this machine has {available / 1e9:.1f} GB available; close other "
            f"programs, or {fewer_layers(layout.options)}"
        )


def available_memory() -> int | None:
    """Bytes that can be used without swapping; None where that is not known."""
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return None
    path = Path("/proc/meminfo")
    if path.exists():
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
