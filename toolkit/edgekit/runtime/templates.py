"""Which of an artifact's chat templates renders a chat, and that tools given to it are seen."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from edgekit.artifact import Manifest
from edgekit.confine import Confined, Here
from edgekit.errors import ArtifactError, TemplateError
from edgekit.runtime.chat import VECTOR_TIME, ChatTemplate, Messages, Tools, check_template, open_template

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "set_light",
            "description": "Turns a light on or off.",
            "parameters": {
                "type": "object",
                "properties": {"room": {"type": "string"}, "on": {"type": "boolean"}},
                "required": ["room", "on"],
            },
        },
    },
)
"""What conformance vectors of tools are given."""


class ChatTemplates:
    """default renders chats, ``tools`` (transformers calls it ``tool_use``) those that come with tools; None: the default does both."""

    def __init__(self, default: ChatTemplate, tools: ChatTemplate | None = None) -> None:
        self._default = default
        self._tools = tools

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        now: datetime | None = None,
    ) -> str:
        """As ``ChatTemplate.render``. Raises TemplateError too where the prompt is the same without the tools: the model would not know
        them."""
        if tools is None:
            return self._default.render(messages, add_generation_prompt=add_generation_prompt, now=now)
        template = self._default if self._tools is None else self._tools
        moment = now or datetime.now()
        rendered = template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, now=moment)
        if tools and rendered == self._without(template, messages, add_generation_prompt, moment):
            raise TemplateError(
                "the chat template does not show tools to the model, which would answer as if there were none; leave them out, or take a "
                "model whose template has tools"
            )
        return rendered

    def render_all(self, chats: Sequence[Messages], now: datetime, tools: Sequence[Tools] | None = None) -> list[str]:
        """As ``ChatTemplate.render_all``."""
        return (self._default if tools is None or self._tools is None else self._tools).render_all(chats, now, tools)

    @staticmethod
    def _without(template: ChatTemplate, messages: Messages, ask: bool, now: datetime) -> str | None:
        nothing: tuple[list[Mapping[str, object]] | None, ...] = (None, [])  # a loop over the tools may need a list
        for none in nothing:
            try:
                return template.render(messages, add_generation_prompt=ask, tools=none, now=now)
            except TemplateError:
                continue
        return None  # it takes such a chat with tools only


def open_templates(directory: Path, manifest: Manifest, process: Confined | Here | None = None) -> ChatTemplates | None:
    """Those of an artifact; None for one without. process: where. Raises TemplateError, ArtifactError."""
    if manifest.chat_template is None:
        return None
    default, tools = open_template(directory, manifest.chat_template, process), manifest.tool_template
    return ChatTemplates(default, None if tools is None else open_template(directory, tools, process))


def check_templates(templates: ChatTemplates, manifest: Manifest) -> None:
    """Renders the manifest's chats, those with tools as well. Raises ArtifactError naming the first that comes out differently."""
    check_template(templates, manifest.conformance.chat)
    vectors = manifest.conformance.tools
    chats = [[{"role": m.role, "content": m.content} for m in vector.messages] for vector in vectors]
    tools = [json.loads(vector.tools) for vector in vectors]
    for vector, rendered in zip(vectors, templates.render_all(chats, VECTOR_TIME, tools), strict=True):
        if rendered != vector.rendered:
            raise ArtifactError(
                f"with tools the chat template renders {rendered!r}, the manifest says {vector.rendered!r}; copy the artifact again or "
                "rebuild it"
            )
