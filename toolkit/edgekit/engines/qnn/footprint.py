"""What an artifact for a Qualcomm NPU takes when it runs. Nothing of this was measured on a device: sizes are those of the files,
constants are carried over from other engines, and speeds are a wide range around the few that others published.
"""

from edgekit.engines.exported import Running
from edgekit.engines.qnn.layout import BINARY, UNSHARED, Layout, Pipeline
from edgekit.models.decoder import DecoderConfig

PROCESS = 100_000_000
TOKEN = 1000
"""Bytes of the tokenizer for each token of the vocabulary."""
WIDE = 9.2
"""Floats of activations for each token of a chunk, in intermediate sizes; ONNX Runtime's."""
PACKED = 1.08
"""What the CPU multiplies with is laid out anew."""


def running(layout: Layout, decoder: DecoderConfig) -> Running:
    """For the planned parts of this decoder."""
    on_npu = sum(planned.weights for planned in layout.parts)
    factor = BINARY if layout.options.sharing else UNSHARED
    largest = int(factor * max(planned.weights for planned in layout.parts))
    matrices = [m for planned in layout.parts for m in planned.part.data.matrices]
    head = mapped = 0
    if isinstance(layout, Pipeline):
        sizes = {m.weight: m.shape[0] * m.shape[1] * m.format.bits_per_weight / 8 for m in layout.cpu.matrices}
        multiplied = "embed_tokens" if decoder.tied else "lm_head"
        head, mapped = int(sizes[multiplied]), 0 if decoder.tied else int(sizes["embed_tokens"])
        matrices += [m for m in layout.cpu.matrices if m.weight == multiplied]
    loaded = int(factor * on_npu) + int(PACKED * head)
    return Running(
        unit="npu",
        measured=False,
        read=on_npu + head,
        operations=2 * sum(m.shape[0] * m.shape[1] for m in matrices),
        process=PROCESS + TOKEN * decoder.vocab_size,
        loaded=loaded,
        mapped=mapped,
        loading=loaded + largest,
        piece=layout.options.chunk,
        activation=round(WIDE * decoder.intermediate_size * 2),
        # llama.cpp's Hexagon backend on a Snapdragon X Elite, Qwen3-4B in Q4_0: 4.6 tokens a second with the clock held down, 9.2 at
        # most, and 233 to 520 of a prompt (github.com/qualcomm/GenieX/pull/1447): 0.08 to 0.17 of the peak bandwidth. A graph that was
        # compiled as a whole may do better.
        bandwidth=(0.12, 0.7),
        compute=(0.1, 0.6),
        attention=(0.05, 0.5),
        prefill=(0.1, 0.6),
        latency=(20e-6, 300e-6),
    )
