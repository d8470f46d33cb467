"""Whether onnxruntime-genai's own tokenizer and templates give what edgekit's do: applications for phones and Windows use them.

It reads tokenizer.json in its own way: of a Metaspace pre-tokenizer it knows less, and may give -1 for what it does not find. Its engine
for templates is not Jinja.
"""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from edgekit import child
from edgekit.artifact import Scalar
from edgekit.companions import Companions
from edgekit.conformance import text_vectors
from edgekit.errors import EngineError

PACKAGE = "onnxruntime_genai"
READ = ("genai_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PATIENCE = 120.0
ENCODE = "edgekit.engines.onnx_format.genai_encode"


def compared(companions: Companions, directory: Path) -> dict[str, Scalar]:
    """For ``engine.details``: ``genai_tokenizer`` is "same", "differs" (other ids, or another text of a chat), "unusable" (ids that are
    none, or it cannot be opened) or "not compared", and ``genai_tokenizer_note`` says where. ``directory`` holds the artifact's files."""
    if importlib.util.find_spec(PACKAGE) is None:
        return {"genai_tokenizer": "not compared", "genai_tokenizer_note": "onnxruntime-genai is not installed where it was built"}
    vectors = text_vectors(companions)
    chats = [vector.rendered for vector in vectors.chat]
    texts = [vector.text for vector in vectors.encode if vector.text]
    with tempfile.TemporaryDirectory(prefix="edgekit-genai-") as folder:
        for name in READ:  # without the weights
            if (directory / name).is_file():
                shutil.copyfile(directory / name, Path(folder, name))
        messages = [json.dumps([asdict(message) for message in vector.messages]) for vector in vectors.chat]
        request: child.Json = {"directory": folder, "texts": [*chats, *texts], "template": companions.template, "messages": messages}
        try:
            answer = child.ask(ENCODE, request, patience=PATIENCE)
        except EngineError as error:
            return {"genai_tokenizer": "unusable", "genai_tokenizer_note": f"it cannot be opened: {str(error)[:200]}"}
    judged = _judged(companions, [*chats, *texts], cast(list[list[int]], answer["ids"]), len(chats))
    if judged["genai_tokenizer"] == "same":
        for said, here, there in zip(messages, chats, cast(list[str], answer["rendered"]), strict=True):
            if here != there:
                return {"genai_tokenizer": "differs", "genai_tokenizer_note": f"its chat template makes {there[:60]!r} of {said[:60]}"}
    return judged


def _judged(companions: Companions, texts: Sequence[str], given: Sequence[list[int]], chats: int) -> dict[str, Scalar]:
    differing = [i for i, text in enumerate(texts) if companions.tokenizer.encode(text) != given[i]]
    if not differing:
        return {"genai_tokenizer": "same"}
    wrong = [i for i in differing if min(given[i], default=0) < 0 or max(given[i], default=0) >= companions.tokens.vocab_size]
    first = texts[(wrong or differing)[0]]
    what = "ids that are none for" if wrong else "other ids for"
    where = f"{sum(i < chats for i in wrong or differing)} of {chats} chats and {len(wrong or differing)} of {len(texts)} texts in all"
    note = f"{what} {where}, such as {first[:60]!r}"
    return {"genai_tokenizer": "unusable" if wrong else "differs", "genai_tokenizer_note": note}
