"""Whether onnxruntime-genai's own tokenizer gives the ids of the tokenizers library: applications for phones and Windows use it.

It reads tokenizer.json in its own way: of a Metaspace pre-tokenizer it knows less, and may give -1 for what it does not find.
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
    """For ``engine.details``: ``genai_tokenizer`` is "same", "differs", "unusable" (ids that are none, or it cannot be opened) or
    "not compared", and ``genai_tokenizer_note`` says where. ``directory`` holds the artifact's files."""
    if importlib.util.find_spec(PACKAGE) is None:
        return {"genai_tokenizer": "not compared", "genai_tokenizer_note": "onnxruntime-genai is not installed where it was built"}
    vectors = text_vectors(companions)
    chats = [vector.rendered for vector in vectors.chat]
    texts = [vector.text for vector in vectors.encode if vector.text]
    with tempfile.TemporaryDirectory(prefix="edgekit-genai-") as folder:
        for name in READ:  # without the weights
            if (directory / name).is_file():
                shutil.copyfile(directory / name, Path(folder, name))
        try:
            found = child.ask(ENCODE, {"directory": folder, "texts": [*chats, *texts]}, patience=PATIENCE)["ids"]
        except EngineError as error:
            return {"genai_tokenizer": "unusable", "genai_tokenizer_note": f"it cannot be opened: {str(error)[:200]}"}
    given = found if isinstance(found, list) else []
    return _judged(companions, [*chats, *texts], given, len(chats))


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
