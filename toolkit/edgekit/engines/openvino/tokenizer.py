"""``openvino_tokenizer.xml`` and ``openvino_detokenizer.xml``, by openvino-tokenizers from tokenizer.json, without transformers.

Its parser of Hugging Face tokenizers reads tokenizer.json and a handful of attributes; of transformers it imports names that this way
through it never uses. So it gets stand-ins for both, in a process of its own: there nobody else sees them, nor its patches of OpenVINO.
``main`` is that process. The session never reads these files: they are for openvino_genai.
"""

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edgekit.engines.openvino.plugins import import_openvino
from edgekit.errors import EngineError

CHILD = "import sys; sys.path[:] = sys.argv[1:]; from edgekit.engines.openvino.tokenizer import main; main()"
UNLIMITED = 2**30
"""Tokens; the tokenizer cuts nothing off."""


@dataclass(frozen=True)
class Special:
    """Ids of the model, None where it has none."""

    bos: int | None
    eos: int
    pad: int | None


def convert(directory: Path, special: Special, texts: Sequence[str]) -> list[list[int]]:
    """Writes the four files beside ``tokenizer.json`` and returns how the written tokenizer encodes each of ``texts``.

    Raises EngineError: openvino-tokenizers does not know a part of this tokenizer, or fails.
    """
    request = json.dumps({"directory": str(directory), "special": vars(special), "texts": list(texts)})
    done = subprocess.run([sys.executable, "-c", CHILD, *sys.path], input=request.encode(), capture_output=True, check=False)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EngineError(
            f"openvino-tokenizers cannot convert {directory / 'tokenizer.json'}: {last[:300]}. "
            "Build for a target with another engine, or set tokenizer = false in the target's [options]: openvino_genai then has none"
        )
    encoded: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return encoded


@dataclass
class Fast:
    """What the parser reads of transformers' PreTrainedTokenizerFast."""

    directory: Path
    backend: Any
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None
    is_fast: bool = True
    model_max_length: int = UNLIMITED
    truncation_side: str = "right"
    padding_side: str = "left"
    clean_up_tokenization_spaces: bool = False
    model_input_names: list[str] = field(default_factory=lambda: ["input_ids", "attention_mask"])

    def save_pretrained(self, directory: str) -> None:
        shutil.copy(self.directory / "tokenizer.json", directory)

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        found: dict[int, Any] = self.backend.get_added_tokens_decoder()
        return found

    @property
    def pad_token(self) -> str | None:
        return None if self.pad_token_id is None else self.backend.id_to_token(self.pad_token_id)

    def get_vocab(self) -> dict[str, int]:
        found: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return found


def stand_in() -> None:
    """Names that openvino_tokenizers.hf_parser imports from transformers."""

    class Base:
        pass

    def absent(*_: object) -> None:
        raise ImportError("transformers is not used")

    names: dict[str, dict[str, object]] = {
        "transformers": {"PreTrainedTokenizerBase": Base, "PreTrainedTokenizerFast": Base},
        "transformers.convert_slow_tokenizer": {"import_protobuf": absent},
        "transformers.utils": {},
        "transformers.utils.versions": {"require_version": absent},
    }
    for name, members in names.items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module


def main() -> None:
    """Reads ``convert``'s request from stdin and answers on stdout with one line of JSON."""
    request = json.loads(sys.stdin.buffer.read())
    directory = Path(request["directory"])
    openvino = import_openvino()
    stand_in()
    parser = importlib.import_module("openvino_tokenizers.hf_parser")
    utils = importlib.import_module("openvino_tokenizers.utils")
    backend = importlib.import_module("tokenizers").Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = request["special"]
    fast = Fast(directory, backend, ids["bos"], ids["eos"], ids["pad"])
    params = utils.TokenzierConversionParams(with_detokenizer=True)
    models = parser.convert_fast_tokenizer(fast, params)
    for model, name in zip(models, ("tokenizer", "detokenizer"), strict=True):
        utils.update_rt_info_with_params(model, fast, params)
        utils.update_rt_info_with_environment(model)
        utils.update_rt_info_with_processor_template(model, fast)
        changed = utils.change_outputs_type if name == "tokenizer" else utils.change_inputs_type
        openvino.serialize(changed(model, openvino.Type.i64), directory / f"openvino_{name}.xml")
    encode = openvino.Core().compile_model(directory / "openvino_tokenizer.xml", "CPU")
    # Without the special tokens that a post-processor adds, as the texts were encoded for comparison.
    print(json.dumps([np.asarray(encode([text])["input_ids"])[0].tolist() for text in request["texts"]]))
