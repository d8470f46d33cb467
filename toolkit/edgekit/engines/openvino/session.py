"""Running an OpenVINO artifact on plain OpenVINO (no openvino_genai needed)."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekit.artifact import Manifest
from edgekit.engines.openvino import npu
from edgekit.engines.openvino.plugins import check_device, import_openvino
from edgekit.engines.openvino.settings import Settings, choose
from edgekit.engines.openvino.warmup import WarmUp
from edgekit.errors import EngineError
from edgekit.parallel import cores
from edgekit.resources import cache_folder, check_release
from edgekit.runtime.session import Session, check_call, check_rewind, check_vocabulary

if TYPE_CHECKING:
    import openvino

MODEL = "openvino_model.xml"
LOGITS, ROPE_LENGTH, POSITIONS = "logits", "rope_length", "logits_positions"
LENGTH = "rope.length"
"""The node of a LongRoPE graph by which it chooses (graph.py)."""
CHUNK = 512
"""Tokens of a long input computed at a time: keeps the activations of a long prompt small."""
HOLES = 64
"""Given-up slots, beside an eighth of the sequence, that may stay in the cache before it is copied without them."""
CAPABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}
FLOATS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "uint8": "u8"}


def open_session(
    directory: Path,
    manifest: Manifest,
    *,
    threads: int | None = None,
    watch: "Callable[[openvino.InferRequest], openvino.InferRequest] | None" = None,
) -> Session:
    """Loads ``openvino_model.xml`` of an artifact.

    threads: that compute on a CPU; None takes every CPU this process may run on. watch: with it the plugin counts what its operators
    take, and the session uses what ``watch`` makes of the request.
    Raises EngineMissing (OpenVINO absent, older than the artifact needs, or without the device it is for) and EngineError (it refuses the
    file, or the device's driver fails).
    """
    openvino = import_openvino()
    check_release("openvino", openvino.__version__.split("-")[0], manifest.engine.requires.get("openvino", "0"))
    core, path, details, context = openvino.Core(), directory / MODEL, manifest.engine.details, manifest.context.length
    device, prompt = str(details["device"]), int(details.get("prompt") or 0)
    if details.get("parts") != "CPU":
        check_device(core, device)
    config = npu.properties(prompt, context, str(details["parts"])) if device == "NPU" else properties(core, manifest, threads or cores())
    config |= {"PERF_COUNT": "YES"} if watch is not None else {}
    try:
        model = core.read_model(path)
        if device != "NPU":
            with_inputs(model)
        request = core.compile_model(model, device, config).create_infer_request()
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(f"OpenVINO cannot load {path}: {error}") from error
    request = watch(request) if watch is not None else request
    if device == "NPU":
        return npu.NpuSession(request, path, context, manifest.tokens.vocab_size, prompt)
    return OpenvinoSession(request, path, context, manifest.tokens.vocab_size, tells_length=long_rope(model))


def properties(core: "openvino.Core", manifest: Manifest, threads: int) -> dict[str, str]:
    """For ``compile_model`` on a CPU or GPU. Raises EngineError for a precision that the CPU does not have."""
    details = manifest.engine.details
    found = {"KV_CACHE_PRECISION": FLOATS[str(details["kv_cache"])]}
    if details["device"] == "CPU":
        return found | settings(core, manifest, threads).properties
    # Kernels that a GPU's driver compiles are kept, so that the next load is fast; on a CPU nothing is gained (docs/openvino.md).
    return found | {"INFERENCE_PRECISION_HINT": FLOATS[str(details["precision"])], "CACHE_DIR": str(cache_folder(os.environ) / "openvino")}


def settings(core: "openvino.Core", manifest: Manifest, threads: int) -> Settings:
    """What the artifact asks for, or, where it leaves the choice, the fastest here. Raises EngineError for what this CPU does not have:
    OpenVINO would take float32 without a word."""
    details, group = manifest.engine.details, manifest.scheme.linear.group or 0
    asked, dynamic = str(details["precision"]), str(details["dynamic_quantization"])
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    measured = ["f32", *(["bf16"] if "BF16" in able else [])]
    if asked != "measured" and asked not in (here := [name for name, known in CAPABILITIES.items() if known in able]):
        raise EngineError(f"this artifact computes in {asked}, which this CPU does not; it has {', '.join(here)}. Build it for intel-cpu")
    precisions = measured if asked == "measured" else [FLOATS[asked]]
    groups = {"off": [0], "on": [group], "measured": [0, group]}[dynamic]
    return choose(core, [Settings(p, g, threads) for p in precisions for g in groups], group)


def with_inputs(model: "openvino.Model") -> None:
    """Adds what a caller may say beside openvino_genai's inputs: after which of the new tokens logits are wanted (their positions,
    int64 [n], -1 the last), and for LongRoPE how long the sequence will be (int64 [1]), so that the pieces of a long prompt take the long
    factors from the first on."""
    from openvino import opset13 as op

    product = model.output(LOGITS).get_node().input_value(0).get_node()
    positions = _input(POSITIONS, [-1])
    product.input(0).replace_source_output(op.gather(product.input_value(0), positions, op.constant(np.int64(1))).output(0))
    added = [positions]
    if node := _length(model):
        told = _input(ROPE_LENGTH, [1])
        users = list(node.output(0).get_target_inputs())
        larger = op.maximum(node, told)
        for user in users:
            user.replace_source_output(larger.output(0))
        added.append(told)
    model.add_parameters(added)
    model.validate_nodes_and_infer_types()


def _input(name: str, shape: list[int]) -> "openvino.Node":
    from openvino import PartialShape, Type
    from openvino import opset13 as op

    node = op.parameter(PartialShape(shape), Type.i64)
    node.set_friendly_name(name)
    node.output(0).get_tensor().set_names({name})
    return node


def _length(model: "openvino.Model") -> "openvino.Node | None":
    return next((node for node in model.get_ops() if node.get_friendly_name() == LENGTH), None)


def long_rope(model: "openvino.Model") -> bool:
    return any(name == ROPE_LENGTH for value in model.inputs for name in value.names)


class OpenvinoSession:
    """See ``edgekit.runtime.session.Session``.

    The cache is a state of the request and only grows. What is rewound stays in it, hidden by the attention mask, until it is worth a
    copy to be rid of it: so a wrong draft (prompt lookup) costs nothing.
    """

    def __init__(self, request: "openvino.InferRequest", path: Path, context: int, vocab: int, *, tells_length: bool) -> None:
        self._request: openvino.InferRequest | None = request
        self._path = path
        self._context = context
        self._vocab = vocab
        self._tells_length = tells_length
        self._warming: WarmUp | None = WarmUp(request, inputs([[0]], np.ones((1, 1), np.int64), 0, 1, 1 if tells_length else None), path)
        self._slots = 0
        self._slot_of = np.zeros(context, np.int64)  # the slot of each position held
        self._position = 0
        self._mask = np.ones((1, context + HOLES + context // 8 + 1), np.int64)

    @property
    def position(self) -> int:
        return self._position

    @property
    def context(self) -> int:
        return self._context

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See ``Session.forward``. Long input is computed in chunks; a LongRoPE graph is told the final length with each of them.

        Raises UsageError for an id outside the vocabulary, EngineError when OpenVINO fails.
        """
        row: NDArray[np.float32] = self.forward_last(tokens, 1)[0]
        return row

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        """See ``Session.forward_last``, and ``forward``."""
        if self._request is None:
            raise EngineError(f"the session of {self._path} is closed; open the artifact again")
        check_call(tokens, last, self._position, self._context)
        final = self._position + len(tokens)
        ids = np.asarray(tokens, np.int64)[None]
        check_vocabulary(ids, self._vocab)
        if self._warming is not None:
            self._warming.end()
            self._warming = None
        self._compact(self._request)
        began = self._position
        rows: list[NDArray[np.float32]] = []
        try:
            for start in range(0, len(tokens), CHUNK):
                stop = min(start + CHUNK, len(tokens))
                wanted = min(stop - start, last - (len(tokens) - stop))
                got = self._compute(self._request, ids[:, start:stop], max(1, wanted), final)
                if wanted > 0:
                    rows.append(got)
        except BaseException:
            self._forget(self._request, began)
            raise
        return np.concatenate(rows)

    def rewind(self, length: int) -> None:
        """See ``Session.rewind``. What is forgotten stays in the cache for a while; the mask hides it."""
        check_rewind(length, self._position)
        self._mask[0, self._slot_of[length : self._position]] = 0
        self._position = length

    def close(self) -> None:
        """See ``Session.close``."""
        if self._warming is not None:
            self._warming.cancel()
        self._request = self._warming = None

    def _compute(self, request: "openvino.InferRequest", ids: NDArray[np.int64], last: int, final: int) -> NDArray[np.float32]:
        """The logits after each of the ``last`` last of ``ids``, [last, V], the caller's own."""
        count = ids.shape[1]
        mask = self._mask[:, : self._slots + count]
        try:
            request.infer(inputs(ids, mask, self._position, last, final if self._tells_length else None), share_inputs=True)
        except Exception as error:  # the library raises nothing narrower
            raise EngineError(f"OpenVINO failed while running {self._path}: {error}") from error
        self._slot_of[self._position : self._position + count] = np.arange(self._slots, self._slots + count)
        self._slots += count
        self._position += count
        rows: NDArray[np.float32] = np.array(request.get_output_tensor().data[0])
        return rows

    def _forget(self, request: "openvino.InferRequest", position: int) -> None:
        """After a call that failed or was interrupted: whatever it left in the cache is hidden."""
        self.rewind(position)
        held = int(request.query_state()[0].state.shape[2])
        self._mask[0, self._slots : held] = 0
        self._slots = held

    def _compact(self, request: "openvino.InferRequest") -> None:
        """Takes the slots that were given up out of the cache, where there are many, or nothing else is left."""
        holes = self._slots - self._position
        if not holes or (self._position and holes <= HOLES + self._position // 8):
            return
        import openvino

        if self._position == 0:
            request.reset_state()
        else:
            kept = self._slot_of[: self._position]
            for state in request.query_state():
                state.state = openvino.Tensor(np.ascontiguousarray(state.state.data[:, :, kept]))
        self._slots = self._position
        self._slot_of[: self._position] = np.arange(self._position)
        self._mask[:] = 1


def inputs(ids: ArrayLike, mask: NDArray[np.int64], position: int, last: int, final: int | None) -> "dict[str, NDArray[np.generic]]":
    """What the graph takes for tokens from ``position`` on; ``final`` None where it has no LongRoPE."""
    tokens = np.asarray(ids, np.int64)
    told = {} if final is None else {ROPE_LENGTH: np.array([final])}
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": np.arange(position, position + tokens.shape[1])[None],
        "beam_idx": np.zeros(1, np.int32),
        POSITIONS: np.arange(-last, 0),
        **told,
    }
