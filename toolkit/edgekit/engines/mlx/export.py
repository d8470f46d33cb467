"""From a checkpoint to what MLX loads: config.json and sharded safetensors. Needs no MLX and no Mac."""

import json
from pathlib import Path

from edgekit import strict_json
from edgekit.companions import read_companions
from edgekit.engines.exported import Exported, Footprint
from edgekit.engines.mlx import weights
from edgekit.engines.mlx.config import mlx_config, reach
from edgekit.engines.mlx.footprint import cache, running
from edgekit.engines.mlx.options import mlx_options
from edgekit.errors import TargetError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import PLAIN, Quantizer
from edgekit.target import Target

OWN_HEAD_DIM = ("llama", "mistral")
"""mlx-lm's classes of the others take head_dim from hidden_size and the number of heads."""


def check(model: Model, scheme: QuantScheme, target: Target) -> None:
    """Whether this model can be built for this target; reads no weight. Raises TargetError saying what stands against it."""
    plan(model, scheme, target)


def plan(model: Model, scheme: QuantScheme, target: Target) -> weights.Layout:
    """Where every weight will lie. Raises TargetError."""
    options, decoder = mlx_options(target), model.decoder
    if decoder.model_type not in OWN_HEAD_DIM and decoder.head_dim * decoder.heads != decoder.hidden_size:
        raise TargetError(
            f"target {target.name}: MLX's {decoder.model_type} has heads of hidden_size / num_attention_heads = "
            f"{decoder.hidden_size / decoder.heads:g} dimensions; {model.checkpoint.source.name} has {decoder.head_dim}. "
            "Build this model for a target with another engine (edge targets)."
        )
    return weights.plan(model, scheme, options.precision, f"target {target.name}")


def footprint(model: Model, scheme: QuantScheme, target: Target) -> Footprint:
    """The planned size of the safetensors; keys and values of every layer, in the precision of the activations."""
    decoder, width = model.decoder, 2 if mlx_options(target).precision == "float16" else 4
    layout = plan(model, scheme, target)
    return Footprint(layout.size, cache(decoder, width), running=running(layout, decoder, width))


def export(
    model: Model, scheme: QuantScheme, target: Target, directory: Path, progress: Progress, quantizer: Quantizer = PLAIN
) -> Exported:
    """Writes config.json and, where other loaders are not right for the whole context, tokenizer_config.json (in place of the
    checkpoint's), safetensors and their index into ``directory``. Raises TargetError as ``check``
    does, CheckpointError from reading the weights."""
    layout = plan(model, scheme, target)
    precision = mlx_options(target).precision
    weights.write(layout, model, directory, progress, quantizer)
    tokens = read_companions(model.checkpoint, model.decoder.vocab_size).tokens
    config = mlx_config(model, scheme, layout.formats, tokens, precision)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
    context = min(model.decoder.context, target.context)
    others = reach(model.decoder, context)
    if others.length < context:
        _limit_tokenizer(directory / "tokenizer_config.json", others.length)
    return Exported(
        engine_requires={"mlx": "0.31", "mlx-lm": "0.31"},
        bits_per_weight=layout.bits_per_weight,
        details={"kv_dtype": precision, "mlx_lm_tokens": others.length, "mlx_lm_limit": others.reason},
    )


def _limit_tokenizer(path: Path, tokens: int) -> None:
    """So that transformers' tokenizers, which mlx-lm uses, warn of a longer prompt. edgekit's own takes no notice."""
    config = strict_json.load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps({**config, "model_max_length": max(1, tokens)}, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
