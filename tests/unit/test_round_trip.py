"""A decoder that does not fit its vocabulary is found when the artifact is built; what a tokenizer legitimately loses is no fault."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from checkpoints import write_json, write_tokenizer
from edgekit.errors import ConfigError
from edgekit.round_trip import check_round_trip
from edgekit.runtime.tokenizer import Tokenizer, open_tokenizer
from smollm2 import write_tokenizer as write_smollm2
from tokenizer_folders import llama

PIECES = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
KINDS = ("ours", "smollm2", "prepend", "metaspace")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "ours":
        write_json(directory / "config.json", {})
        write_tokenizer(directory)
    elif request.param == "smollm2":
        write_smollm2(directory)
    else:
        llama(directory, request.param)
    return directory


def with_part(folder: Path, **parts: object) -> Tokenizer:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return open_tokenizer(folder, text=json.dumps({**data, **parts}))


def test_its_own_decoder_gives_back_every_text(folder: Path) -> None:
    check_round_trip(open_tokenizer(folder), "tokenizer.json")


@pytest.mark.parametrize("decoder", [PIECES, METASPACE, BYTE_LEVEL, {"type": "Fuse"}, {"type": "ByteFallback"}], ids=lambda d: d["type"])
def test_another_ones_decoder_is_refused(folder: Path, decoder: dict[str, object]) -> None:
    bytes_ = "BPE" in (folder / "tokenizer.json").read_text("utf-8") and not any(kind in folder.name for kind in ("prepend", "metaspace"))
    if decoder is (BYTE_LEVEL if bytes_ else PIECES):
        pytest.skip("that is its own")
    wanted = "byte-level, whose decoder is ByteLevel" if bytes_ else "sentencepiece's kind, whose decoder is a Sequence of Replace"
    with pytest.raises(ConfigError, match=rf"here: decoder: {decoder['type']}.*{wanted}"):
        check_round_trip(with_part(folder, decoder=decoder), "here")


@pytest.mark.parametrize("normalizer", ["Lowercase", "NFKC", "NFD", "StripAccents"])
def test_a_normalizer_may_change_a_text_for_good(tmp_path: Path, normalizer: str) -> None:
    llama(tmp_path, "metaspace")
    check_round_trip(with_part(tmp_path, normalizer={"type": normalizer}), "here")
    with pytest.raises(ConfigError, match="here: decoder: ByteLevel"):
        check_round_trip(with_part(tmp_path, normalizer={"type": normalizer}, decoder=BYTE_LEVEL), "here")


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_a_vocabulary_may_lack_characters(tmp_path: Path, unknown: str | None) -> None:
    pieces = ["<unk>", "▁", *map(chr, range(33, 127))]
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.save(str(tmp_path / "tokenizer.json"))
    check_round_trip(open_tokenizer(tmp_path), "here")
