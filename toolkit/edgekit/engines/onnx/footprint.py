"""What ONNX Runtime takes when it runs an artifact. Constants were measured with onnxruntime 1.31 on Linux x86_64 (AVX2, 2 cores),
float32, by the resident set of fresh processes, over models of 3 M to 3.8 G parameters (bench/plan.py holds the result against that).
"""

from pathlib import Path

from edgekit.artifact import Manifest
from edgekit.engines.exported import Held, Running
from edgekit.engines.onnx.options import OnnxOptions
from edgekit.engines.onnx.session import CHUNK
from edgekit.engines.onnx_format.weights import DataFile, group_bytes
from edgekit.models.decoder import DecoderConfig

PROCESS = 84_000_000
"""Python, NumPy, tokenizers and ONNX Runtime with an empty model."""
TOKEN = 900
"""Bytes of the tokenizer for each token of the vocabulary."""
PACKED = 1.08
"""ONNX Runtime's MatMulNBits lays its weights out anew when it is loaded, and lets go of the file's pages, but for scales. Where edgekit's
takes its place (operator.py) they stay mapped, in a tenth less; which CPU a device has is not known here."""
WIDE = 9.2
"""Floats of activations for each token of a piece, in intermediate sizes: gate and up side by side, both apart, their product."""


def cache(decoder: DecoderConfig, width: int) -> int:
    """Bytes of each token's keys and values, of ``width`` bytes a number."""
    return 2 * width * decoder.layers * decoder.kv_heads * decoder.head_dim


def held(directory: Path, manifest: Manifest, decoder: DecoderConfig) -> Held:
    """Of an artifact, in ONNX Runtime GenAI or ONNX Runtime Web. Both compute a prompt at once (GenAI's chunks would mix LongRoPE's
    factors). At Phi-3.5-mini's widths onnxruntime-genai 0.18 was measured to take 0.83 of these activations (float32, 4,000 tokens)."""
    kept = str(manifest.engine.details.get("kv_dtype", "float32"))
    floats = 2 if kept == "float16" else 4
    weights = sum(info.bytes for name, info in manifest.files.items() if name.endswith(".data"))
    return Held(
        fixed=PROCESS + TOKEN * decoder.vocab_size + round(PACKED * weights),
        cache=cache(decoder, 1 if kept == "int8" else floats),
        activation=round(WIDE * decoder.intermediate_size * floats),
    )


def running(data: DataFile, decoder: DecoderConfig, options: OnnxOptions) -> Running:
    """For the planned file of this decoder."""
    embedding = next(m for m in data.matrices if m.weight == "embed_tokens")
    multiplied = [m for m in data.matrices if decoder.tied or m is not embedding]
    bytes_of = {id(m): m.shape[0] * sum(group_bytes(m.groups, m.format, data.floats)) for m in data.matrices}
    read = sum(bytes_of[id(m)] for m in multiplied)
    largest = max(m.shape[0] * group_bytes(m.groups, m.format, data.floats)[0] for m in multiplied)
    on_cpu = options.provider == "cpu"
    return Running(
        unit="cpu" if on_cpu else "gpu",
        measured=on_cpu,
        read=read,
        operations=2 * sum(m.shape[0] * m.shape[1] for m in multiplied),
        process=PROCESS + TOKEN * decoder.vocab_size,
        loaded=round(PACKED * read),
        mapped=bytes_of[id(embedding)],
        loading=round(PACKED * read) + largest,
        piece=CHUNK,
        activation=round(WIDE * decoder.intermediate_size * data.floats.itemsize),
        # CPU: 0.66 to 0.95 of what NumPy reads (docs/performance.md), 0.35 on cores that others use; of NumPy's float32 product 0.28 to
        # 0.45, for prompts up to 2.2, and 0.06 to 0.2 where one token attends to 1,024. GPU: as llama.cpp's on Apple's,
        # github.com/ggml-org/llama.cpp/discussions/4167.
        bandwidth=(0.35, 1.0) if on_cpu else (0.5, 0.95),
        compute=(0.25, 1.0) if on_cpu else (0.5, 1.0),
        attention=(0.04, 0.3) if on_cpu else (0.1, 1.0),
        prefill=(0.5, 2.5) if on_cpu else (0.2, 0.8),
        latency=(15e-6, 130e-6) if on_cpu else (10e-6, 100e-6),
    )
