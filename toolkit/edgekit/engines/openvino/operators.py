"""Operators of our own inside OpenVINO's CPU plugin: products with the portable weights, attention and gates (operators.c, cpu/).

The plugin calls ``evaluate`` from the thread that infers. Device side: imports nothing of the build.
"""

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import Node, Op, Output, PartialShape, Tensor, Type
from openvino import opset13 as op

from edgekit.errors import EngineError

LIBRARY = Path(__file__).with_name("_operators.so")
BITS = {"u4": 4, "u8": 8}
Own = TypeVar("Own", bound="Operator")


class Weights(ctypes.Structure):
    """matmul.h's edgekit_weights_t."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("bits", ctypes.c_int),
        ("group", ctypes.c_int),
    )


class Cache(ctypes.Structure):
    """attention.h's edgekit_cache_t."""

    _fields_ = (
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("chunks", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


RETIRED: "list[tuple[weakref.ref[openvino.InferRequest], list[Operator]]]" = []
"""Operators of requests that something, such as a traceback, still held when their session was closed. A request gives up its operators
without Python's lock, which must not be the end of them; so each has a reference that not even the end of the process takes away."""


def retire(request: "weakref.ref[openvino.InferRequest]", operators: "list[Operator]") -> None:
    for operator in operators:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(operator))
    RETIRED.append((request, operators))


def free_retired() -> None:
    """Of requests that have ended. Not to be called while Python collects garbage: what it is about to free counts as ended then."""
    ended = [pair for pair in RETIRED if pair[0]() is None]
    RETIRED[:] = [pair for pair in RETIRED if pair[0]() is not None]
    for operator in (operator for _, operators in ended for operator in operators):
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(operator))


class Kernels:
    """The threads, caches and operators of one model; to be closed after its last inference.

    position: of the first token of the next inference, which a caller says.
    """

    def __init__(self, threads: int) -> None:
        """Raises EngineError where the system gives no such threads."""
        free_retired()
        self._library = ctypes.CDLL(str(LIBRARY))
        self._library.edgekit_pool.restype = ctypes.c_void_p
        self._pool = ctypes.c_void_p(self._library.edgekit_pool(threads))
        if not self._pool:
            raise EngineError(f"the system gives no {threads} threads; ask for fewer (--threads)")
        self._product = self._library.edgekit_pool_product
        self._product.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64]
        self._attention = self._library.edgekit_pool_attention
        self._attention.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 2
        self._gate = self._library.edgekit_pool_gate
        self._gate.argtypes, self._gate.restype = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2, None
        self._operators: list[Operator] = []
        self._request: weakref.ref[openvino.InferRequest] | None = None
        self._failure: BaseException | None = None
        self.position = 0

    def made(self, operator: "Operator") -> None:
        self._operators.append(operator)

    def serve(self, request: "openvino.InferRequest") -> None:
        """Tells of the request that computes with the operators."""
        self._request = weakref.ref(request)

    def attends(self, heads: int, kv_heads: int, size: int) -> bool:
        """Whether there is a kernel of attention for such heads."""
        return bool(self._library.edgekit_attention_takes(*(ctypes.c_int64(value) for value in (heads, kv_heads, size))))

    def product(self, weights: Weights, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        if x.size and self._product(self._pool, ctypes.byref(weights), x.ctypes.data, y.ctypes.data, x.size // weights.k):
            raise EngineError(f"no memory for a product with {x.size // weights.k} rows")

    def attention(self, cache: Cache, y: NDArray[np.float32], *new: NDArray[np.float32]) -> None:
        """y: [1, heads, S, size]. new: queries like it, keys and values [1, kv_heads, S, size], which enter the cache at ``position``."""
        if self._attention(self._pool, ctypes.byref(cache), *(each.ctypes.data for each in (*new, y)), self.position, y.shape[2]):
            raise EngineError(f"no memory for the keys and values of {self.position + y.shape[2]} tokens")

    def gate(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        self._gate(self._pool, x.ctypes.data, y.ctypes.data, y.size // y.shape[2], y.shape[2])

    def fail(self, error: BaseException) -> None:
        self._failure = error

    def failure(self) -> BaseException | None:
        """What ended an operator, once: OpenVINO raises an error of its own, Ctrl-C or not."""
        found, self._failure = self._failure, None
        return found

    def close(self, end: Callable[[], None] = lambda: None) -> None:
        """end: drops the caller's request."""
        known = self._request is not None and self._request() is not None
        end()
        for operator in self._operators:
            operator.close()
        if self._pool:
            self._library.edgekit_pool_free(self._pool)
            self._pool = ctypes.c_void_p()
        if self._request is not None and not (known and self._request() is None):
            retire(self._request, self._operators)
        self._request, self._operators = None, []

    def free(self, cache: Cache) -> None:
        self._library.edgekit_cache_free(ctypes.byref(cache))


class EdgekitOperator:
    """Names the operators' type. ``Op`` keeps for good what it is given, so an operator does not give itself."""


class Operator(Op):  # type: ignore[misc]
    """One float32 output, of the first input's shape but for a last dimension of ``width``."""

    def __init__(self, kernels: Kernels, inputs: list[Output], width: int) -> None:
        self.kernels, self._width, self._count = kernels, width, len(inputs)
        self._shapes: dict[tuple[int, ...], Node] = {}
        kernels.made(self)
        super().__init__(EdgekitOperator(), inputs)

    def validate_and_infer_types(self) -> None:
        given = self.get_input_partial_shape(0)
        self.set_output_type(0, Type.f32, PartialShape([*(given[i] for i in range(len(given) - 1)), self._width]))

    def clone_with_new_inputs(self, inputs: list[Output]) -> Node:
        """The plugin asks for a copy with static inputs at every inference, for the shape of its output alone."""
        given = inputs[0].get_partial_shape()
        if not given.is_static:
            return self.copied(inputs)
        key = (*(given[i].get_length() for i in range(len(given) - 1)), self._width)
        if key not in self._shapes:
            self._shapes[key] = op.parameter(PartialShape(list(key)), Type.f32)
        return self._shapes[key]

    def has_evaluate(self) -> bool:
        return True

    def visit_attributes(self, _: object) -> bool:
        return True

    def evaluate(self, outputs: list[Tensor], inputs: list[Tensor]) -> bool:
        try:
            # By index: OpenVINO ends an iteration with a C++ exception, which takes as long as all else here.
            self.compute(outputs[0].data, *[inputs[i].data for i in range(self._count)])
        except BaseException as error:  # Ctrl-C arrives here as well
            self.kernels.fail(error)
            return False
        return True

    def close(self) -> None:
        self._shapes.clear()

    def copied(self, inputs: list[Output]) -> "Operator":
        raise NotImplementedError

    def compute(self, y: NDArray[np.float32], *inputs: NDArray[np.float32]) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Matrix:
    """Constants of a decompressed matrix: codes [N, G, g], scales [N, G, 1], zeros [N, G, 1] or none."""

    codes: Node
    scales: Node
    zeros: Node | None


@dataclass(frozen=True)
class Stored:
    """What the kernel reads, and the arrays it lies in: codes as they are mapped, scales as float32, zero points row by row."""

    weights: Weights
    arrays: tuple[NDArray[np.generic] | None, ...]

    @staticmethod
    def of(matrix: Matrix) -> "Stored":
        n, groups, group = (int(size) for size in matrix.codes.get_output_shape(0))
        bits = BITS[matrix.codes.get_element_type().get_type_name()]
        codes, scales = matrix.codes.data, matrix.scales.data.astype(np.float32)
        zeros = None if matrix.zeros is None else matrix.zeros.data
        if zeros is not None and bits == 4 and groups % 2:  # in the file rows of an odd number share a byte
            flat = np.stack([zeros.reshape(-1) & 15, zeros.reshape(-1) >> 4], axis=1).reshape(-1)[: n * groups]
            even = np.pad(flat.reshape(n, groups), ((0, 0), (0, 1)))
            zeros = np.ascontiguousarray(even[:, ::2] | even[:, 1::2] << 4)
        at = None if zeros is None else zeros.ctypes.data
        weights = Weights(codes.ctypes.data, at, scales.ctypes.data, n, groups * group, bits, group)
        return Stored(weights, (codes, scales, zeros))


class Product(Operator):
    """x [B, S, K] -> [B, S, N]."""

    def __init__(self, kernels: Kernels, x: Output, stored: Stored) -> None:
        self._stored: Stored | None = stored
        super().__init__(kernels, [x], stored.weights.n)

    def copied(self, inputs: list[Output]) -> Operator:
        assert self._stored is not None
        return Product(self.kernels, inputs[0], self._stored)

    def compute(self, y: NDArray[np.float32], *inputs: NDArray[np.float32]) -> None:
        assert self._stored is not None
        self.kernels.product(self._stored.weights, inputs[0], y)

    def close(self) -> None:
        super().close()
        self._stored = None


class Attention(Operator):
    """Rotated queries [1, heads, S, size], keys and values [1, kv_heads, S, size] of new tokens -> [1, heads, S, size]. Causal, with the
    cache in float16."""

    def __init__(self, kernels: Kernels, inputs: list[Output], scale: float) -> None:
        heads, kv_heads, size = (int(inputs[i].get_partial_shape()[axis].get_length()) for i, axis in ((0, 1), (1, 1), (0, 3)))
        self._cache = Cache(heads, kv_heads, size, scale, None, 0)
        super().__init__(kernels, inputs, size)

    def copied(self, inputs: list[Output]) -> Operator:
        return Attention(self.kernels, inputs, self._cache.scale)

    def compute(self, y: NDArray[np.float32], *inputs: NDArray[np.float32]) -> None:
        self.kernels.attention(self._cache, y, *inputs)

    def close(self) -> None:
        super().close()
        self.kernels.free(self._cache)


class Gate(Operator):
    """[B, S, 2 * width], gate and up side by side -> silu(gate) * up [B, S, width]."""

    def __init__(self, kernels: Kernels, x: Output) -> None:
        super().__init__(kernels, [x], x.get_partial_shape()[2].get_length() // 2)

    def copied(self, inputs: list[Output]) -> Operator:
        return Gate(self.kernels, inputs[0])

    def compute(self, y: NDArray[np.float32], *inputs: NDArray[np.float32]) -> None:
        self.kernels.gate(inputs[0], y)
