"""Tokenizer folders that declare their tokens in the ways that checkpoints do, for comparison with transformers."""

from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from checkpoints import write_json, write_tokenizer

SPECIAL = ["<unk>", "<s>", "<|end|>", "<|user|>"]
HELD = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
TYPED = {"__type": "AddedToken", **FLAGS, "normalized": True}
TEXTS = (
    "hello <|tool|>world<|end|>",
    "a <|x|>  b<|y|> c<|z|>d",
    " <|x|><|x|> <|X|> [PAD]hello[PAD]",
    "<s>hi</s><|endoftext|><|user|>\nturn on the light<|y|>",
    "naïve <|z|>\t你好 <|w|> !",
)


def _decoder(first: int, *tokens: Mapping[str, object]) -> dict[str, object]:
    return {str(first + i): {**FLAGS, "special": False, **token} for i, token in enumerate(tokens)}


FOLDERS: dict[str, dict[str, dict[str, object]]] = {
    "decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": _decoder(
                320, {"content": "<|x|>", "special": True}, {"content": "<|y|>"}, {"content": "<|z|>", "lstrip": True}
            )
        }
    },
    "decoder in another order": {
        "tokenizer_config.json": {"added_tokens_decoder": {**_decoder(321, {"content": "<|y|>"}), **_decoder(320, {"content": "<|x|>"})}}
    },
    "decoder with other flags": {
        "tokenizer_config.json": {"added_tokens_decoder": _decoder(312, {"content": "<|end|>", "special": True, "rstrip": True})}
    },
    "decoder with other ids": {
        "tokenizer_config.json": {"added_tokens_decoder": _decoder(400, {"content": "<|x|>"}, {"content": "<|end|>"})}
    },
    "decoder beside older files": {
        "tokenizer_config.json": {"added_tokens_decoder": _decoder(320, {"content": "<|x|>"}), "pad_token": "<|z|>"},
        "special_tokens_map.json": {"pad_token": "<|y|>"},
        "added_tokens.json": {"<|w|>": 321},
    },
    "lists": {"tokenizer_config.json": {"additional_special_tokens": ["<|x|>", {**TYPED, "content": "<|y|>", "rstrip": True}, "<|end|>"]}},
    "a newer list": {"tokenizer_config.json": {"extra_special_tokens": ["<|x|>", "<|y|>"]}},
    "names": {"tokenizer_config.json": {"extra_special_tokens": {"tool_token": "<|x|>"}, "image_token": "<|y|>"}},
    "texts": {"tokenizer_config.json": {"eos_token": "<|x|>", "pad_token": "[PAD]", "unk_token": None, "bos_token": "<s>"}},
    "objects": {"tokenizer_config.json": {"eos_token": {**TYPED, "content": "<|x|>"}, "bos_token": {**TYPED, "content": "<s>"}}},
    "map": {
        "tokenizer_config.json": {"pad_token": "<|z|>"},
        "special_tokens_map.json": {"pad_token": {**FLAGS, "content": "[PAD]"}, "eos_token": "<|x|>"},
    },
    "added": {"tokenizer_config.json": {"eos_token": "<|y|>"}, "added_tokens.json": {"<|y|>": 321, "<|x|>": 320}},
    "words": {"tokenizer_config.json": {"pad_token": "hello"}, "added_tokens.json": {"world": 320}},
}


def write_folder(directory: Path, files: Mapping[str, Mapping[str, object]]) -> Path:
    """The tokenizer of checkpoints.py and, in place of its tokenizer_config.json, ``files``."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", {"model_type": "phi3"})
    write_tokenizer(directory)
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 96}
    for name, content in {"tokenizer_config.json": {}, **files}.items():
        write_json(directory / name, {**plain, **content} if name == "tokenizer_config.json" else content)
    return directory


def llama(directory: Path, style: str) -> Path:
    """Characters and byte fallback, as in Llama-2, Mistral and Phi-3 (``prepend``) and in newer conversions of them (``metaspace``)."""
    pieces = [
        *SPECIAL,
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        *map(chr, range(33, 127)),
        "▁▁",
        "▁t",
        "▁the",
        "li",
        "é",
        "\ufffd",
        "你",
    ]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "▁"), ("▁", "t"), ("l", "i")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<tool>"])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
