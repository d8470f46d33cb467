"""From a checkpoint to the files ONNX Runtime runs: model.onnx, model.onnx.data, genai_config.json."""

import json
from pathlib import Path

import onnx_ir as ir

from edgekit.companions import read_companions
from edgekit.engines.exported import Exported
from edgekit.engines.onnx import weights
from edgekit.engines.onnx.genai_config import genai_config
from edgekit.engines.onnx.graph import build
from edgekit.engines.onnx.options import onnx_options
from edgekit.errors import TargetError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import PLAIN, Quantizer
from edgekit.target import Target

FILE = "model.onnx"


def check(model: Model, scheme: QuantScheme, target: Target) -> None:
    """Whether this model can be built for this target; reads no weight. Raises TargetError saying what stands against it."""
    onnx_options(target)
    decoder = model.decoder
    for what, dims in (("a head", decoder.head_dim), ("the rotated part of a head", decoder.rope.dims)):
        if dims % 16:
            raise TargetError(
                f"target {target.name}: ONNX Runtime's GroupQueryAttention needs {what} to have a multiple of 16 dimensions; "
                f"{model.checkpoint.source.name} has {dims}. Build this model for a target with another engine (edge targets)."
            )


def export(
    model: Model, scheme: QuantScheme, target: Target, directory: Path, progress: Progress, quantizer: Quantizer = PLAIN
) -> Exported:
    """Writes the three files into ``directory``. Raises TargetError as ``check`` does, CheckpointError from reading the weights."""
    check(model, scheme, target)
    context = min(model.decoder.context, target.context)
    options = onnx_options(target)
    graph, data = build(model.decoder, scheme, context, options.accuracy_level)
    weights.write(data, model, directory, progress, quantizer)
    (directory / FILE).write_bytes(ir.to_proto(graph).SerializeToString(deterministic=True))
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    pad = companions.generation.get("pad_token_id")
    config = genai_config(model.decoder, context, FILE, companions.tokens, pad if isinstance(pad, int) else None)
    (directory / "genai_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
    windowed = any(window is not None and window < context for window in model.decoder.windows)
    return Exported(
        # 1.23: 8-bit GatherBlockQuantized. Up to 1.23 a window of W let a token see W + 1.
        engine_requires={"onnxruntime": "1.24" if windowed else "1.23"},
        bits_per_weight=data.bits_per_weight,
        details={"accuracy_level": options.accuracy_level, "kv_dtype": "float32"},
    )
