"""From a checkpoint to the files OpenVINO runs: openvino_model.xml and .bin, the tokenizer's, and openvino_genai's configuration."""

import importlib.util
import json
from pathlib import Path

from edgekit import strict_json
from edgekit.artifact import Scalar
from edgekit.companions import Companions, read_companions
from edgekit.conformance import text_vectors
from edgekit.engines.exported import Exported, Footprint
from edgekit.engines.openvino import weights
from edgekit.engines.openvino.footprint import running
from edgekit.engines.openvino.graph import build
from edgekit.engines.openvino.ir import Graph
from edgekit.engines.openvino.options import OpenvinoOptions, openvino_options
from edgekit.engines.openvino.tokenizer import Special, convert
from edgekit.errors import EngineMissing, TargetError
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import PLAIN, Quantizer
from edgekit.target import Target

NAME = "openvino_model"
CACHE_BYTES = {"float32": 4, "float16": 2, "uint8": 1}
REQUIRES = "2026.1"
TOKENIZER = 0.652
"""Of tokenizer.json: the data of openvino_genai's tokenizer and detokenizer, with 32,000 tokens (openvino-tokenizers 2026.4)."""
TOKENIZER_GRAPHS = 32_000
"""Bytes of their graphs, about."""


def check(model: Model, scheme: QuantScheme, target: Target) -> None:
    """Whether this model can be built for this target; reads no weight. Raises TargetError saying what stands against it, EngineMissing
    without openvino-tokenizers."""
    plan(model, scheme, target)
    if openvino_options(target).tokenizer and importlib.util.find_spec("openvino_tokenizers") is None:
        raise EngineMissing(
            f"target {target.name} needs openvino-tokenizers for openvino_genai's tokenizer, which is not installed; run: "
            "pip install 'edgekit[build,openvino]', or set tokenizer = false in the target's [options]"
        )


def plan(model: Model, scheme: QuantScheme, target: Target) -> tuple[Graph, weights.DataFile]:
    """The graph and where its weights will lie. Raises TargetError."""
    options = openvino_options(target)
    check_weights(options, scheme, f"target {target.name}")
    context = min(model.decoder.context, target.context)
    if options.device == "NPU":
        check_npu(options, model, context, f"target {target.name}")
    elif options.device == "GPU" and options.precision == "measured":
        raise TargetError(f'target {target.name}: options: precision is measured on CPUs only; set precision = "float16"')
    return build(model.decoder, scheme, context, options)


def check_weights(options: OpenvinoOptions, scheme: QuantScheme, where: str) -> None:
    """Raises TargetError where the device's form of weights cannot hold the scheme's: they are never changed to fit."""
    if options.symmetric and not scheme.linear.symmetric:
        raise TargetError(
            f"{where} stores 4-bit weights without zero points, and {scheme.name} has them; build with --scheme int4-sym-g128: these are "
            "other weights than other devices get (docs/openvino.md)"
        )
    if options.group not in (0, scheme.linear.group):
        raise TargetError(f"{where} takes 4-bit weights in groups of {options.group}, and {scheme.name} has {scheme.linear.group}")


def check_npu(options: OpenvinoOptions, model: Model, context: int, where: str) -> None:
    """Raises TargetError for what an NPU does not take."""
    if options.precision != "float16":
        raise TargetError(f'{where}: options: an NPU computes in float16; set precision = "float16"')
    if options.prompt < 1:
        raise TargetError(f"{where}: options: an NPU's graph needs a limit: prompt = 1024")
    if model.decoder.rope.is_long(context):
        # The plugin may cut a prompt into pieces, and the first would take the short factors.
        switch = model.decoder.rope.switch
        raise TargetError(f"{where}: on an NPU a LongRoPE model stays within its first {switch} tokens; build with --context {switch}")


def footprint(model: Model, scheme: QuantScheme, target: Target) -> Footprint:
    """The planned size of ``openvino_model.bin``; keys and values of every layer, in the precision the target asks for."""
    decoder = model.decoder
    graph, data = plan(model, scheme, target)
    options = openvino_options(target)
    cache = 2 * CACHE_BYTES[options.kv_cache] * decoder.layers * decoder.kv_heads * decoder.head_dim
    own, graphs = (TOKENIZER, TOKENIZER_GRAPHS) if options.tokenizer else (0.0, 0)
    return Footprint(graph.base + data.size, cache, graph=len(graph.xml) + graphs, tokenizer=own, running=running(data, decoder, options))


def export(
    model: Model, scheme: QuantScheme, target: Target, directory: Path, progress: Progress, quantizer: Quantizer = PLAIN
) -> Exported:
    """Writes the files into ``directory``. Raises TargetError as ``check`` does, CheckpointError from reading the weights, EngineError
    where openvino-tokenizers cannot convert the tokenizer."""
    graph, data = plan(model, scheme, target)
    options = openvino_options(target)
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    details: dict[str, Scalar] = {
        "device": options.device,
        "precision": options.precision,
        "dynamic_quantization": options.dynamic_quantization,
        "kv_cache": options.kv_cache,
    }
    if options.device == "NPU":
        context = min(model.decoder.context, target.context)
        # A model or a wish for less than twice the target's prompt: half of it, so that an answer fits as well.
        details |= {"prompt": min(options.prompt, context // 2), "parts": options.parts, "symmetric": options.symmetric}
    if options.tokenizer:
        details |= tokenizer(companions, directory)
    weights.write(data, model, directory / f"{NAME}.bin", graph.head, graph.base, progress, quantizer)
    (directory / f"{NAME}.xml").write_bytes(graph.xml)
    limit_generation(model, min(model.decoder.context, target.context), directory)
    return Exported(engine_requires={"openvino": REQUIRES}, bits_per_weight=data.bits_per_weight, details=details)


def tokenizer(companions: Companions, directory: Path) -> dict[str, str]:
    """Writes openvino_genai's tokenizer; says for the manifest where it encodes otherwise than the model's own.

    The session uses the model's own: what differs here is openvino_genai's input only.
    """
    vectors = text_vectors(companions).encode
    pad = companions.generation.get("pad_token_id")
    special = Special(companions.tokens.bos, companions.tokens.stop[0], pad if isinstance(pad, int) else None)
    encoded = convert(directory, special, [vector.text for vector in vectors])
    bos = [companions.tokens.bos] if companions.tokens.add_bos else []
    differing = [v.text for v, got in zip(vectors, encoded, strict=True) if v.text and got != [*bos, *v.ids]]
    return {"openvino_tokenizer": f"differs on {len(differing)} of {len(vectors)} texts, such as {differing[0]!r}"} if differing else {}


def limit_generation(model: Model, context: int, directory: Path) -> None:
    """openvino_genai would go on across the LongRoPE switch with keys that were rotated with the short factors: unless its caller asks
    for more, its sequences end there. It begins with the right factors on either side."""
    switch = model.decoder.rope.switch
    if switch is None or switch >= context:
        return
    path = directory / "generation_config.json"
    config = strict_json.load(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "max_length": switch}, indent=2) + "\n", encoding="utf-8", newline="\n")
