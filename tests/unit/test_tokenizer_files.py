"""Tokens of every file of a checkpoint are tokens, with transformers' ids (tests/oracle compares); what is written says so plainly."""

import json
from pathlib import Path

import pytest

from checkpoints import write_json, write_tokenizer
from edgekit.errors import CheckpointError, ConfigError
from edgekit.tokenizer_files import read_tokenizer
from tokenizer_folders import FOLDERS, TYPED, write_folder


@pytest.mark.parametrize(
    ("name", "tokens", "shown"),
    [
        ("decoder", {"<|x|>": 0, "<|y|>": 1, "<|z|>": 2}, "<|y|><|z|>"),
        ("decoder in another order", {"<|x|>": 0, "<|y|>": 1}, "<|x|><|y|>"),
        ("decoder with other ids", {"<|x|>": 0}, "<|x|>"),
        ("decoder beside older files", {"<|x|>": 0, "<|z|>": 1, "<|y|>": None, "<|w|>": None}, "<|x|><|y|><|w|>"),
        ("lists", {"<|x|>": 0, "<|y|>": 1}, ""),
        ("a newer list", {"<|x|>": 0, "<|y|>": 1}, ""),
        ("names", {"<|y|>": 0, "<|x|>": 1}, ""),
        ("texts", {"<|x|>": 0, "[PAD]": 1}, ""),
        ("objects", {"<|x|>": 0}, ""),
        ("map", {"<|x|>": 0, "[PAD]": 1, "<|z|>": None}, "<|z|>"),
        ("added", {"<|x|>": 0, "<|y|>": 1}, "<|x|>"),
    ],
)
def test_declared_tokens_are_tokens(tmp_path: Path, name: str, tokens: dict[str, int | None], shown: str) -> None:
    read = read_tokenizer(write_folder(tmp_path, FOLDERS[name]), 1000)
    first = read_tokenizer(write_folder(tmp_path / "plain", {}), 1000).tokenizer.backend.get_vocab_size()
    backend = read.tokenizer.backend
    assert {text: backend.token_to_id(text) for text in tokens} == {text: None if i is None else first + i for text, i in tokens.items()}
    ids = read.tokenizer.encode("".join(tokens))
    assert read.tokenizer.decode(ids) == shown
    again = json.loads(read.contents["tokenizer.json"])["added_tokens"]
    assert [token["id"] for token in again] == sorted(backend.get_added_tokens_decoder())


def test_what_is_plain_is_copied(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    write_tokenizer(tmp_path)
    template = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert read_tokenizer(tmp_path, 320, template).contents == {}


def test_what_is_written_is_plain(tmp_path: Path) -> None:
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "auto_map": {"AutoTokenizer": ["code.py", None]},
        "bos_token": {**TYPED, "content": "<s>"},
        "unk_token": "",
        "pad_token": None,
        "additional_special_tokens": [{**TYPED, "content": "<|x|>"}],
        "chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}],
    }
    files = {"tokenizer_config.json": config, "special_tokens_map.json": {"eos_token": {"content": "<|end|>"}}}
    found = read_tokenizer(write_folder(tmp_path, files), 1000, "D")
    assert json.loads(found.contents["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 96,
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "pad_token": None,
        "additional_special_tokens": ["<|x|>"],
        "chat_template": "D",
    }
    assert json.loads(found.contents["special_tokens_map.json"]) == {"eos_token": "<|end|>"}
    assert found.named == {"bos_token": "<s>", "eos_token": "<|end|>"}


@pytest.mark.parametrize(
    ("file", "content", "key"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<|x|>"}}}, r"added_tokens_decoder: 'x' is no id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": "<|x|>"}}, r"added_tokens_decoder\.7"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, r"added_tokens_decoder"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": "x", "lstrip": "y"}}}, r"added_tokens_decoder\.7: lstrip"),
        ("tokenizer_config.json", {"additional_special_tokens": "<|x|>"}, r"additional_special_tokens: wanted a list"),
        ("tokenizer_config.json", {"additional_special_tokens": [3]}, r"additional_special_tokens\[0\]"),
        ("tokenizer_config.json", {"bos_token": {"text": "<s>"}}, r"bos_token"),
        ("special_tokens_map.json", {"bos_token": {"content": 3}}, r"special_tokens_map\.json: bos_token"),
        ("added_tokens.json", {"<|x|>": "7"}, r"added_tokens\.json: '<\|x\|>'"),
        ("added_tokens.json", {"<|x|>": -1}, r"added_tokens\.json: '<\|x\|>'"),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path: Path, file: str, content: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        read_tokenizer(write_folder(tmp_path, {file: content}), 1000)


def test_a_vocabulary_with_gaps_takes_no_further_token(tmp_path: Path) -> None:
    """transformers would give the token the id of another."""
    write_folder(tmp_path, {"tokenizer_config.json": {"pad_token": "[PAD]"}})
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    vocab["zzz"] = len(vocab) + 1
    write_json(path, data)
    with pytest.raises(ConfigError, match=r"'\[PAD\]' would get the id \d+, which tokenizer.json gives 'zzz'"):
        read_tokenizer(tmp_path, 1000)


def test_a_sentencepiece_model_alone_is_refused_with_what_converts_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model.*save_pretrained"):
        read_tokenizer(tmp_path, 100)
