"""Rendered chats equal transformers' ``apply_chat_template``, with templates built like those of the families edgekit knows."""

from datetime import datetime
from itertools import product
from pathlib import Path

import pytest

from chat_templates import CHATS, PHI, TEMPLATES, TOOLS
from checkpoints import write_json, write_tokenizer
from edgekit.errors import TemplateError
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
