"""Running an OpenVINO artifact on plain OpenVINO (no openvino_genai needed)."""

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekit.artifact import Manifest
from edgekit.engines.openvino import npu
from edgekit.engines.openvino.plugins import check_device, import_openvino
from edgekit.engines.openvino.settings import Settings, choose
from edgekit.engines.openvino.slots import keep
from edgekit.engines.openvino.warmup import WarmUp
from edgekit.errors import EngineError
from edgekit.parallel import cores
from edgekit.resources import cache_folder, check_release
from edgekit.runtime.session import Session, check_call, check_rewind, check_vocabulary

if TYPE_CHECKING:
    import openvino

    from edgekit.engines.openvino.operators import Kernels

MODEL = "openvino_model.xml"
LOGITS, ROPE_LENGTH, POSITIONS = "logits", "rope_length", "logits_positions"
LENGTH = "rope.length"
"""The node of a LongRoPE graph by which it chooses (graph.py)."""
CHUNK = 512
"""Tokens of a long input computed at a time: keeps the activations of a long prompt small."""
PIECE = 128
"""The same where OpenVINO's CPU plugin computes, which rounds a token alone and among others differently (docs/performance.md)."""
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
    threads = threads or cores()
    kernels = own_kernels(manifest, threads)
    config = npu.properties(prompt, context, str(details["parts"])) if device == "NPU" else properties(core, manifest, threads, kernels)
    config |= {"PERF_COUNT": "YES"} if watch is not None else {}
    try:
        model = core.read_model(path)
        if device != "NPU":
            with_inputs(model)
        attends = kernels is not None and put_kernels(model, manifest, kernels)
        request = core.compile_model(model, device, config).create_infer_request()
        if kernels is not None:
            kernels.serve(request)
    except Exception as error:  # the library raises nothing narrower
        if kernels is not None:
            kernels.close()
        raise EngineError(f"OpenVINO cannot load {path}: {error}") from error
    request = watch(request) if watch is not None else request
    if device == "NPU":
        return npu.NpuSession(request, path, context, manifest.tokens.vocab_size, prompt)
    grain = 1 if attends else reusable(manifest)
    return OpenvinoSession(
        request,
        path,
        context,
        manifest.tokens.vocab_size,
        grain=grain,
        tells_length=long_rope(model),
        kernels=kernels,
        plugin_cache=not attends,
    )


def reusable(manifest: Manifest) -> int:
    """``Session.grain`` of OpenVINO's own operators."""
    if manifest.engine.details["kv_cache"] == "uint8":
        return manifest.context.length  # what is cut off a state is quantized anew
    return PIECE if manifest.engine.details["device"] == "CPU" else CHUNK


def own_kernels(manifest: Manifest, threads: int) -> "Kernels | None":
    """edgekit's own products and attention, where they are faster here. Raises as ``cpu.products.chosen``."""
    from edgekit.engines.openvino import operators, substitute  # these import openvino, which is known to be there by now

    return operators.Kernels(threads) if substitute.chosen(manifest) else None


def put_kernels(model: "openvino.Model", manifest: Manifest, kernels: "Kernels") -> bool:
    """Whether attention and its cache are ours as well: it has them in float16, without a window."""
    from edgekit.engines.openvino import substitute

    substitute.put_products(model, kernels)
    substitute.put_gates(model, kernels)
    return manifest.engine.details["kv_cache"] == "float16" and substitute.put_attention(model, kernels)


def properties(core: "openvino.Core", manifest: Manifest, threads: int, kernels: "Kernels | None") -> dict[str, str]:
    """For ``compile_model`` on a CPU or GPU. kernels: compute the products, so that nothing of OpenVINO's is to be measured. Raises
    EngineError for a precision that the CPU does not have."""
    details = manifest.engine.details
    found = {"KV_CACHE_PRECISION": FLOATS[str(details["kv_cache"])]}
    if kernels is not None:
        return found | Settings("f32", 0, threads).properties
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


class Held:
    """A request, and the kernels that compute in it: ended together, and before Python ends."""

    def __init__(self, request: "openvino.InferRequest", kernels: "Kernels | None") -> None:
        self.request: openvino.InferRequest | None = request
        self.kernels = kernels

    def close(self) -> None:
        if self.kernels is None:
            self.drop()
        else:
            self.kernels.close(self.drop)

    def drop(self) -> None:
        self.request = None


class OpenvinoSession:
    """See ``edgekit.runtime.session.Session``.

    grain: see ``Session``. kernels: in the graph instead of OpenVINO's. plugin_cache: whether keys and values are a state of the request;
    otherwise the kernels hold them, by position.
    """

    def __init__(
        self,
        request: "openvino.InferRequest",
        path: Path,
        context: int,
        vocab: int,
        *,
        grain: int,
        tells_length: bool,
        kernels: "Kernels | None" = None,
        plugin_cache: bool = True,
    ) -> None:
        self._held = Held(request, kernels)
        self._path = path
        self._context = context
        self._vocab = vocab
        self._tells_length = tells_length
        self._grain, self._most = grain, CHUNK if grain in (1, context) else grain
        self._plugin_cache, self._cut = plugin_cache, False  # whether it holds more than is wanted
        self._mask = np.ones((1, context), np.int64)
        self._warming: WarmUp | None = None
        self._position = 0
        if kernels is None:
            self._warming = WarmUp(request, inputs([[0]], np.ones((1, 1), np.int64), 0, 1, 1 if tells_length else None), path)
        weakref.finalize(self, self._held.close)

    @property
    def position(self) -> int:
        return self._position

    @property
    def context(self) -> int:
        return self._context

    @property
    def grain(self) -> int:
        return self._grain

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See ``Session.forward``. Long input is computed in chunks; a LongRoPE graph is told the final length with each of them.

        Raises UsageError for an id outside the vocabulary, EngineError when OpenVINO fails.
        """
        row: NDArray[np.float32] = self.forward_last(tokens, 1)[0]
        return row

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        """See ``Session.forward_last``, and ``forward``."""
        request = self._held.request
        if request is None:
            raise EngineError(f"the session of {self._path} is closed; open the artifact again")
        check_call(tokens, last, self._position, self._context)
        final = self._position + len(tokens)
        ids = np.asarray(tokens, np.int64)[None]
        check_vocabulary(ids, self._vocab)
        if self._warming is not None:
            self._warming.end()
            self._warming = None
        if self._cut and self._plugin_cache:
            keep(request, self._position)
        self._cut = False
        began = self._position
        rows: list[NDArray[np.float32]] = []
        try:
            for start in range(0, len(tokens), self._most):
                stop = min(start + self._most, len(tokens))
                wanted = min(stop - start, last - (len(tokens) - stop))
                got = self._compute(request, ids[:, start:stop], max(1, wanted), final)
                if wanted > 0:
                    rows.append(got)
        except BaseException:
            self._position, self._cut = began, True
            raise
        return np.concatenate(rows)

    def rewind(self, length: int) -> None:
        """See ``Session.rewind``."""
        check_rewind(length, self._position)
        self._cut |= length < self._position
        self._position = length

    def close(self) -> None:
        """See ``Session.close``."""
        if self._warming is not None:
            self._warming.cancel()
        self._warming = None
        self._held.close()

    def _compute(self, request: "openvino.InferRequest", ids: NDArray[np.int64], last: int, final: int) -> NDArray[np.float32]:
        """The logits after each of the ``last`` last of ``ids``, [last, V], the caller's own."""
        count, final_told = ids.shape[1], final if self._tells_length else None
        mask = self._mask[:, : self._position + count]
        if self._held.kernels is not None:
            self._held.kernels.position = self._position
        try:
            request.infer(inputs(ids, mask, self._position, last, final_told), share_inputs=True)
        except Exception as error:  # the library raises nothing narrower
            if self._held.kernels is not None and (cause := self._held.kernels.failure()) is not None:
                raise cause from None
            raise EngineError(f"OpenVINO failed while running {self._path}: {error}") from error
        self._position += count
        rows: NDArray[np.float32] = np.array(request.get_output_tensor().data[0])
        return rows


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
