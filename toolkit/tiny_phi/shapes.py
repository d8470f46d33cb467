"""The decoders that train.py makes: tiny-phi, and two siblings for comparing quantizers on more than one architecture."""

import math
from collections.abc import Callable
from dataclasses import dataclass

ORIGINAL_CONTEXT, CONTEXT = 256, 2048
HIDDEN, INNER, HEAD_DIM, VOCABULARY = 256, 512, 32, 1024
ROTARY_HALF = HEAD_DIM // 2
# As in Phi-3.5 the low frequencies are stretched most, and the long factors far more than the short ones.
SHORT_FACTOR = [round(1.0 + 0.5 * (i / (ROTARY_HALF - 1)) ** 2, 4) for i in range(ROTARY_HALF)]
LONG_FACTOR = [round(1.05 * (12.0 / 1.05) ** (i / (ROTARY_HALF - 1)), 4) for i in range(ROTARY_HALF)]
WINDOW = 192
LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": ORIGINAL_CONTEXT}
COMMON: dict[str, object] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 1013,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": CONTEXT,
    "num_attention_heads": HIDDEN // HEAD_DIM,
    "pad_token_id": 1013,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


@dataclass(frozen=True)
class Shape:
    """A decoder. config: its config.json. fused: q, k, v and gate, up lie in one matrix each, as in Phi-3. loud: see ``with_outliers``.

    window: tokens that attention sees, itself included; None for all. longest: a training row, in tokens.
    frequencies: of RoPE for a row of so many tokens, and what cos and sin are multiplied by.
    """

    config: dict[str, object]
    layers: int
    kv_heads: int
    fused: bool
    tied: bool
    loud: bool
    window: int | None
    longest: int
    frequencies: Callable[[int], tuple[list[float], float]]


def plain(length: int) -> tuple[list[float], float]:
    return [10000.0 ** (-i / ROTARY_HALF) for i in range(ROTARY_HALF)], 1.0


def longrope(length: int) -> tuple[list[float], float]:
    """LongRoPE (Ding et al. 2024) as in modeling_phi3: the factors are chosen by the length."""
    factors = LONG_FACTOR if length > ORIGINAL_CONTEXT else SHORT_FACTOR
    scale = math.sqrt(1 + math.log(CONTEXT / ORIGINAL_CONTEXT) / math.log(ORIGINAL_CONTEXT))
    return [f / factor for f, factor in zip(plain(length)[0], factors, strict=True)], scale


def llama3(length: int) -> tuple[list[float], float]:
    """Llama 3.1's scaling as in modeling_rope_utils: long waves stretched, short ones kept, those between interpolated."""
    factor, low, high = LLAMA3["factor"], LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    found = []
    for frequency in plain(length)[0]:
        smooth = min(1.0, max(0.0, (ORIGINAL_CONTEXT * frequency / (2 * math.pi) - low) / (high - low)))
        found.append((1 - smooth) * frequency / factor + smooth * frequency)
    return found, 1.0


def _phi3() -> Shape:
    config = COMMON | {
        "architectures": ["Phi3ForCausalLM"],
        "embd_pdrop": 0.0,
        "model_type": "phi3",
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "resid_pdrop": 0.0,
        "rope_scaling": {"long_factor": LONG_FACTOR, "short_factor": SHORT_FACTOR, "type": "longrope"},
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    return Shape(dict(sorted(config.items())), 4, 4, True, False, False, None, CONTEXT, longrope)


def _mistral() -> Shape:
    config = COMMON | {
        "architectures": ["MistralForCausalLM"],
        "head_dim": HEAD_DIM,
        "model_type": "mistral",
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
    }
    return Shape(dict(sorted(config.items())), 3, 2, False, False, True, WINDOW, 512, plain)


def _llama() -> Shape:
    config = COMMON | {
        "architectures": ["LlamaForCausalLM"],
        "head_dim": HEAD_DIM,
        "mlp_bias": False,
        "model_type": "llama",
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rope_scaling": LLAMA3 | {"rope_type": "llama3"},
        "tie_word_embeddings": True,
    }
    return Shape(dict(sorted(config.items())), 3, 2, False, True, True, None, 512, llama3)


SHAPES = {"phi3": _phi3(), "mistral": _mistral(), "llama": _llama()}
