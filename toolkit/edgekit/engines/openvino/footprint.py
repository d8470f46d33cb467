"""What OpenVINO takes when it runs an artifact. Constants of the CPU were measured with OpenVINO 2026.4 on Linux x86_64 (AVX2, 2
cores), over models of 3 M to 1.1 G parameters, by the resident set of fresh processes; those of GPU and NPU are carried over.
"""

from edgekit.engines.exported import Running
from edgekit.engines.openvino.options import OpenvinoOptions
from edgekit.engines.openvino.weights import DataFile, sizes
from edgekit.models.decoder import DecoderConfig

PROCESS = 150_000_000
"""Python, NumPy, tokenizers, OpenVINO and its plugin with an empty model."""
TOKEN = 1000
"""Bytes of the tokenizer for each token of the vocabulary."""
PACKED = 1.04
"""Every weight is laid out anew by the first inference, and the file's pages let go (warmup.py)."""
WIDE = 17.5
"""Floats of activations for each token of a piece, in intermediate sizes."""
PIECE = 512
"""As session.py cuts a prompt."""


def running(data: DataFile, decoder: DecoderConfig, options: OpenvinoOptions) -> Running:
    """For the planned file of this decoder."""
    bytes_of = [(m, sum(sizes(m.shape, m.format, signed=m.zeros is None))) for m in data.matrices]
    multiplied = [(m, size) for m, size in bytes_of if decoder.tied or m.weight != "embed_tokens"]
    total = sum(size for _, size in bytes_of)
    on_cpu = options.device == "CPU"
    return Running(
        unit={"CPU": "cpu", "GPU": "gpu", "NPU": "npu"}[options.device],  # type: ignore[arg-type]
        measured=on_cpu,
        read=sum(size for _, size in multiplied),
        operations=2 * sum(m.shape[0] * m.shape[1] for m, _ in multiplied),
        process=PROCESS + TOKEN * decoder.vocab_size,
        loaded=round(PACKED * total),
        mapped=0,
        loading=round(PACKED * total),
        piece=options.prompt or PIECE,
        activation=round(WIDE * decoder.intermediate_size * (4 if on_cpu else 2)),
        # CPU, of what NumPy reads: 0.28 with AVX2 (its kernels are written for AVX-512; edgekit's own 0.8) and 0.95 with AVX-512 VNNI; of
        # NumPy's float32 product edgekit's own 2.2 for prompts, and 0.55 in attention (docs/performance.md).
        bandwidth=(0.2, 1.0) if on_cpu else (0.5, 0.95),
        compute=(0.15, 1.0) if on_cpu else (0.5, 1.0),
        attention=(0.04, 0.6) if on_cpu else (0.1, 1.0),
        prefill=(0.25, 2.5) if on_cpu else (0.2, 0.8),
        latency=(15e-6, 130e-6) if on_cpu else (10e-6, 100e-6),
    )
