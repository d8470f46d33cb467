"""Running an ONNX artifact on plain ONNX Runtime (no onnxruntime-genai needed)."""

import mmap
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Manifest
from edgekit.engines.onnx import operator
from edgekit.engines.onnx.providers import PROVIDERS, Provider, open_on, provider
from edgekit.errors import ArtifactError, EngineError, EngineMissing
from edgekit.parallel import cores
from edgekit.resources import check_release
from edgekit.runtime.session import check_call, check_rewind, check_vocabulary

if TYPE_CHECKING:
    import onnxruntime

MODEL = "model.onnx"
PAST, PRESENT, ROPE_LENGTH, POSITIONS = "past_key_values.", "present.", "rope_length", "logits_positions"
FIRST_CAPACITY = 512
"""Tokens the KV cache has room for at first; it doubles from there."""
LAST_POSITION = np.full(1, -1, np.int64)
CACHED: "dict[str, type[np.generic]]" = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
"""Types of a KV cache, as ONNX Runtime names them."""
MOST_CACHE = 1 << 18
"""Numbers of one layer's keys for one token, far above any known model's."""
CHUNK = 512
"""Tokens of a long input computed at a time: keeps the activations of a long prompt small."""
PIECE = 128
"""The same on a CPU where the engine rounds a token alone and among others differently (docs/performance.md)."""


def open_session(directory: Path, manifest: Manifest, *, threads: int | None = None, trace: Path | None = None) -> "OnnxSession":
    """Loads ``model.onnx`` of an artifact.

    threads: that compute; None takes every CPU this process may run on (measured: ONNX Runtime's own choice, one a physical core,
    halves the speed on two-thread virtual machines). trace: prefix of the file that ``end_trace`` names.
    Raises EngineMissing (onnxruntime absent, older than the artifact needs, or without the device it is for) and EngineError (it
    refuses the file).
    """
    chosen = provider(manifest.engine.details.get("provider"))
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(f'this artifact runs on ONNX Runtime ({error}); install it: pip install "edgekit[{chosen.extra}]"') from None
    python = "" if sys.version_info >= (3, 11) else " (from 1.24 on it needs Python 3.11 or newer)"
    check_release("onnxruntime", onnxruntime.__version__, manifest.engine.requires.get("onnxruntime", "0"), python)
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised; printing it as well would only repeat it
    # Lengths change with every call, and a memory plan would be made and kept for each.
    options.enable_mem_pattern = False
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    path = directory / MODEL
    own = operator.chosen(manifest)
    if own:
        operator.register(options, manifest)
    session = open_on(chosen, path, options)
    if POSITIONS not in (i.name for i in session.get_overridable_initializers()):
        raise EngineError(f"{path} has no input {POSITIONS}: an older edgekit built it; build the artifact again")
    check_graph(session, path, manifest.tokens.vocab_size)
    return OnnxSession(session, path, manifest.context.length, chosen, alike=own and operator.attends(manifest))


def check_graph(session: "onnxruntime.InferenceSession", path: Path, vocab: int) -> None:
    """Buffers are made by what a graph says of itself. Raises ArtifactError for one that no exporter of edgekit writes."""
    given = {i.name: i for i in session.get_inputs()}
    made = {o.name: o for o in session.get_outputs()}
    caches = [name for name in given if name.startswith(PAST)]
    lacking = [name for name in ("input_ids", "attention_mask") if name not in given]
    lacking += [name for name in ("logits", *(PRESENT + name.removeprefix(PAST) for name in caches)) if name not in made]
    if lacking or not caches:
        raise ArtifactError(f"{path} has no {lacking[0] if lacking else 'KV cache'}; build the artifact again")
    for name in caches:
        shape = given[name].shape
        heads, size = (shape[1], shape[3]) if len(shape) == 4 else (None, None)
        if not (isinstance(heads, int) and isinstance(size, int) and heads > 0 and size > 0 and heads * size <= MOST_CACHE):
            raise ArtifactError(f"{path}: {name} has shape {shape}, wanted [1, heads, length, size of a head]; build the artifact again")
    if len(made["logits"].shape) != 3 or made["logits"].shape[2] != vocab:
        raise ArtifactError(f"{path}: logits have shape {made['logits'].shape}, wanted [.., .., {vocab}]; build the artifact again")


@dataclass(frozen=True)
class Buffers:
    """What one binding holds: the cache of every layer, [1, KV, capacity, head_dim] by its input's name, the logits [1, 1, V], and
    the length [1] by which a LongRoPE graph chooses its factors. settled: past input and present output are one buffer, which on a
    device they become with the first run: there ONNX Runtime's Python cannot make a tensor, only keep one that a run returned."""

    capacity: int
    caches: "dict[str, NDArray[np.generic] | onnxruntime.OrtValue]"
    logits: NDArray[np.float32]
    rope_length: NDArray[np.int64]
    binding: "onnxruntime.IOBinding"
    settled: bool
    owner: "onnxruntime.InferenceSession"
    """Of the device memory; the last field, so that it is let go after what lies in it."""


class OnnxSession:
    """See ``edgekit.runtime.session.Session``. The cache is updated in place: each buffer is past input and present output in one.

    alike: a token is rounded the same alone and among others.
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        path: Path,
        context: int,
        provider: Provider = PROVIDERS["cpu"],
        *,
        alike: bool = False,
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._path = path
        self._context = context
        self._position = 0
        self._mask = np.ones((1, context), np.int64)
        self._provider = provider
        self._alike = alike
        # What cannot be appended to cannot be copied into a larger buffer either (DirectML reads the past from the present's buffer).
        capacity = min(FIRST_CAPACITY, context) if provider.appends else context
        self._buffers = bind(session, capacity, provider.device)

    @property
    def position(self) -> int:
        return self._position

    @property
    def context(self) -> int:
        return self._context

    @property
    def grain(self) -> int:
        return 1 if self._alike else self._most() if self._provider.appends else self._context

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
        check_call(tokens, last, self._position, self._context)
        final = self._position + len(tokens)
        if final > self._buffers.capacity:
            # Room for an answer as well, or the first token after a long prompt would copy the cache once more; unused it takes no memory.
            capacity = min(max(final + FIRST_CAPACITY, 2 * self._buffers.capacity), self._context)
            self._buffers = grow(self._buffers, capacity, self._position, self._provider.device)
        ids = np.asarray(tokens, np.int64)[None]
        check_vocabulary(ids, self._buffers.logits.shape[2])
        self._buffers.rope_length[0] = final
        rows: list[NDArray[np.float32]] = []
        most = self._most() if self._provider.appends else len(tokens) if self._position == 0 else 1
        for piece in pieces(len(tokens), most):
            wanted = min(piece.stop - piece.start, last - (len(tokens) - piece.stop))
            self._buffers.binding.bind_cpu_input("input_ids", ids[:, piece])
            self._buffers.binding.bind_cpu_input("attention_mask", self._mask[:, : self._position + piece.stop])
            got = compute(self._session, self._buffers, max(1, wanted), self._path)
            if wanted > 0:
                rows.append(got)
            if not self._buffers.settled:
                self._buffers = settle(self._buffers)
        self._position = final
        return np.concatenate(rows)

    def _most(self) -> int:
        """Tokens that are computed at a time: few where only whole pieces can be taken up again, and each of them takes its time."""
        return CHUNK if self._alike or self._provider.device is not None else PIECE

    def rewind(self, length: int) -> None:
        """See ``Session.rewind``. What is forgotten stays in the buffers until it is overwritten; nothing reads it."""
        check_rewind(length, self._position)
        self._position = length

    def end_trace(self) -> tuple[Path, float]:
        """Of a session that was opened with one: the file of events, and the time of ``time.perf_counter`` at which its clock began."""
        if self._session is None:
            raise EngineError(f"the session of {self._path} is closed; open the artifact again")
        began, wall, here = self._session.get_profiling_start_time_ns(), time.time_ns(), time.perf_counter_ns()
        if abs(began - wall) < abs(began - here):  # C++'s finest clock is the calendar's with some compilers, the monotonic one with others
            began += here - wall
        return Path(self._session.end_profiling()), began / 1e9

    def close(self) -> None:
        """See ``Session.close``."""
        if self._session is not None:
            del self._buffers  # before the session whose memory they lie in
            self._session = None


def pieces(count: int, size: int) -> list[slice]:
    """``count`` new tokens in runs of ``size``."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def bind(session: "onnxruntime.InferenceSession", capacity: int, device: str | None) -> Buffers:
    """Empty buffers for ``capacity`` tokens. Raises EngineError for a cache of another type than CACHED."""
    from onnxruntime import OrtValue

    binding = session.io_binding()
    caches: dict[str, NDArray[np.generic] | onnxruntime.OrtValue] = {}
    for i in session.get_inputs():
        if i.name.startswith(PAST):
            if i.type not in CACHED:
                raise EngineError(f"{i.name} is {i.type}, and this edgekit knows no such KV cache; upgrade edgekit")
            caches[i.name] = zeros((1, i.shape[1], capacity, i.shape[3]), CACHED[i.type])
            bind_cache(binding, i.name, caches[i.name], device)
    logits = np.zeros((1, 1, session.get_outputs()[0].shape[2]), np.float32)
    binding.bind_ortvalue_output("logits", OrtValue.ortvalue_from_numpy(logits))
    rope_length = np.zeros(1, np.int64)
    if any(i.name == ROPE_LENGTH for i in session.get_overridable_initializers()):
        binding.bind_ortvalue_input(ROPE_LENGTH, OrtValue.ortvalue_from_numpy(rope_length))
    return Buffers(capacity, caches, logits, rope_length, binding, settled=device is None, owner=session)


def grow(buffers: Buffers, capacity: int, kept: int, device: str | None) -> Buffers:
    """The same buffers with room for ``capacity`` tokens, the first ``kept`` of them as they were.

    One layer after the other, so that only one is held twice. Broken off in between (Ctrl-C, MemoryError) all get their old length back:
    the graph wants one length for all.
    """
    try:
        for name in buffers.caches:
            resize(buffers, name, capacity, kept, device)
    except BaseException:
        for name, held in buffers.caches.items():
            if (held.shape if isinstance(held, np.ndarray) else held.shape())[2] != buffers.capacity:
                resize(buffers, name, buffers.capacity, kept, device)
        raise
    return replace(buffers, capacity=capacity, settled=device is None)


def resize(buffers: Buffers, name: str, capacity: int, kept: int, device: str | None) -> None:
    held = buffers.caches[name]
    old = held if isinstance(held, np.ndarray) else held.numpy()
    new = zeros((1, old.shape[1], capacity, old.shape[3]), old.dtype)
    new[:, :, :kept] = old[:, :, :kept]
    buffers.caches[name] = new  # first: what is bound must not outlive it unseen
    bind_cache(buffers.binding, name, new, device)


def bind_cache(binding: "onnxruntime.IOBinding", name: str, array: NDArray[np.generic], device: str | None) -> None:
    from onnxruntime import OrtValue

    value = OrtValue.ortvalue_from_numpy(array)  # on the CPU it borrows the array's memory
    binding.bind_ortvalue_input(name, value)
    if device is None:
        binding.bind_ortvalue_output(PRESENT + name.removeprefix(PAST), value)
    else:
        binding.bind_output(PRESENT + name.removeprefix(PAST), device)


def zeros(shape: tuple[int, ...], dtype: "np.dtype[np.generic] | type[np.generic]") -> NDArray[np.generic]:
    """An array in a mapping of its own: pages that nothing was written to take no memory, and all go back when it is let go.

    numpy's own large arrays ask Linux for pages of 2 MB. A cache is written in strips, one a head, so with these it would be resident
    as a whole from the first tokens on.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform != "win32" else {}
    return np.frombuffer(mmap.mmap(-1, size, **private), dtype).reshape(shape)


def settle(buffers: Buffers) -> Buffers:
    """The present that the first run left on the device becomes past input and present output of those to come."""
    values = buffers.binding.get_outputs()
    kept: dict[str, NDArray[np.generic] | onnxruntime.OrtValue] = {}
    for name, value in zip(buffers.caches, values, strict=False):  # bound in this order, the logits last
        kept[name] = value
        buffers.binding.bind_ortvalue_input(name, value)
        buffers.binding.bind_ortvalue_output(PRESENT + name.removeprefix(PAST), value)
    return replace(buffers, caches=kept, settled=True)


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
