"""Rendered chats equal transformers' ``apply_chat_template``, with templates built like those of the families edgekit knows."""

from datetime import datetime
from itertools import product
from pathlib import Path

import pytest

from chat_templates import CHATS, PHI, QWEN, TEMPLATES, TOOLS
from checkpoints import make_checkpoint, write_json, write_tokenizer
from edgekit.catalog import resolve
from edgekit.companions import read_companions, write_companions
from edgekit.errors import TemplateError
from edgekit.progress import silent
from edgekit.runtime.chat import ChatTemplate
from edgekit.runtime.tokenizer import open_tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(("name", "add_generation_prompt", "tools"), list(product(TEMPLATES, [True, False], [None, TOOLS])))
def test_same_text_as_transformers(name: str, add_generation_prompt: bool, tools: list[dict[str, object]] | None, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    write_tokenizer(tmp_path)
    special = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **special)
    ours = ChatTemplate(TEMPLATES[name], special)
    for chat in CHATS:
        try:
            wanted = theirs.apply_chat_template(
                chat, tools=tools, chat_template=TEMPLATES[name], add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except Exception as error:  # the template refuses this chat
            with pytest.raises(TemplateError, match=str(error)[:20]):
                ours.render(chat, tools=tools, add_generation_prompt=add_generation_prompt)
            continue
        assert ours.render(chat, tools=tools, add_generation_prompt=add_generation_prompt, now=datetime.now()) == wanted


def test_same_ids_as_transformers(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    write_tokenizer(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    rendered = ChatTemplate(PHI, {"eos_token": "<|endoftext|>"}).render(CHATS[2])
    assert open_tokenizer(tmp_path).encode(rendered) == theirs(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("place", ["list", "files", "both"])
def test_the_template_for_tools_is_taken_as_transformers_takes_it(place: str, tmp_path: Path) -> None:
    """From the checkpoint, and by transformers from what the artifact holds."""
    source = make_checkpoint(tmp_path / "model", "llama")
    named = [{"name": "default", "template": PHI}, {"name": "tool_use", "template": QWEN}, {"name": "rag", "template": "{{ documents }}"}]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"}}
    write_json(source / "tokenizer_config.json", settings | ({} if place == "files" else {"chat_template": named}))
    if place != "list":
        (source / "chat_template.jinja").write_text(PHI, encoding="utf-8")
        (source / "additional_chat_templates").mkdir()
        (source / "additional_chat_templates" / "tool_use.jinja").write_text(QWEN, encoding="utf-8")
    checkpoint = resolve(str(source), progress=silent)
    ours = read_companions(checkpoint, 320)
    assert ours.chat is not None
    (tmp_path / "artifact").mkdir()
    write_companions(ours, checkpoint, tmp_path / "artifact")
    for directory in (source, tmp_path / "artifact"):
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
        for chat, tools in product(CHATS[:3], (None, TOOLS)):
            wanted = theirs.apply_chat_template(chat, tools=tools, add_generation_prompt=True, tokenize=False)
            assert ours.chat.render(chat, tools=tools) == wanted
