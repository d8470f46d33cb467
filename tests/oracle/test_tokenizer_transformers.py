"""Tokens of every file of a checkpoint get the ids, and are shown or not, as by transformers' AutoTokenizer; so does what is written."""

from pathlib import Path

import pytest

from checkpoints import write_json
from edgekit.conformance import TEXTS as CONFORMANCE
from edgekit.runtime.tokenizer import open_tokenizer
from edgekit.tokenizer_files import TokenizerFiles, read_tokenizer
from smollm2 import write_tokenizer as write_smollm2
from tokenizer_folders import FOLDERS, HELD, TEXTS, llama, write_folder

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle


def written(files: TokenizerFiles, source: Path, to: Path) -> Path:
    """What an artifact would hold."""
    to.mkdir()
    for name in ("config.json", "tokenizer.json", *HELD):
        if name in files.contents:
            (to / name).write_text(files.contents[name], encoding="utf-8")
        elif (source / name).is_file():
            (to / name).write_bytes((source / name).read_bytes())
    return to


@pytest.mark.parametrize("name", FOLDERS)
def test_same_ids_and_the_same_text(name: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model", FOLDERS[name])
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    ours = read_tokenizer(source, 1000)
    again = transformers.AutoTokenizer.from_pretrained(written(ours, source, tmp_path / "artifact"))
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.tokenizer.encode(text) == ids == again.encode(text, add_special_tokens=False)
        assert again.decode(ids, skip_special_tokens=True) == ours.tokenizer.decode(ids)
        special = {theirs.convert_tokens_to_ids(token) for token in theirs.all_special_tokens}
        assert ours.tokenizer.decode(ids) == theirs.decode([i for i in ids if i not in special], skip_special_tokens=True)
    named = {key: text for key, text in theirs.special_tokens_map.items() if isinstance(text, str)}
    assert ours.named == named == {key: text for key, text in again.special_tokens_map.items() if isinstance(text, str)}
    assert len(theirs) == len(again)


@pytest.mark.parametrize("kind", ["smollm2", "prepend", "metaspace"])
def test_real_and_sentencepiece_vocabularies_with_tokens_elsewhere(kind: str, tmp_path: Path) -> None:
    """transformers' generic class, which takes tokenizer.json as it is: the class that a checkpoint names may rebuild parts of it."""
    source = tmp_path / "model"
    write_smollm2(source) if kind == "smollm2" else llama(source, kind)
    size = open_tokenizer(source).backend.get_vocab_size()
    flags = {"lstrip": False, "rstrip": True, "normalized": False, "single_word": False, "special": True}
    listed = {str(size + i): {**flags, "content": text} for i, text in enumerate(("<|x|>", "<|y|>"))}
    config = {"tokenizer_class": "GPT2Tokenizer", "pad_token": "[PAD]", "added_tokens_decoder": listed}
    write_json(source / "tokenizer_config.json", config)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(source)
    ours = read_tokenizer(source, size + 10)
    again = transformers.AutoTokenizer.from_pretrained(written(ours, source, tmp_path / "artifact"))
    for text in (*TEXTS, *CONFORMANCE):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.tokenizer.encode(text) == ids == again.encode(text, add_special_tokens=False)
        assert ours.tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
