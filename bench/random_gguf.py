"""A random GGUF of Phi-3.5-mini's shapes for llama.cpp, in the mix of types that llama-quantize makes; no weights to convert.

    python bench/random_gguf.py q4_k_m CHECKPOINT /scratch/q4_k_m.gguf     # config and tokenizer of bench/synthetic.py's; needs gguf

Blocks of random bytes with small scales: how long a product takes depends on the types, not on the values. Which tensor gets which
type: llama.cpp's src/llama-quant.cpp, without an importance matrix.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Type = gguf.GGMLQuantizationType
SCALES = {Type.Q4_0: ((0, 0.004),), Type.Q4_K: ((0, 1e-4), (2, 1e-3)), Type.Q5_K: ((0, 1e-4), (2, 1e-3)), Type.Q6_K: ((208, 1.5e-5),)}
"""Where the float16 scales of a block lie, and a value that makes weights of about 0.02."""
POOL = 1 << 14  # blocks


def types(mix: str, name: str, layer: int, layers: int) -> Type:
    if name == "output":
        return Type.Q6_K
    if mix == "q4_0":
        return Type.Q4_0
    if name == "attn_qkv":
        return Type.Q5_K
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return Type.Q6_K if name == "ffn_down" and more else Type.Q4_K


def matrices(config: dict[str, int]) -> Iterator[tuple[str, str, int, tuple[int, int]]]:
    """Full name, kind, layer and shape."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "token_embd.weight", "token_embd", 0, (v, d)
    yield "output.weight", "output", 0, (v, d)
    for i in range(config["num_hidden_layers"]):
        for kind, shape in (("attn_qkv", (d + 2 * kv, d)), ("attn_output", (d, d)), ("ffn_up", (2 * f, d)), ("ffn_down", (d, f))):
            yield f"blk.{i}.{kind}.weight", kind, i, shape


def blocks(kind: Type, rng: np.random.Generator) -> NDArray[np.uint8]:
    """POOL random blocks, flat."""
    pool = rng.integers(0, 256, (POOL, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    for at, scale in SCALES[kind]:
        pool[:, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
    return pool.reshape(-1)


def describe(writer: gguf.GGUFWriter, config: dict[str, int], tokenizer: dict[str, object]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    model = tokenizer["model"]
    assert isinstance(model, dict)
    tokens = list(model["vocab"])
    unused = [f"<|unused{i}|>" for i in range(config["vocab_size"] - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.UNUSED] * len(unused))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))


def write(mix: str, checkpoint: Path, out: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(out, "phi3")
    describe(writer, config, tokenizer)
    pools: dict[Type, NDArray[np.uint8]] = {}
    plan: list[tuple[tuple[int, int], Type]] = []
    for name, kind, layer, (rows, columns) in matrices(config):
        chosen = types(mix, kind, layer, config["num_hidden_layers"])
        per, size = gguf.GGML_QUANT_SIZES[chosen]
        shape = (rows, columns // per * size)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), math.prod(shape), chosen)
        plan.append((shape, chosen))
        pools.setdefault(chosen, blocks(chosen, rng))
    vectors = [np.array(config["rope_scaling"][f"{kind}_factor"], np.float32) for kind in ("long", "short")]
    names = ["rope_factors_long.weight", "rope_factors_short.weight", "output_norm.weight"]
    names += [f"blk.{i}.{kind}_norm.weight" for i in range(config["num_hidden_layers"]) for kind in ("attn", "ffn")]
    vectors += [np.ones(config["hidden_size"], np.float32)] * (len(names) - 2)
    for name, vector in zip(names, vectors, strict=True):
        writer.add_tensor_info(name, vector.shape, vector.dtype, vector.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for shape, chosen in plan:
        writer.write_tensor_data(np.resize(pools[chosen], shape))
    for vector in vectors:
        writer.write_tensor_data(vector)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mix", choices=("q4_0", "q4_k_m"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    write(asked.mix, asked.checkpoint, asked.out)


if __name__ == "__main__":
    main()
