"""Vocabularies of real models that public packages carry, as tokenizer.json: what constraints and stop texts are tried on.

    directory = VOCABULARIES["tekken"](tmp_path)     # the test is skipped where the package is not installed

Merges are left out: they say how text is cut into tokens, which is nothing to these tests, and making them takes longer than the tests do.
"""

import base64
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from smollm2 import write_tokenizer

MISTRAL = "mistral-common"


def packaged(package: str, file: str) -> Path:
    """A file of an installed package, which is not imported."""
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"the vocabulary is not here: pip install --no-deps {package}")
    return path


def sentencepiece(directory: Path, version: str) -> Path:
    """Mistral's vocabularies of 32,000 and 32,768 pieces: Metaspace, a token for each byte besides the letters, control tokens."""
    library = pytest.importorskip("sentencepiece")
    model = library.SentencePieceProcessor(model_file=str(packaged(MISTRAL, f"mistral_common/data/{version}")))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    control = [piece for i, piece in enumerate(pieces) if model.is_control(i) or model.is_unknown(i)]
    return llama(directory, {piece: i for i, piece in enumerate(pieces)}, control, fallback=True)


def llama(directory: Path, vocabulary: Mapping[str, int], control: list[str], *, fallback: bool) -> Path:
    """A tokenizer.json with Llama's decoder."""
    model = models.BPE(vocab=dict(vocabulary), merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=fallback)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), *([decoders.ByteFallback()] if fallback else []), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return _saved(tokenizer, control, directory)


def byte_level(directory: Path, tokens: list[bytes], special: list[str]) -> Path:
    """A tokenizer.json of GPT-2's kind: ``special`` first, then ``tokens``."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {n: chr(n) for n in printable} | {n: chr(256 + i) for i, n in enumerate(n for n in range(256) if n not in printable)}
    texts = [*special, *("".join(table[byte] for byte in token) for token in tokens)]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(texts)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _saved(tokenizer, special, directory)


def tekken(directory: Path) -> Path:
    """Mistral's of 131,072 tokens, tiktoken's kind: all bytes, and 1,000 control tokens of which most are unused."""
    data = json.loads(packaged(MISTRAL, "mistral_common/data/tekken_240911.json").read_bytes())
    size, reserved = data["config"]["default_vocab_size"], data["config"]["default_num_special_tokens"]
    named = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    special = [*named, *(f"<SPECIAL_{rank}>" for rank in range(len(named), reserved))]
    return byte_level(directory, [base64.b64decode(entry["token_bytes"]) for entry in data["vocab"][: size - reserved]], special)


def poor(directory: Path) -> Path:
    """No bytes at all, no capitals and few characters, most of them only inside of longer tokens."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *"abcdefghilnorstu0123456789.,:;!?+*()=-_/", '"', "{", "}", "[", "]", "\n"]
    pieces += ['":', '",', "▁{", "{▁", "true", "false", "null", "é!", "éa", "▁là", "你好", "\\n", '\\"', "▁▁▁▁", "<unused7>"]
    return llama(directory, {piece: i for i, piece in enumerate(pieces)}, pieces[:3], fallback=False)


VOCABULARIES: Mapping[str, Callable[[Path], Path]] = {
    "smollm2": write_tokenizer,
    "mistral-v1": lambda directory: sentencepiece(directory, "tokenizer.model.v1"),
    "mistral-v3": lambda directory: sentencepiece(directory, "mistral_instruct_tokenizer_240323.model.v3"),
    "tekken": tekken,
    "poor": poor,
}
STOP = {"smollm2": 2, "mistral-v1": 2, "mistral-v3": 2, "tekken": 2, "poor": 2}
"""Of each the id that ends an answer."""


def _saved(tokenizer: Tokenizer, special: list[str], directory: Path) -> Path:
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
