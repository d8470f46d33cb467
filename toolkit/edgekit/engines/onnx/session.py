"""Running an ONNX artifact on plain ONNX Runtime (no onnxruntime-genai needed)."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Manifest
from edgekit.errors import ContextOverflow, EngineError, EngineMissing, UsageError

if TYPE_CHECKING:
    import onnxruntime

MODEL = "model.onnx"
PAST, PRESENT, ROPE_LENGTH, POSITIONS = "past_key_values.", "present.", "rope_length", "logits_positions"
FIRST_CAPACITY = 512
"""Tokens the KV cache has room for at first; it doubles from there."""
LAST_POSITION = np.full(1, -1, np.int64)
CHUNK = 512
"""Tokens of a long input computed at a time: keeps the activations of a long prompt small."""


def open_session(directory: Path, manifest: Manifest, *, threads: int | None = None) -> "OnnxSession":
    """Loads ``model.onnx`` of an artifact.

    threads: that compute; None takes every CPU this process may run on (measured: ONNX Runtime's own choice, one a physical core,
    halves the speed on two-thread virtual machines).
    Raises EngineMissing (onnxruntime absent, or older than the artifact needs) and EngineError (it refuses the file).
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(f'this artifact runs on ONNX Runtime ({error}); install it: pip install "edgekit[onnx]"') from None
    needed = manifest.engine.requires.get("onnxruntime", "0")
    if release(onnxruntime.__version__) < release(needed):
        raise EngineMissing(
            f"this artifact needs onnxruntime {needed} or newer, installed is {onnxruntime.__version__}; "
            f'upgrade it: pip install --upgrade "onnxruntime>={needed}"'
        )
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised; printing it as well would only repeat it
    # Lengths change with every call, and a memory plan would be made and kept for each.
    options.enable_mem_pattern = False
    path = directory / MODEL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}; build the artifact again") from error
    if POSITIONS not in (i.name for i in session.get_overridable_initializers()):
        raise EngineError(f"{path} has no input {POSITIONS}: an older edgekit built it; build the artifact again")
    return OnnxSession(session, path, manifest.context.length)


def release(text: str) -> tuple[int, ...]:
    """``"1.24.1"`` -> (1, 24, 1), whatever follows the numbers left out."""
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0].split("rc")[0])[:3])


def usable_cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Buffers:
    """What one binding holds: the cache of every layer, [1, KV, capacity, head_dim] by its input's name, the logits [1, 1, V], and
    the length [1] by which a LongRoPE graph chooses its factors."""

    capacity: int
    caches: Mapping[str, NDArray[np.float32]]
    logits: NDArray[np.float32]
    rope_length: NDArray[np.int64]
    binding: "onnxruntime.IOBinding"


class OnnxSession:
    """See ``edgekit.runtime.session.Session``. The cache is updated in place: each buffer is past input and present output in one."""

    def __init__(self, session: "onnxruntime.InferenceSession", path: Path, context: int) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._path = path
        self._context = context
        self._position = 0
        self._mask = np.ones((1, context), np.int64)
        self._buffers = bind(session, empty_caches(session), min(FIRST_CAPACITY, context), 0)

    @property
    def position(self) -> int:
        return self._position

    @property
    def context(self) -> int:
        return self._context

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See ``Session.forward``. Long input is computed in chunks; a LongRoPE graph is told the final length with each of them.

        Raises UsageError for an id outside the vocabulary, EngineError when ONNX Runtime fails.
        """
        row: NDArray[np.float32] = self.forward_last(tokens, 1)[0]
        return row

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        """See ``Session.forward_last``, and ``forward``."""
        if self._session is None:
            raise EngineError(f"the session of {self._path} is closed; open the artifact again")
        if not len(tokens):
            raise ValueError("forward needs at least one token")
        if not 1 <= last <= len(tokens):
            raise ValueError(f"logits of the last {last} tokens were asked for, and {len(tokens)} are given")
        final = self._position + len(tokens)
        if final > self._context:
            raise ContextOverflow(
                f"{self._position} tokens and {len(tokens)} more do not fit into the context of {self._context} this artifact was built for"
            )
        if final > self._buffers.capacity:
            capacity = min(max(final, 2 * self._buffers.capacity), self._context)
            self._buffers = bind(self._session, self._buffers.caches, capacity, self._position)
        ids = np.asarray(tokens, np.int64)[None]
        check_tokens(ids, self._buffers.logits.shape[2])
        self._buffers.rope_length[0] = final
        for start, stop in pieces(len(tokens), last):
            self._buffers.binding.bind_cpu_input("input_ids", ids[:, start:stop])
            self._buffers.binding.bind_cpu_input("attention_mask", self._mask[:, : self._position + stop])
            rows = compute(self._session, self._buffers, last if stop == len(tokens) else 1, self._path)
        self._position = final
        return rows

    def rewind(self, length: int) -> None:
        """See ``Session.rewind``. What is forgotten stays in the buffers until it is overwritten; nothing reads it."""
        if not 0 <= length <= self._position:
            raise ValueError(f"cannot rewind to {length}: the session holds {self._position} tokens")
        self._position = length

    def close(self) -> None:
        """See ``Session.close``."""
        if self._session is not None:
            self._session = None
            del self._buffers


def pieces(count: int, last: int) -> Iterator[tuple[int, int]]:
    """Where to cut ``count`` tokens: pieces of CHUNK, and what remains, which holds at least the ``last`` last tokens."""
    whole = (count - last) // CHUNK
    for i in range(whole):
        yield i * CHUNK, (i + 1) * CHUNK
    yield whole * CHUNK, count


def check_tokens(ids: NDArray[np.int64], vocab: int) -> None:
    """ONNX Runtime would read beside the embedding."""
    wrong = ids[(ids < 0) | (ids >= vocab)]
    if wrong.size:
        raise UsageError(f"token {wrong[0]} is outside the vocabulary of {vocab}; encode the text with the artifact's own tokenizer")


def empty_caches(session: "onnxruntime.InferenceSession") -> dict[str, NDArray[np.float32]]:
    """The caches of the graph, with room for no token."""
    inputs = {i.name: i.shape for i in session.get_inputs()}
    return {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in inputs.items() if name.startswith(PAST)}


def bind(session: "onnxruntime.InferenceSession", caches: Mapping[str, NDArray[np.float32]], capacity: int, kept: int) -> Buffers:
    """New buffers for ``capacity`` tokens, the first ``kept`` of them copied from ``caches``."""
    from onnxruntime import OrtValue

    binding = session.io_binding()
    grown: dict[str, NDArray[np.float32]] = {}
    for name, old in caches.items():
        new = grown[name] = np.zeros((1, old.shape[1], capacity, old.shape[3]), np.float32)
        new[:, :, :kept] = old[:, :, :kept]
        value = OrtValue.ortvalue_from_numpy(new)  # on the CPU it borrows the array's memory
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(PRESENT + name.removeprefix(PAST), value)
    logits = np.zeros((1, 1, session.get_outputs()[0].shape[2]), np.float32)
    binding.bind_ortvalue_output("logits", OrtValue.ortvalue_from_numpy(logits))
    rope_length = np.zeros(1, np.int64)
    if any(i.name == ROPE_LENGTH for i in session.get_overridable_initializers()):
        binding.bind_ortvalue_input(ROPE_LENGTH, OrtValue.ortvalue_from_numpy(rope_length))
    return Buffers(capacity, grown, logits, rope_length, binding)


def compute(session: "onnxruntime.InferenceSession", buffers: Buffers, last: int, path: Path) -> NDArray[np.float32]:
    """Runs the graph on the tokens that are bound; the logits after each of the ``last`` last of them, [last, V], the caller's own."""
    from onnxruntime import OrtValue

    if last == 1:
        run(session, buffers.binding, path)
        return np.array(buffers.logits[0])
    binding, positions = buffers.binding, np.arange(-last, 0, dtype=np.int64)
    binding.bind_ortvalue_input(POSITIONS, OrtValue.ortvalue_from_numpy(positions))
    # Memory of ONNX Runtime's own: it takes no buffer whose shape is not the one that the graph declares.
    binding.bind_output("logits")
    try:
        run(session, binding, path)
        rows: NDArray[np.float32] = binding.get_outputs()[-1].numpy()[0]
        return rows
    finally:
        binding.bind_ortvalue_input(POSITIONS, OrtValue.ortvalue_from_numpy(LAST_POSITION))
        binding.bind_ortvalue_output("logits", OrtValue.ortvalue_from_numpy(buffers.logits))


def run(session: "onnxruntime.InferenceSession", binding: "onnxruntime.IOBinding", path: Path) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(f"ONNX Runtime failed while running {path}: {error}") from error
