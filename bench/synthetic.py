"""Random checkpoints in bf16, with a tokenizer that covers the vocabulary: Phi-3.5-mini's, Mistral-7B's or TinyLlama's exact shapes, and
two smaller ones.

    python bench/synthetic.py phi-3.5-mini /scratch/phi        # 7.6 GB in two shards
    python bench/synthetic.py mistral-7b /scratch/m --layers 2

Speed and memory depend on shapes, not on what a model knows. The values are Gaussian, as those of trained weights nearly are, since
a search that finds nothing to gain might run faster. Written as fast as the disk takes it, in 100 MB of memory, without PyTorch.
"""

import argparse
import itertools
import json
import math
import string
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from checkpoints import ARCHITECTURE, CHAT_TEMPLATE, byte_symbols, hf_shapes, longrope, write_json  # noqa: E402

SHARD = 5_000_000_000  # bytes, as the hub cuts them
POOL = (1 << 24) + 43  # values; odd, so that no row of a matrix begins where another does
STD = 0.02

MODELS: dict[str, dict[str, object]] = {
    "phi-3.5-mini": {
        **ARCHITECTURE["phi3"],
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "sliding_window": 262144,
        "rope_scaling": longrope(48),
    },
    "mistral-7b": {
        **ARCHITECTURE["mistral"],
        "vocab_size": 32768,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
    },
    # TinyLlama's own shapes: 1.1 G parameters
    "llama-1b": {
        **ARCHITECTURE["llama"],
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
    },
    "llama-300m": {
        **ARCHITECTURE["llama"],
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
    "llama-50m": {
        **ARCHITECTURE["llama"],
        "vocab_size": 32000,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
    },
}
COMMON: dict[str, object] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "attention_dropout": 0.0,
    "initializer_range": STD,
    "use_cache": True,
}
SPECIAL = ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def make(directory: Path, name: str, *, layers: int | None = None, seed: int = 0) -> int:
    """Writes the checkpoint ``name`` (of MODELS; ``layers`` instead of its own) and returns the bytes of its weights."""
    config = {**COMMON, **MODELS[name]}
    if layers is not None:
        config["num_hidden_layers"] = layers
    directory.mkdir(parents=True, exist_ok=True)
    vocab = config["vocab_size"]
    assert isinstance(vocab, int)
    ids = write_tokenizer(directory, vocab)
    stops = [ids["<|endoftext|>"], ids["<|end|>"]]
    special = {"bos_token_id": ids["<s>"], "eos_token_id": stops, "pad_token_id": stops[0]}
    write_json(directory / "config.json", {**config, **special, "eos_token_id": stops[0]})
    write_json(directory / "generation_config.json", special)
    return write_weights(directory, hf_shapes(config), seed)


def write_weights(directory: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> int:
    rng = np.random.default_rng(seed)
    pool = bf16(rng.standard_normal(POOL, dtype=np.float32) * np.float32(STD))
    cut = list(shards(shapes))
    weight_map: dict[str, str] = {}
    for i, names in enumerate(cut):
        file = f"model-{i + 1:05d}-of-{len(cut):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in names:
            end = at + 2 * math.prod(shapes[name])
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (directory / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                for piece in values(shapes[name], pool, int(rng.integers(POOL))):
                    out.write(piece.data)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    return total


def shards(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """The names, in order, in runs of at most SHARD bytes."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        more = 2 * math.prod(shape)
        if names and size + more > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def values(shape: tuple[int, ...], pool: NDArray[np.uint16], start: int) -> Iterator[NDArray[np.uint16]]:
    """The bf16 bits of a tensor: ones for a norm, else the pool from ``start`` on, round and round."""
    left = math.prod(shape)
    if len(shape) == 1:
        yield bf16(np.ones(left, np.float32))
        return
    while left:
        piece = pool[start : start + left]
        yield piece
        left -= piece.size
        start = 0


def bf16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bfloat16, rounded to nearest (halves up: of no matter here)."""
    return ((array.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2")


def write_tokenizer(directory: Path, vocab_size: int) -> dict[str, int]:
    """A byte-level BPE that fills the vocabulary with runs of two and three letters; returns the ids of its special tokens."""
    symbols = byte_symbols()
    letters = string.ascii_lowercase
    pairs = list(itertools.product((symbols[32], *letters), letters))
    merges = [*pairs, *((a + b, c) for (a, b), c in itertools.product(pairs, letters))]
    merges += [(a, b + c) for a, (b, c) in itertools.product(string.ascii_uppercase, itertools.product(letters, letters))]
    merges = merges[: vocab_size - len(symbols) - len(SPECIAL)]
    vocab = {token: i for i, token in enumerate([*symbols, *(a + b for a, b in merges)])}
    special = {token: len(vocab) + i for i, token in enumerate(SPECIAL)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    off = {key: False for key in ("fuse_unk", "byte_fallback", "ignore_merges")}
    none = {key: None for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")}
    model = {"type": "BPE", **off, **none, "vocab": vocab | special, "merges": [list(pair) for pair in merges]}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for token, i in special.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    write_json(directory / "tokenizer.json", tokenizer)
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(directory / "tokenizer_config.json", {**names, "add_bos_token": False, "chat_template": CHAT_TEMPLATE})
    return special


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    print(make(arguments.directory, arguments.model, layers=arguments.layers))


if __name__ == "__main__":
    main()
