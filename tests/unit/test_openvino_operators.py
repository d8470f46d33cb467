"""edgekit's own products and attention inside OpenVINO: against exact arithmetic, the reference and OpenVINO's own on the same files."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

import openvino

import onnx_artifact
from checkpoints import SWITCH, VARIANTS
from edgekit.cpu import products
from edgekit.engines.onnx import operator
from edgekit.engines.onnx.session import open_session
from edgekit.engines.openvino import operators, substitute
from edgekit.engines.openvino.operators import Cache, Kernels
from edgekit.engines.openvino.profile import trace
from edgekit.engines.openvino.session import OpenvinoSession
from edgekit.errors import EngineError, EngineMissing, UsageError
from edgekit.target import OptionValue
from onnx_artifact import random_tokens
from openvino_artifact import Built, build, process_with_session

F32 = NDArray[np.float32]
TOKENS = random_tokens(96)
SHIPPED: dict[str, OptionValue] = {"tokenizer": False}
"""As intel-cpu has it: precision and dynamic quantization measured, cache in float16."""
pytestmark = pytest.mark.skipif(not products.runs(operators.LIBRARY), reason="not compiled here, or no AVX2")


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on machines where OpenVINO's own are as fast."""
    monkeypatch.setenv(substitute.VARIABLE, products.OWN)


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("phi"), "phi3-longrope", options=SHIPPED)


@pytest.fixture
def session(phi: Built) -> Iterator[OpenvinoSession]:
    session = phi.open()
    yield session
    session.close()


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    kernels = Kernels(3)
    yield kernels
    kernels.close()


def attended(q: F32, k: F32, v: F32, position: int) -> NDArray[np.float64]:
    """Attention in float64 of q [heads, S, size] at ``position`` to k, v [kv_heads, T, size], which are as float16 holds them."""
    k, v = (np.repeat(each.astype(np.float16), len(q) // len(each), axis=0).astype(np.float64) for each in (k, v))
    scores = q.astype(np.float64) @ k.swapaxes(1, 2) * q.shape[2] ** -0.5
    scores[:, np.arange(k.shape[1])[None] > position + np.arange(q.shape[1])[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True) @ v
    return found


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 96), (8, 2, 64), (6, 1, 128), (3, 3, 80), (2, 1, 16), (2, 2, 256)])
def test_attention_is_that_of_float64(kernels: Kernels, heads: int, kv_heads: int, size: int) -> None:
    """In calls of any length, over chunks' ends; then again from an earlier position. Scores reach 40 here, where softmax is sharp."""
    rng = np.random.default_rng(heads * size)
    q, k, v = (2 * rng.standard_normal((n, 210, size), np.float32) for n in (heads, kv_heads, kv_heads))
    cache = Cache(heads, kv_heads, size, size**-0.5, None, 0)
    for start, stop in ((0, 1), (1, 6), (6, 64), (64, 65), (65, 130), (130, 210), (100, 101), (101, 193), (193, 210)):
        new = [np.ascontiguousarray(each[None, :, start:stop]) for each in (q, k, v)]
        y = np.empty_like(new[0])
        kernels.position = start
        kernels.attention(cache, y, *new)
        np.testing.assert_allclose(y[0], attended(q[:, start:stop], k[:, :stop], v[:, :stop], start), atol=3e-5, rtol=0)
    kernels.free(cache)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("of", [0, 1, 2])
def test_what_is_no_number_is_not_attended_away(kernels: Kernels, of: int, wrong: float) -> None:
    """A query, key or value that is none, or beyond float16, makes what attends to it none; a value also earlier tokens of its call."""
    new = [np.ones((1, 1, 3, 16), np.float32) for _ in range(3)]
    new[of][0, 0, 1] = wrong
    cache, y = Cache(1, 1, 16, 0.25, None, 0), np.empty((1, 1, 3, 16), np.float32)
    kernels.attention(cache, y, *new)
    finite = [[True, False, True], [True, False, False], [False, False, False]][of]
    assert np.isfinite(y[0, 0]).all(axis=-1).tolist() == finite
    kernels.free(cache)


def test_heads_that_the_kernel_does_not_take(kernels: Kernels) -> None:
    assert kernels.attends(32, 8, 128)
    assert not any(kernels.attends(*heads) for heads in ((32, 5, 128), (4, 4, 24), (4, 4, 272), (4, 0, 64)))


@pytest.mark.parametrize(("rows", "width"), [(1, 8192), (3, 4096), (5, 5000), (2, 13)])
def test_gates_are_those_of_float64(kernels: Kernels, rows: int, width: int) -> None:
    x = (20 * np.random.default_rng(width).standard_normal((1, rows, 2 * width))).astype(np.float32)
    x[0, 0, :6] = [0, -0.0, 200, -200, 1e-30, -89]
    y = np.empty((1, rows, width), np.float32)
    kernels.gate(x, y)
    gate, up = x[..., :width].astype(np.float64), x[..., width:]
    np.testing.assert_allclose(y, gate / (1 + np.exp(-gate)) * up, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_as_near_to_the_reference_as_onnxruntimes(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the LongRoPE switch and the windows. ONNX Runtime's own products round inputs to int8 in the same groups; OpenVINO's do not
    on a CPU without VNNI, whatever they are told."""
    monkeypatch.setenv(operator.VARIABLE, operator.STOCK)
    built = build(tmp_path, variant, options=SHIPPED)
    (tmp_path / "onnx").mkdir()
    other = onnx_artifact.build(tmp_path / "onnx", variant, options={"accuracy_level": 4})
    ours, theirs = built.open(), open_session(other.directory, other.manifest, threads=1)
    assert ours._held.kernels is not None
    errors: list[tuple[float, float]] = []
    for length in (1, 9, 13, SWITCH, SWITCH + 1, 60, 96):
        wanted = built.reference(TOKENS[:length])
        for session in (ours, theirs):
            session.rewind(0)
        errors.append(tuple(np.sqrt(np.mean((session.forward(TOKENS[:length]) - wanted) ** 2)) for session in (ours, theirs)))
    ours.close()
    theirs.close()
    mine, others = np.sqrt(np.mean(np.square(errors), axis=0))
    assert 0 < mine < 1.3 * others  # measured 0.81 to 1.05


@pytest.mark.parametrize("variant", ["phi3-longrope", "llama3"])
def test_a_token_is_the_same_alone_and_in_a_prompt(tmp_path: Path, variant: str) -> None:
    """Bit for bit: no sum depends on what else is computed. So prompt lookup changes nothing, and pieces are as good as a whole."""
    built = build(tmp_path, variant, options=SHIPPED)
    session = built.open()
    count = SWITCH - 1
    whole = session.forward_last(TOKENS[:count], count)
    session.rewind(0)
    single = np.stack([session.forward(TOKENS[i : i + 1]) for i in range(count)])
    np.testing.assert_array_equal(single, whole)
    session.rewind(7)
    np.testing.assert_array_equal(session.forward_last(TOKENS[7:count], count - 7), whole[7:])
    session.close()


def test_windows_keep_openvinos_attention(tmp_path: Path) -> None:
    session = build(tmp_path, "mistral-window", options=SHIPPED).open()
    assert session._held.kernels is not None and session.grain > 1
    session.close()


@pytest.mark.parametrize("kept", ["float32", "uint8"])
def test_another_precision_of_the_cache_is_openvinos(tmp_path: Path, kept: str) -> None:
    session = build(tmp_path, "llama3", options=SHIPPED | {"kv_cache": kept}).open()
    assert session._held.kernels is not None and session.grain > 1
    session.close()


def test_which_is_chosen(phi: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def asking(**details: object) -> bool:
        engine = replace(phi.manifest.engine, details={**phi.manifest.engine.details, **details})
        return substitute.chosen(replace(phi.manifest, engine=engine))

    monkeypatch.delenv(substitute.VARIABLE)
    assert asking()
    monkeypatch.setenv(substitute.VARIABLE, products.OWN)
    assert asking(precision="float32", dynamic_quantization="on")
    assert not any([asking(dynamic_quantization="off"), asking(precision="bfloat16"), asking(device="GPU"), asking(device="NPU")])
    monkeypatch.setattr(products, "runs", lambda _: False)
    with pytest.raises(EngineMissing, match=r"EDGEKIT_OPENVINO_PRODUCTS is edgekit, .* unset it"):
        phi.open()
    monkeypatch.setenv(substitute.VARIABLE, "mkl")
    with pytest.raises(UsageError, match="edgekit or openvino"):
        phi.open()


def test_every_layer_is_ours(phi: Built) -> None:
    kernels, model = Kernels(1), phi.read()
    substitute.put_products(model, kernels)
    left = [node.get_friendly_name() for node in model.get_ops() if node.get_type_name() == "MatMul"]
    layers = phi.model.decoder.layers

    def ours() -> int:
        return sum(node.get_type_name() == "EdgekitOperator" for node in model.get_ops())

    assert left == [] and ours() == 4 * layers + 1
    substitute.put_gates(model, kernels)
    assert ours() == 5 * layers + 1
    assert substitute.put_attention(model, kernels) and ours() == 6 * layers + 1 and not model.get_sinks()
    kernels.close()


def test_ctrl_c_during_a_product_is_no_error_of_openvino(phi: Built, session: OpenvinoSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the session goes on as if nothing had been computed."""
    session.forward(TOKENS[:5])
    wanted = session.forward(TOKENS[5:6])
    session.rewind(5)
    compute = Kernels.product

    def slow(self: Kernels, *arguments: object) -> None:
        threading.Event().wait(0.05)
        compute(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Kernels, "product", slow)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            session.forward(TOKENS[5:9])
    assert session.position == 5
    np.testing.assert_array_equal(session.forward(TOKENS[5:6]), wanted)


def test_what_fails_in_an_operator_says_what(session: OpenvinoSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> int:
        return -1

    monkeypatch.setattr(session._held.kernels, "_attention", none)
    with pytest.raises(EngineError, match="no memory for the keys and values of 3 tokens"):
        session.forward(TOKENS[:3])
    monkeypatch.setattr(session._held.kernels, "_product", none)
    with pytest.raises(EngineError, match="no memory for a product with 3 rows"):
        session.forward(TOKENS[:3])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_closed_session_gives_back_file_and_threads(phi: Built) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        return maps.count(str(phi.directory / "openvino_model.bin")), len(list(Path("/proc/self/task").iterdir()))

    phi.open().close()  # whatever OpenVINO keeps for good
    _, before = held()
    sessions = [phi.open() for _ in range(3)]
    for each in sessions:
        each.forward(TOKENS[:9])
    assert held()[0] > 0
    for each in sessions:
        each.close()
    del sessions, each
    files, threads = held()
    assert files == 0 and threads <= before + 2, "OpenVINO's own threads may have come"


FAILS = "session._held.kernels._product = lambda *_: -1\ntry: session.forward([4])\nexcept Exception as error: kept = error\n"


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "session.close()",
        "del session",
        "raise SystemExit(0)",
        FAILS,  # a traceback holds OpenVINO's request
        f"{FAILS}session.close()",
        f"{FAILS}session.close()\ndel kept\nopen_session(Path(sys.argv[1]), manifest).forward([5])",
        f"{FAILS}session.loop = session, kept\ndel session, kept\nimport gc\ngc.collect()",
    ],
)
def test_a_session_that_is_left_in_any_state_ends_the_process_well(phi: Built, tmp_path: Path, end: str) -> None:
    """A request that gives up operators without Python's lock would abort the process."""
    done = process_with_session(phi, tmp_path, f"session.forward([1, 2, 3])\n{end}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_openvino_refuses_ends_well(phi: Built, tmp_path: Path) -> None:
    model = (phi.directory / "openvino_model.xml").read_text(encoding="utf-8")
    (tmp_path / "openvino_model.xml").write_text(model, encoding="utf-8")
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(EngineError, match="cannot load"):
        replace(phi, directory=tmp_path).open()


def test_profiles_name_the_operators_by_what_they_do(phi: Built) -> None:
    found = trace(phi.directory, phi.manifest, 1, lambda session: [session.forward(TOKENS[:3])][:0] and None)
    kinds = {operation.kind for operation in found}
    assert {"MatMul", "ScaledDotProductAttention"} <= kinds and "Reference" not in kinds


def test_openvinos_own_loader_takes_the_same_files(phi: Built) -> None:
    """Nothing of ours is in them."""
    request = openvino.Core().compile_model(phi.directory / "openvino_model.xml", "CPU").create_infer_request()
    one = np.ones((1, 1), np.int64)
    request.infer({"input_ids": one, "attention_mask": one, "position_ids": 0 * one, "beam_idx": np.zeros(1, np.int32)})
    assert request.get_output_tensor().data.shape == (1, 1, 320)
