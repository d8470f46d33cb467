"""Running an artifact on onnxruntime-genai: on the chip that it was compiled for, or in Qualcomm's emulation on an x86-64 machine.

genai's pipeline takes a prompt in chunks at the start of a sequence and single tokens after it; it can neither append several nor rewind.
So a sequence that is cut, or grows by more tokens than its chunks are, is computed anew.
"""

import importlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Manifest
from edgekit.errors import EngineError, EngineMissing
from edgekit.parallel import cores
from edgekit.resources import check_release
from edgekit.runtime.session import check_call, check_rewind, check_vocabulary

if TYPE_CHECKING:
    import onnxruntime_genai

PROVIDER = "QNNExecutionProvider"
ROPE_LENGTH = "rope_length"
ARM = {"aarch64", "arm64"}
CHOSEN = 1e4
"""A logit that beats any other."""


def open_session(directory: Path, manifest: Manifest, *, threads: int | None = None) -> "QnnSession":
    """Loads the artifact.

    threads: of the embeddings and lm_head, which the CPU computes; None takes every one.
    Raises EngineMissing (a package is absent or older than the artifact needs, or this machine has no such NPU and cannot emulate
    this artifact) and EngineError (genai refuses the files).
    """
    details = manifest.engine.details
    if details.get("runtime") == "genie":
        raise EngineMissing(
            "this artifact is a bundle for Genie, which opens it on the device: genie-t2t-run -c genie_config.json -p PROMPT, in its "
            'directory; to run it here, build the model without runtime = "genie" in the target\'s [options]'
        )
    if details.get("weight_sharing") and platform.machine().lower() not in ARM:
        # Not a matter of trying: ONNX Runtime ends the process with a segmentation fault.
        raise EngineMissing(
            f"this artifact is compiled for the NPU of {details.get('soc')} and loads there only; to check it in emulation on this "
            "machine, build the model with sharing = false in the target's [options]"
        )
    genai = _genai(manifest)
    try:
        config = genai.Config(str(directory))
        # genai counts the padding of a prompt's last chunk as tokens; what limits a sequence here is its cache (check_call).
        limit = manifest.context.length + int(details["prompt_chunk"] or 1)
        settings = {"intra_op_num_threads": threads or cores(), "inter_op_num_threads": 1, "log_severity_level": 4}
        # After a token that ends an answer genai reads padding in place of whatever is chosen. It has to have one such: see forward_last.
        model_settings = {"context_length": limit, "eos_token_id": manifest.tokens.vocab_size - 1, "decoder": {"session_options": settings}}
        config.overlay(json.dumps({"model": model_settings, "search": {"max_length": limit}}))
        model = genai.Model(config)
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(f"onnxruntime-genai cannot open {directory}: {error}; build the artifact again") from error
    return QnnSession(model, directory, manifest)


def _genai(manifest: Manifest) -> ModuleType:
    """The library, with Qualcomm's provider registered."""
    try:
        import onnxruntime
        import onnxruntime_genai
        import onnxruntime_qnn
    except ImportError as error:
        raise EngineMissing(f'this artifact runs on onnxruntime-genai with onnxruntime-qnn ({error}): pip install "edgekit[qnn]"') from None
    found = {
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime-qnn": onnxruntime_qnn.__version__,
        "onnxruntime-genai": onnxruntime_genai.__version__,
    }
    for name, needed in manifest.engine.requires.items():
        check_release(name, found[name], needed)
    onnxruntime_genai.disable_telemetry_events()
    try:
        onnxruntime_genai.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    except RuntimeError as error:
        if "already registered" not in str(error):  # there is no way to ask
            raise EngineMissing(f"onnxruntime-genai cannot load Qualcomm's provider: {error}") from None
    return importlib.import_module("onnxruntime_genai")


class QnnSession:
    """See ``edgekit.runtime.session.Session``."""

    def __init__(self, model: "onnxruntime_genai.Model", path: Path, manifest: Manifest) -> None:
        details = manifest.engine.details
        self._model: onnxruntime_genai.Model | None = model
        self._path = path
        self._context = manifest.context.length
        self._vocab = manifest.tokens.vocab_size
        self._chunk = int(details["prompt_chunk"] or 1)
        self._switch = manifest.context.rope_switch if details.get(ROPE_LENGTH) else None
        self._tokens: list[int] = []
        self._length = np.zeros(1, np.int64)  # genai reads this very memory at every run, and does not keep the array alive
        self._choice = np.zeros((1, self._vocab), np.float32)
        self._run: onnxruntime_genai.Generator | None = None
        self._held = 0  # tokens in the generator; those beyond len(_tokens) are to be forgotten
        self._long = False

    @property
    def position(self) -> int:
        return len(self._tokens)

    @property
    def context(self) -> int:
        return self._context

    @property
    def grain(self) -> int:
        return self._context  # genai appends single tokens alone

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See ``Session.forward``."""
        row: NDArray[np.float32] = self.forward_last(tokens, 1)[0]
        return row

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        """See ``Session.forward_last``. The whole sequence is computed anew where that takes fewer runs of the NPU, and where its end was
        rewound, it crosses the LongRoPE switch or the next token is the vocabulary's last: genai holds that one for the end of an answer
        (open_session), and reads it only as part of a prompt."""
        if self._model is None:
            raise EngineError(f"the session of {self._path} is closed; open the artifact again")
        check_call(tokens, last, self.position, self._context)
        check_vocabulary(np.asarray(tokens, np.int64), self._vocab)
        kept, whole = self.position, [*self._tokens, *map(int, tokens)]
        final = len(whole)
        long = self._switch is not None and final > self._switch
        try:
            first = final - last + 1
            if self._run is None or self._held > kept or long != self._long or -(-first // self._chunk) < first - self._held:
                self._run = None  # before the next one takes as much memory
                self._run = self._start(self._model, whole[:first], final)
                self._held, self._long = first, long
                rows = [self._logits(self._run)]
            else:
                rows = []
            while self._held < final:
                token = whole[self._held]
                if token == self._vocab - 1:
                    self._run = None
                    self._run = self._start(self._model, whole[: self._held + 1], final)
                else:
                    self._append(self._run, token)
                self._held += 1
                if self._held >= first:
                    rows.append(self._logits(self._run))
        except BaseException as error:
            self._run, self._held = None, 0
            if not isinstance(error, Exception):
                raise
            raise EngineError(f"onnxruntime-genai failed while running {self._path}: {error}") from error
        self._tokens = whole
        return np.stack(rows)

    def rewind(self, length: int) -> None:
        """See ``Session.rewind``. The next call computes what is left anew."""
        check_rewind(length, self.position)
        del self._tokens[length:]

    def close(self) -> None:
        """See ``Session.close``."""
        self._run = self._model = None

    def _start(self, model: "onnxruntime_genai.Model", prompt: Sequence[int], final: int) -> "onnxruntime_genai.Generator":
        """A sequence that begins with ``prompt`` and is to be rotated as one of ``final`` tokens."""
        import onnxruntime_genai

        run = onnxruntime_genai.Generator(model, onnxruntime_genai.GeneratorParams(model))
        if self._switch is not None:
            self._length[0] = final
            run.set_model_input(ROPE_LENGTH, self._length)
        run.append_tokens(np.asarray(prompt, np.int32))
        return run

    def _append(self, run: "onnxruntime_genai.Generator", token: int) -> None:
        """genai runs a single token only where it chose it itself: so it is made to."""
        self._choice.fill(0)
        self._choice[0, token] = CHOSEN
        run.set_logits(self._choice)
        run.generate_next_token()

    def _logits(self, run: "onnxruntime_genai.Generator") -> NDArray[np.float32]:
        row: NDArray[np.float32] = np.array(run.get_logits(), np.float32).reshape(-1)
        return row
