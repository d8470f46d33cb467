"""Each engine's own loader opens the tokenizer's files of an artifact whose checkpoint has them in forms that it does not read."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from checkpoints import make_checkpoint, write_json
from edgekit.artifact import Artifact, Manifest, Scalar, TokenInfo
from edgekit.build import build
from edgekit.companions import Companions
from edgekit.engines.onnx_format.genai_tokenizer import compared
from edgekit.errors import UsageError
from edgekit.packagers.apps import check_genai
from edgekit.runtime.chat import ChatTemplate
from edgekit.runtime.templates import ChatTemplates
from edgekit.runtime.tokenizer import open_tokenizer
from tiny_artifact import write_target
from tokenizer_folders import TYPED, llama

DEFAULT = "{% for m in messages %}<|user|>{{ m.content }}<|x|>{% endfor %}"
CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": {**TYPED, "content": "<s>"},
    "eos_token": {**TYPED, "content": "<|x|>"},
    "added_tokens_decoder": {"310": {"content": "<|y|>", "special": False}},
    "additional_special_tokens": ["<|x|>"],
    "chat_template": [{"name": "default", "template": DEFAULT}, {"name": "tool_use", "template": "{{ tools | length }}" + DEFAULT}],
}
"""Llama-2-chat's own has objects, Command-R's and Hermes' a list of templates."""
TEXT = "<|user|>hello<|x|><|y|>a"
MESSAGES = [{"role": "user", "content": "hello"}]


def built(folder: Path, engine: str) -> tuple[Path, Manifest]:
    folder.mkdir(exist_ok=True)
    checkpoint = make_checkpoint(folder / "model", "llama")
    write_json(checkpoint / "tokenizer_config.json", CONFIG)
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    target = write_target(folder / "test.toml", engine)
    return folder / "a", build(checkpoint, target=target, output=folder / "a", verify=False)


def ids_of(directory: Path) -> list[int]:
    ids: list[int] = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    return ids


def test_onnxruntime_genai(tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    directory, manifest = built(tmp_path, "onnx")
    tokenizer = genai.Tokenizer(str(directory))
    assert [int(i) for i in tokenizer.encode(TEXT)] == ids_of(directory)
    assert tokenizer.apply_chat_template(json.dumps(MESSAGES), add_generation_prompt=True) == "<|user|>hello<|x|>"
    assert manifest.engine.details["genai_tokenizer"] in ("same", "differs")


def test_openvino_genai(tmp_path: Path) -> None:
    genai = pytest.importorskip("openvino_genai")
    directory, manifest = built(tmp_path, "openvino")
    tokenizer = genai.Tokenizer(str(directory))
    assert tokenizer.encode(TEXT, add_special_tokens=False).input_ids.data[0].tolist() == ids_of(directory)
    assert tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True) == "<|user|>hello<|x|>"
    assert (tokenizer.get_bos_token(), tokenizer.get_eos_token()) == ("<s>", "<|x|>")
    assert tokenizer.get_eos_token_id() in manifest.tokens.stop


def test_transformers_as_mlx_lm_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory, _ = built(tmp_path, "mlx")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert tokenizer.encode(TEXT, add_special_tokens=False) == ids_of(directory)
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == "<|user|>hello<|x|>"
    assert tokenizer.apply_chat_template(MESSAGES, tools=[{"name": "f"}], tokenize=False) == "1<|user|>hello<|x|>"


def judged(folder: Path, tokenizer: Path) -> dict[str, Scalar]:
    """What is said of another tokenizer.json in a small artifact."""
    directory, _ = built(folder, "onnx")
    (directory / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    encode = Companions(open_tokenizer(directory), TokenInfo(10_000, None, (0,), False), None, None, {})
    return dict(compared(encode, directory))


@pytest.mark.parametrize("style", ["prepend", "metaspace"])
def test_where_onnxruntime_genai_gives_other_ids_the_manifest_says_so(tmp_path: Path, style: str) -> None:
    pytest.importorskip("onnxruntime_genai")
    found = judged(tmp_path, llama(tmp_path / "other", style))
    assert found["genai_tokenizer"] == "differs"
    told = r"other ids for 0 of 0 chats and \d+ of \d+ texts in all, such as .*"
    assert re.fullmatch(told, str(found["genai_tokenizer_note"]), re.DOTALL)
    manifest = built(tmp_path / "again", "onnx")[1]
    with pytest.raises(UsageError, match=r"does not fit this model \(other ids for 0 of 0 chats"):
        check_genai(Artifact(tmp_path, replace(manifest, engine=replace(manifest.engine, details=found))), "windows")


def test_where_its_templates_give_another_text_the_manifest_says_so(tmp_path: Path) -> None:
    """Jinja has filters and methods that its engine lacks."""
    pytest.importorskip("onnxruntime_genai")
    directory = tmp_path / "tiny-phi"
    build("tiny-phi", target="cpu", output=directory, verify=False)
    own = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    for source, wanted in ((own, "same"), ("{% for m in messages %}{{ m.content | wordcount }}{% endfor %}", "differs")):
        chat = ChatTemplates(ChatTemplate(source, {}))
        found = compared(Companions(open_tokenizer(directory), TokenInfo(10_000, None, (0,), False), source, chat, {}), directory)
        assert found["genai_tokenizer"] == wanted, found
    assert str(found["genai_tokenizer_note"]).startswith("its chat template makes 'an error: ")


def test_where_it_gives_ids_that_are_none_applications_are_refused(tmp_path: Path) -> None:
    """Its Metaspace finds nothing for a character that the vocabulary lacks, and says -1."""
    pytest.importorskip("onnxruntime_genai")
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(["<s>", "▁", *map(chr, range(97, 123))])}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    (tmp_path / "other").mkdir()
    backend.save(str(tmp_path / "other" / "tokenizer.json"))
    found = judged(tmp_path, tmp_path / "other")
    assert found["genai_tokenizer"] == "unusable" and str(found["genai_tokenizer_note"]).startswith("ids that are none for ")
    manifest = built(tmp_path / "again", "onnx")[1]
    told = replace(manifest, engine=replace(manifest.engine, details=found))
    with pytest.raises(UsageError, match=r"does not fit this model \(ids that are none for .* package it for python or linux-service"):
        check_genai(Artifact(tmp_path, told), "android")
