"""What MLX takes when it runs an artifact. Nothing of this was measured on a Mac: sizes are those of the files, constants are carried
over from other engines.
"""

from pathlib import Path

from edgekit.artifact import Manifest
from edgekit.engines.exported import Held, Running
from edgekit.engines.mlx.weights import Layout
from edgekit.models.decoder import DecoderConfig

PROCESS = 100_000_000
TOKEN = 1000
"""Bytes of the tokenizer for each token of the vocabulary."""
WIDE = 9.2
"""Floats of activations for each token of a piece, in intermediate sizes; ONNX Runtime's."""
PIECE = 512
"""As model.py cuts a prompt, and mlx-swift-lm unless it is told otherwise (GenerateParameters.prefillStepSize)."""


def cache(decoder: DecoderConfig, width: int) -> int:
    """Bytes of each token's keys and values, of ``width`` bytes a number."""
    return 2 * width * decoder.layers * decoder.kv_heads * decoder.head_dim


def held(directory: Path, manifest: Manifest, decoder: DecoderConfig) -> Held:
    """Of an artifact, in mlx-swift-lm."""
    width = 2 if manifest.engine.details.get("kv_dtype") == "float16" else 4
    weights = sum(info.bytes for name, info in manifest.files.items() if name.endswith(".safetensors"))
    fixed = PROCESS + TOKEN * decoder.vocab_size + weights
    return Held(fixed, cache(decoder, width), round(WIDE * decoder.intermediate_size * width), at_once=PIECE)


def running(layout: Layout, decoder: DecoderConfig, width: int) -> Running:
    """For the planned files of this decoder; ``width`` of a float of activations, in bytes."""
    multiplied = [m for m in layout.matrices if decoder.tied or m.weight != "embed_tokens"]
    kept = {name for m in multiplied for name in (m.codes, m.scales, m.biases)}
    return Running(
        unit="gpu",
        measured=False,
        read=sum(layout.entries[name].bytes for name in kept),
        operations=2 * sum(m.shape[0] * m.shape[1] for m in multiplied),
        process=PROCESS + TOKEN * decoder.vocab_size,
        loaded=layout.size,
        mapped=0,
        loading=layout.size,
        piece=PIECE,
        activation=round(WIDE * decoder.intermediate_size * width),
        # Of the peak, llama.cpp's 4-bit kernels decode at 0.58 to 0.8: github.com/ggml-org/llama.cpp/discussions/4167
        bandwidth=(0.6, 0.95),
        compute=(0.5, 1.0),
        attention=(0.1, 1.0),
        prefill=(0.2, 0.8),
        latency=(10e-6, 100e-6),
    )
