"""``genie_config.json``, by which Genie opens an artifact: ``genie-t2t-run -c genie_config.json`` in its directory.

Its schema is in libGenie itself (QAIRT 2.51). Sampling there is greedy; an app sets its own.
"""

from edgekit.artifact import TokenInfo
from edgekit.models.decoder import DecoderConfig, Rope

FILE = "genie_config.json"
THREADS, CORES = 2, "0xff"
"""Of the CPU, which prepares inputs and moves keys and values: on any of eight cores."""


def genie_config(decoder: DecoderConfig, context: int, tokens: TokenInfo, binary: str) -> dict[str, object]:
    """The content of the file. binary: with the graphs of all layers."""
    htp = {
        "version": 1,
        "use-mmap": True,
        "spill-fill-bufsize": 0,
        "mmap-budget": 0,
        "cpu-mask": CORES,
        "poll": False,
        "kv-dim": decoder.head_dim,
        "allow-async-init": False,
    }
    return {
        "dialog": {
            "version": 1,
            "type": "basic",
            # -1: a prompt is taken as it is. Else Genie puts a first token before it, where the chat template has done so already.
            "context": {
                "version": 1,
                "size": context,
                "n-vocab": decoder.vocab_size,
                "bos-token": -1,
                "eos-token": list(tokens.stop),
            },
            "sampler": {"version": 1, "seed": 0, "temp": 1.0, "top-k": 1, "top-p": 1.0},
            "tokenizer": {"version": 1, "path": "tokenizer.json"},
            "engine": {
                "version": 1,
                "n-threads": THREADS,
                "backend": {"version": 1, "type": "QnnHtp", "QnnHtp": htp},
                "model": {
                    "version": 1,
                    "type": "binary",
                    "binary": {"version": 1, "ctx-bins": [binary]},
                    "positional-encoding": positions(decoder.rope, context),
                },
            },
        }
    }


def positions(rope: Rope, context: int) -> dict[str, object]:
    """The model's very frequencies, whatever made them, in the one form of Genie's that takes any: LongRoPE's. Frequency i is there
    1 / (factor i * theta ** (2i / dims)), and cos and sin are scaled by sqrt(1 + ln(factor) / ln(original)). The long factors, which
    Genie would take beyond ``original``, are the short ones: no context reaches there (``layout.check_genie``)."""
    original = max(context, 2) if rope.switch is None else rope.switch
    factors = [1 / frequency for frequency in rope.inv_freq]
    scaling = {
        "rope-type": "longrope",
        "factor": float(original) ** (rope.scale**2 - 1),
        "original-max-position-embeddings": original,
        "short-factor": factors,
        "long-factor": factors,
    }
    return {"type": "rope", "rope-dim": rope.dims // 2, "rope-theta": 1, "rope-scaling": scaling}
