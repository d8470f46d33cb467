"""Small random checkpoints in Hugging Face layout, one for each architecture and each thing that changes its maths.

    directory = make_checkpoint(tmp_path / "m", "phi3-longrope")              # bf16, gaussian weights, one file
    directory = make_checkpoint(tmp_path / "m", "llama3", grid=32, shards=3)  # every matrix on an INT4/INT8 grid, float16, three files

Nothing here needs PyTorch. ``VARIANTS`` names what there is; pass a ``Variant`` of your own for anything else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPECIAL = ["<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
WORDS = ["the", "and", "light", "turn", "on", "off", "hello", "lamp", "what", "is"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Variant:
    """What a checkpoint is made of: ``config`` is laid over the small config.json of its architecture (None writes null)."""

    model_type: str
    config: Mapping[str, object] = field(default_factory=dict)

    def config_json(self) -> dict[str, object]:
        return {**BASE, **ARCHITECTURE[self.model_type], **self.config}


BASE: dict[str, object] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
ARCHITECTURE: dict[str, dict[str, object]] = {
    "phi3": {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "rope_theta": 10000.0,
        "sliding_window": None,
        "rope_scaling": None,
    },
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "rope_theta": 1000000.0, "sliding_window": None},
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen2": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 96,
        "max_window_layers": 2,
    },
}


def long_factors(pairs: int, last: float) -> list[float]:
    """LongRoPE factors that rise from 1.05 to ``last``."""
    return [round(1.05 + (last - 1.05) * i / (pairs - 1), 4) for i in range(pairs)]


def longrope(pairs: int, kind: str = "longrope", key: str = "type") -> dict[str, object]:
    return {key: kind, "short_factor": long_factors(pairs, 1.4), "long_factor": long_factors(pairs, 6.0)}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 48, "rope_type": "llama3"}
SWITCH = 24  # original_max_position_embeddings of every LongRoPE variant here
WIDE: dict[str, object] = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
"""SmolLM2-135M's widths: 128 divides the inputs of down alone, 64 all."""
RAGGED: dict[str, object] = {"hidden_size": 80, "intermediate_size": 144, "num_attention_heads": 5, "num_key_value_heads": 1}

VARIANTS: dict[str, Variant] = {
    "phi3": Variant("phi3"),
    "phi3-window": Variant("phi3", {"sliding_window": 10}),
    "phi3-longrope": Variant("phi3", {"original_max_position_embeddings": SWITCH, "rope_scaling": longrope(16)}),
    "phi3-longrope-su": Variant(
        "phi3",
        {"original_max_position_embeddings": SWITCH, "rope_scaling": longrope(16, "su"), "num_key_value_heads": 4, "sliding_window": 2048},
    ),
    # As Phi-4-mini: only part of a head is rotated, embeddings tied.
    "phi3-longrope-partial-tied": Variant(
        "phi3",
        {
            "original_max_position_embeddings": SWITCH,
            "partial_rotary_factor": 0.5,
            "rope_scaling": longrope(8),
            "tie_word_embeddings": True,
            "sliding_window": 2048,
        },
    ),
    # As transformers 5 writes it.
    "phi3-longrope-v5": Variant(
        "phi3",
        {
            "original_max_position_embeddings": SWITCH,
            "rope_scaling": None,
            "rope_theta": None,
            "rope_parameters": {
                **longrope(8, key="rope_type"),
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": SWITCH,
            },
        },
    ),
    "phi3-longrope-factor": Variant(
        "phi3", {"original_max_position_embeddings": SWITCH, "rope_scaling": {**longrope(16), "attention_factor": 1.3}}
    ),
    "phi3-ragged": Variant("phi3", {**RAGGED, "original_max_position_embeddings": SWITCH, "rope_scaling": longrope(8)}),
    "mistral": Variant("mistral"),
    "mistral-window": Variant("mistral", {"sliding_window": 12}),
    "mistral-head-dim": Variant("mistral", {"head_dim": 64}),
    "llama": Variant("llama", {"num_key_value_heads": 4}),
    "llama3": Variant("llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True, "head_dim": 32}),
    "llama3-v5": Variant("llama", {"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}),
    "llama-linear": Variant("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama-ragged": Variant("llama", RAGGED),
    "llama-576": Variant("llama", {**WIDE, "tie_word_embeddings": True, "num_hidden_layers": 1}),
    "llama-192": Variant("llama", {"hidden_size": 192, "intermediate_size": 96, "head_dim": 32, "num_attention_heads": 6}),
    "qwen2": Variant("qwen2"),
    "qwen2-tied": Variant("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": Variant("qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
}

DEFAULT = {"rope_type": "default"}
# A variant, and keys that transformers ignores in it.
IGNORED: list[tuple[str, dict[str, object]]] = [
    ("llama", {"rope_scaling": {}}),
    ("llama", {"rope_scaling": {"type": "default"}}),
    ("llama", {"rope_scaling": {**DEFAULT, "factor": 4.0, "mrope_section": [4, 6, 6], "original_max_position_embeddings": 48}}),
    ("llama", {"rope_scaling": {"factor": 4.0}}),
    ("llama", {"original_max_position_embeddings": 24}),
    ("llama", {"partial_rotary_factor": 1.0}),
    ("llama", {"sliding_window": 16}),
    ("llama", {"sliding_window": 16, "use_sliding_window": False, "max_window_layers": 1}),
    ("llama", {"hidden_act": "swish"}),
    ("llama", {"pretraining_tp": 2, "attention_dropout": 0.1, "torch_dtype": "float16", "dtype": "bfloat16"}),
    ("llama", {"quantization_config": None, "compression_config": {"quant_method": "x"}}),
    ("llama", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}}),
    ("llama3", {"rope_scaling": {**LLAMA3, "attention_factor": 1.5, "beta_fast": 32}}),
    ("mistral-window", {"use_sliding_window": False, "max_window_layers": 1}),
    ("mistral", {"attention_bias": True, "mlp_bias": True}),
    ("phi3", {"attention_bias": True, "mlp_bias": True, "resid_pdrop": 0.1}),
    ("phi3", {"original_max_position_embeddings": 24, "rope_scaling": {**DEFAULT, "factor": 2.0}}),
    ("phi3", {"sliding_window": 262144, "layer_types": ["full_attention", "full_attention"]}),
    ("phi3-longrope", {"rope_scaling": {**longrope(16), "beta_fast": 32, "low_freq_factor": 2.0}}),
    ("qwen2", {"sliding_window": 12, "max_window_layers": 0}),
    ("qwen2", {"sliding_window": 0}),
    ("qwen2", {"sliding_window": -1}),
    ("qwen2", {"attention_bias": False, "mlp_bias": True}),
    ("qwen2", {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 6, 6]}}),
]


def make_checkpoint(
    directory: Path, variant: str | Variant, *, grid: int | None = None, shards: int = 1, dtype: str | None = None, seed: int = 0
) -> Path:
    """Write a checkpoint with tokenizer and chat template into ``directory`` and return it.

    grid:   a quantization group (32, 64, 128): every Linear weight is then ``(q - z) * s`` with q in 0..15 and s a float16 of at
            most 7 significant bits; embed_tokens and lm_head ``(q - z) * s`` with q in 0..255 and s of at most 3 bits. Every group
            holds both the lowest and the highest code, so that min/max quantization already finds the grid. Exact in F16.
    shards: number of safetensors files; with more than one an index is written.
    dtype:  BF16, F16 or F32; BF16 where not given, F16 with a grid (a grid is not exact in BF16).
    """
    chosen = VARIANTS[variant] if isinstance(variant, str) else variant
    dtype = dtype or ("BF16" if grid is None else "F16")
    rng = np.random.default_rng(seed)
    config = chosen.config_json()
    tensors = {name: random_weight(rng, name, shape, grid) for name, shape in hf_shapes(config).items()}
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    write_weights(directory, tensors, dtype, shards)
    write_tokenizer(directory)
    return directory


def hf_shapes(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that transformers would save for ``config``."""
    number = {k: v for k, v in config.items() if isinstance(v, int)}
    d, f, v = number["hidden_size"], number["intermediate_size"], number["vocab_size"]
    hd = number.get("head_dim") or d // number["num_attention_heads"]
    q, kv = number["num_attention_heads"] * hd, number["num_key_value_heads"] * hd
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d)}
    for i in range(number["num_hidden_layers"]):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.input_layernorm.weight": (d,), f"{at}.post_attention_layernorm.weight": (d,)}
        if config["model_type"] == "phi3":
            shapes |= {f"{at}.self_attn.qkv_proj.weight": (q + 2 * kv, d), f"{at}.mlp.gate_up_proj.weight": (2 * f, d)}
        else:
            shapes |= {f"{at}.self_attn.{p}_proj.weight": (n, d) for p, n in (("q", q), ("k", kv), ("v", kv))}
            shapes |= {f"{at}.mlp.gate_proj.weight": (f, d), f"{at}.mlp.up_proj.weight": (f, d)}
        if config["model_type"] == "qwen2":
            shapes |= {f"{at}.self_attn.{p}_proj.bias": (n,) for p, n in (("q", q), ("k", kv), ("v", kv))}
        shapes |= {f"{at}.self_attn.o_proj.weight": (d, q), f"{at}.mlp.down_proj.weight": (d, f)}
    shapes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    return shapes


def random_weight(rng: np.random.Generator, name: str, shape: tuple[int, ...], grid: int | None) -> NDArray[np.float32]:
    if len(shape) == 1:
        centre = 0.0 if name.endswith("bias") else 1.0
        # Sixteenths: exact in bf16 and float16.
        return (centre + np.round(rng.normal(0, 0.25, shape) * 16) / 16).astype(np.float32)
    fine = name.startswith(("model.embed_tokens", "lm_head"))
    if grid is not None:
        return on_grid(rng, (shape[0], shape[1]), grid, bits=8 if fine else 4)
    # Queries and keys large enough for attention to prefer some positions, so that a wrong RoPE or mask shows.
    return rng.normal(0, 1.3 / np.sqrt(shape[1]), shape).astype(np.float32)


def on_grid(rng: np.random.Generator, shape: tuple[int, int], group: int, bits: int) -> NDArray[np.float32]:
    """A matrix [N, K] of ``(q - z) * s`` in groups of ``group`` along K, exact in float16."""
    n, k = shape
    top = 2**bits - 1
    groups = -(-k // group)
    zeros = rng.integers(top // 3, top - top // 3 + 1, (n, groups, 1))
    # 4 bits: s = m * 2^-e with 64 <= m < 128. 8 bits: 4 <= m < 8. The exponent keeps activations near 1 whatever K is.
    m = rng.integers(64, 128, (n, groups, 1)) if bits == 4 else rng.integers(4, 8, (n, groups, 1))
    exponent = np.round(np.log2(1.3 / np.sqrt(k) / (m.mean() * top / 3.46)))
    rows = []
    for start in range(0, k, group):
        width = min(group, k - start)
        q = rng.integers(0, top + 1, (n, width))
        q[:, 0], q[:, -1] = 0, top
        g = start // group
        rows.append((rng.permuted(q, axis=1) - zeros[:, g]) * (m[:, g] * 2.0**exponent))
    weight = np.concatenate(rows, axis=1).astype(np.float32)
    assert (weight.astype(np.float16).astype(np.float32) == weight).all()
    return weight


def write_weights(directory: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str, shards: int) -> None:
    names = list(tensors)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return
    index: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        held = {name: tensors[name] for name in names[i::shards]}
        write_safetensors(directory / file, held, dtype)
        index |= dict.fromkeys(held, file)
    write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": 0}, "weight_map": index})


def stored(array: NDArray[np.float32], dtype: str) -> bytes:
    """The little-endian bytes of ``array`` as BF16 (round to nearest even), F16 or F32."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, dtype="<f4").view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return array.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: str = "F32") -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    at = 0
    for name, array in tensors.items():
        blob = stored(array, dtype)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    write_raw_safetensors(path, header, blobs)


def write_raw_safetensors(path: Path, header: object, blobs: Sequence[bytes]) -> None:
    """Any header with any bytes: what the tests of broken files are made with."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def write_tokenizer(directory: Path) -> None:
    """A byte-level BPE that knows a few words: any text can be encoded; ids 256.. are merges, then the special tokens."""
    symbols = byte_symbols()
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for spelled in (word, symbols[32] + word):
            pairs = [(spelled[:i], spelled[i]) for i in range(1, len(spelled))]
            merges += [pair for pair in pairs if pair not in merges]
    vocab = {s: i for i, s in enumerate([*symbols, *dict.fromkeys(a + b for a, b in merges)])}
    vocab = {s: i for s, i in vocab.items() if i < BASE["vocab_size"] - 8}  # type: ignore[operator]
    merges = [(a, b) for a, b in merges if a + b in vocab and a in vocab]
    special = {token: len(vocab) + i for i, token in enumerate(SPECIAL)}
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for t, i in special.items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab | special,
            "merges": [list(pair) for pair in merges],
        },
    }
    write_json(directory / "tokenizer.json", tokenizer)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "add_bos_token": False,
            "model_max_length": 96,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    stops = [special["<|endoftext|>"], special["<|end|>"]]
    write_json(directory / "generation_config.json", {"bos_token_id": special["<s>"], "eos_token_id": stops, "pad_token_id": stops[0]})
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    write_json(directory / "config.json", {"bos_token_id": special["<s>"], "eos_token_id": stops[0], "pad_token_id": stops[0]} | config)
