"""Running an OpenVINO artifact on an NPU, which computes graphs of fixed size only.

OpenVINO's NPU plugin makes two of the one graph: a prompt of at most so many tokens at the start of a sequence, and one token at a time
later. Its cache can be emptied but not cut, so a sequence that is rewound is computed anew.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import ContextOverflow, EngineError
from edgekit.runtime.session import check_call, check_rewind, check_vocabulary

if TYPE_CHECKING:
    import openvino


def properties(prompt: int, context: int, parts: str) -> dict[str, str]:
    """For ``compile_model`` on an NPU. parts: the device that the plugin compiles for, CPU to try its graphs without an NPU.

    Source: openvino.genai, src/cpp/src/utils.cpp, compile_decoder_for_npu.
    """
    # A CPU would choose by its features: bfloat16 where it is fast there, which no NPU computes in.
    precision = {"INFERENCE_PRECISION_HINT": "f32"} if parts == "CPU" else {}
    return {
        **precision,
        "NPU_USE_NPUW": "YES",
        "NPUW_DEVICES": parts,
        "NPUW_LLM": "YES",
        "NPUW_LLM_BATCH_DIM": "0",
        "NPUW_LLM_SEQ_LEN_DIM": "2",
        "NPUW_LLM_MAX_PROMPT_LEN": str(prompt),
        "NPUW_LLM_MIN_RESPONSE_LEN": str(context - prompt),
    }


class NpuSession:
    """See ``edgekit.runtime.session.Session``."""

    def __init__(self, request: "openvino.InferRequest", path: Path, context: int, vocab: int, prompt: int) -> None:
        self._request: openvino.InferRequest | None = request
        self._path = path
        self._context = context
        self._vocab = vocab
        self._prompt = prompt
        self._tokens: list[int] = []
        self._held = 0  # tokens in the plugin's cache; those beyond len(_tokens) are to be forgotten

    @property
    def position(self) -> int:
        return len(self._tokens)

    @property
    def context(self) -> int:
        return self._context

    @property
    def grain(self) -> int:
        return self._context  # only the start of a sequence takes several tokens

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See ``Session.forward``. Raises ContextOverflow too for more tokens in one call than the NPU's prompt holds."""
        row: NDArray[np.float32] = self.forward_last(tokens, 1)[0]
        return row

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        """See ``Session.forward_last``, and ``forward``. All but the start of a sequence is computed token by token."""
        if self._request is None:
            raise EngineError(f"the session of {self._path} is closed; open the artifact again")
        check_call(tokens, last, self.position, self._context)
        kept, final = self.position, self.position + len(tokens)
        if len(tokens) > self._prompt:
            raise ContextOverflow(
                f"a prompt of {len(tokens)} tokens; this artifact's graph for the NPU takes {self._prompt}. "
                "Shorten it, or build with a larger prompt in the target's [options]"
            )
        check_vocabulary(np.asarray(tokens, np.int64), self._vocab)
        whole = [*self._tokens, *map(int, tokens)]
        if self._held > kept:
            self._request.reset_state()
            self._held = 0
        rows: list[NDArray[np.float32]] = []
        while self._held < final:
            # As many as one run takes, but one by one where logits after each are wanted.
            start = self._held
            stop = max(1, min(final - last + 1, self._prompt)) if start == 0 else start + 1
            row = self._run(self._request, whole[start:stop], start)
            self._held = stop
            if stop > final - last:
                rows.append(row)
        self._tokens = whole
        return np.stack(rows)

    def rewind(self, length: int) -> None:
        """See ``Session.rewind``. The next call computes what is left anew."""
        check_rewind(length, self.position)
        del self._tokens[length:]

    def close(self) -> None:
        """See ``Session.close``."""
        self._request = None

    def _run(self, request: "openvino.InferRequest", tokens: Sequence[int], position: int) -> NDArray[np.float32]:
        count = position + len(tokens)
        try:
            request.infer(
                {
                    "input_ids": np.array([tokens], np.int64),
                    "attention_mask": np.ones((1, count), np.int64),
                    "position_ids": np.arange(position, count)[None],
                }
            )
        except Exception as error:  # the library raises nothing narrower
            raise EngineError(f"OpenVINO failed while running {self._path} on the NPU: {error}") from error
        row: NDArray[np.float32] = np.array(request.get_tensor("logits").data[0, -1], np.float32)
        return row
