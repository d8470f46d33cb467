"""From a checkpoint to the files ONNX Runtime runs: model.onnx, model.onnx.data, genai_config.json."""

import json
from collections.abc import Sequence
from pathlib import Path

from edgekit.companions import read_companions
from edgekit.engines.exported import Exported, Footprint, Lossy
from edgekit.engines.onnx.footprint import cache, running
from edgekit.engines.onnx.genai_config import genai_config
from edgekit.engines.onnx.graph import FILE, build
from edgekit.engines.onnx.kernels import check_kernels
from edgekit.engines.onnx.kv_cache import Scales, fit_scales
from edgekit.engines.onnx.options import OnnxOptions, onnx_options
from edgekit.engines.onnx.providers import PROVIDERS
from edgekit.engines.onnx_format import weights
from edgekit.engines.onnx_format.genai_tokenizer import compared
from edgekit.engines.onnx_format.proto import Graph, serialize
from edgekit.errors import TargetError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import PLAIN, Quantizer
from edgekit.target import Target

CONFIG = 1150
"""Bytes of genai_config.json, about."""
INT8_CACHE = "1.31"
"""The onnxruntime that was found to compute with one (its kernels came with pull requests 28576 and 28578)."""


def check(model: Model, scheme: QuantScheme, target: Target) -> None:
    """Whether this model can be built for this target; reads no weight. Raises TargetError saying what stands against it."""
    plan(model, scheme, target)


def plan(model: Model, scheme: QuantScheme, target: Target, scales: Sequence[Scales] = ()) -> tuple[Graph, weights.DataFile]:
    """The graph and where its weights will lie, checked against what the provider's kernels take. scales: of an INT8 cache, needed to write
    them. Raises TargetError."""
    options = onnx_options(target)
    decoder = model.decoder
    for what, dims in (("a head", decoder.head_dim), ("the rotated part of a head", decoder.rope.dims)):
        if dims % 16:
            raise TargetError(
                f"target {target.name}: ONNX Runtime's GroupQueryAttention needs {what} to have a multiple of 16 dimensions; "
                f"{model.checkpoint.source.name} has {dims}. Build this model for a target with another engine (edge targets)."
            )
    graph, data = build(decoder, scheme, min(decoder.context, target.context), options, scales)
    check_kernels(graph, options, f"target {target.name}")
    return graph, data


def footprint(model: Model, scheme: QuantScheme, target: Target) -> Footprint:
    """The planned size of ``model.onnx.data``; keys and values of every layer."""
    decoder = model.decoder
    graph, data = plan(model, scheme, target)
    options = onnx_options(target)
    size = len(serialize(graph)) + CONFIG
    lossy = None
    if options.kv_cache == "int8":
        lossy = Lossy("its INT8 KV cache", {"onnxruntime": INT8_CACHE}, "leave kv_cache out of the target's [options]")
    return Footprint(data.size, cache(decoder, options.cached.itemsize), graph=size, running=running(data, decoder, options), lossy=lossy)


def export(
    model: Model, scheme: QuantScheme, target: Target, directory: Path, progress: Progress, quantizer: Quantizer = PLAIN
) -> Exported:
    """Writes the three files into ``directory``. Raises TargetError as ``check`` does, CheckpointError from reading the weights."""
    options, companions = onnx_options(target), read_companions(model.checkpoint, model.decoder.vocab_size)
    int8 = options.kv_cache == "int8"
    scales = fit_scales(model, scheme, companions, quantizer, progress) if int8 else []
    graph, data = plan(model, scheme, target, scales)
    context = min(model.decoder.context, target.context)
    weights.write(data, model, directory, progress, quantizer)
    (directory / FILE).write_bytes(serialize(graph))
    pad = companions.generation.get("pad_token_id")
    config = genai_config(model.decoder, context, FILE, companions.tokens, pad if isinstance(pad, int) else None, options.provider)
    (directory / "genai_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
    windowed = any(window is not None and window < context for window in model.decoder.windows)
    return Exported(
        engine_requires=requires(options, windowed=windowed),
        bits_per_weight=data.bits_per_weight,
        details={
            "accuracy_level": options.accuracy_level,
            "kv_dtype": "int8" if int8 else options.precision,
            "provider": options.provider,
            **compared(companions, directory),
        },
    )


def requires(options: OnnxOptions, *, windowed: bool) -> dict[str, str]:
    """The version of ``onnxruntime`` (the module, whichever package brings it) and, on a device, that package."""
    if options.provider == "cpu":
        # 1.23: 8-bit GatherBlockQuantized. Up to 1.23 a window of W let a token see W + 1.
        if options.kv_cache == "int8":
            return {"onnxruntime": INT8_CACHE}
        return {"onnxruntime": "1.24" if windowed else "1.23"}
    # 1.24: which provider an operator was put on can be asked, and no device's operator silently runs on the CPU. The plug-in: 1.24.4.
    package = PROVIDERS[options.provider].package
    return {"onnxruntime": "1.24.4" if options.provider == "webgpu" else "1.24"} | ({} if package == "onnxruntime" else {package: "0"})
