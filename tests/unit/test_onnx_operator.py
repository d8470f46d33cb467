"""edgekit's own MatMulNBits: against exact arithmetic, and against ONNX Runtime's on the same graph."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.cpu import products
from edgekit.engines.onnx import operator
from edgekit.engines.onnx.session import open_session
from edgekit.errors import EngineMissing, UsageError
from onnx_artifact import Built, build, random_tokens

F32 = NDArray[np.float32]
FORMS = [(bits, group) for bits in (4, 8) for group in (32, 64, 128)]
pytestmark = pytest.mark.skipif(not products.runs(operator.LIBRARY), reason="not compiled here, or no AVX2")


class Product:
    """Codes, zero points and scales of [N, K] at random, in the operator's layout."""

    def __init__(self, n: int, k: int, bits: int, group: int, *, zeros: bool = True, bias: bool = False, whole: bool = False) -> None:
        rng = np.random.default_rng(n * k + group)
        self.n, self.k, self.bits, self.group, groups = n, k, bits, group, -(-k // group)
        self.codes = rng.integers(0, 1 << bits, (n, groups, group), dtype=np.uint8)
        self.zeros = rng.integers(0, 1 << bits, (n, groups), dtype=np.uint8) if zeros else None
        self.scales = (rng.integers(1, 9, (n, groups)) if whole else rng.uniform(0.001, 0.01, (n, groups))).astype(np.float32)
        self.bias = rng.integers(-99, 99, n).astype(np.float32) if bias else None

    def weights(self) -> NDArray[np.float64]:
        middle = np.full(self.scales.shape, 1 << (self.bits - 1)) if self.zeros is None else self.zeros
        found = (self.codes.astype(np.float64) - middle[..., None]) * self.scales[..., None]
        return found.reshape(self.n, -1)[:, : self.k]

    def model(self, *, level: int = 4, cut: str = "") -> bytes:
        codes = self.codes if self.bits == 8 else self.codes[..., ::2] | self.codes[..., 1::2] << 4
        inputs = {"codes": np.ascontiguousarray(codes), "scales": self.scales.reshape(-1)}
        if self.zeros is not None:
            even = np.pad(self.zeros, ((0, 0), (0, self.zeros.shape[1] % 2)))
            inputs["zeros"] = np.ascontiguousarray(self.zeros if self.bits == 8 else even[:, ::2] | even[:, 1::2] << 4).reshape(-1)
        if self.bias is not None:
            inputs["bias"] = self.bias
        if cut:
            inputs[cut] = inputs[cut][:-1]
        names = ["x", "codes", "scales", "zeros" if self.zeros is not None else "", "", "bias" if self.bias is not None else ""]
        while not names[-1]:
            names.pop()
        sizes = {"K": self.k, "N": self.n, "bits": self.bits, "block_size": self.group, "accuracy_level": level}
        node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **sizes)
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "m", "k"])
        made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "m", self.n])
        tensors = [numpy_helper.from_array(array, name) for name, array in inputs.items()]
        graph = helper.make_graph([node], "product", [given], [made], tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return bytes(model.SerializeToString())


def opened(model: bytes, *, own: bool = True, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if own:
        options.register_custom_ops_library(str(operator.LIBRARY))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, x: F32) -> F32:
    found: F32 = session.run(None, {"x": x[None]})[0][0]
    return found


def whole_inputs(m: int, k: int, group: int) -> F32:
    """Integers whose largest in each group is 127: as int8 they are what they were."""
    x = np.random.default_rng(m * k).integers(-127, 128, (m, k)).astype(np.float32)
    x[:, ::group] = 127
    return x


@pytest.mark.parametrize(("bits", "group"), FORMS)
@pytest.mark.parametrize("k", [16, 32, 96, 128, 160, 300, 384, 1056])
@pytest.mark.parametrize("zeros", [True, False])
def test_exact_where_the_inputs_are_int8(bits: int, group: int, k: int, zeros: bool) -> None:
    """Whole numbers that float32 holds exactly, of one and of many rows: equal, with ==."""
    product = Product(9, k, bits, group, zeros=zeros, bias=k % 3 == 0, whole=True)
    session = opened(product.model())
    for m in (1, 2, 5, 6, 7, 8, 13, 95, 96, 97, 200):
        x = whole_inputs(m, k, group)
        wanted = x.astype(np.float64) @ product.weights().T + (0 if product.bias is None else product.bias)
        assert np.abs(wanted).max() < 1 << 24
        np.testing.assert_array_equal(run(session, x), wanted)


@pytest.mark.parametrize(("bits", "group"), FORMS)
def test_as_near_to_the_exact_product_as_onnxruntimes(bits: int, group: int) -> None:
    """With real inputs both round them to int8 in groups. Root mean square of what that costs: at most 1 % more than ONNX Runtime's own."""
    product, x = Product(256, 1024, bits, group), np.random.default_rng(0).standard_normal((48, 1024)).astype(np.float32)
    wanted = x.astype(np.float64) @ product.weights().T
    ours, theirs = (np.sqrt(np.mean((run(opened(product.model(), own=own), x) - wanted) ** 2)) for own in (True, False))
    assert 0 < ours < 1.01 * theirs
    assert ours < 0.01 * wanted.std()


@pytest.mark.parametrize(("bits", "group"), FORMS)
def test_the_same_whatever_else_is_computed(bits: int, group: int) -> None:
    """A row is the same alone, among others and on any number of threads."""
    product, x = Product(515, 416, bits, group), np.random.default_rng(1).standard_normal((67, 416)).astype(np.float32)
    one, two = opened(product.model()), opened(product.model(), threads=2)
    together = run(one, x)
    np.testing.assert_array_equal(run(two, x), together)
    for m in (0, 5, 6, 60, 66):
        np.testing.assert_array_equal(run(one, x[m : m + 1])[0], together[m])
    np.testing.assert_array_equal(run(one, x[:5]), together[:5])


def test_what_is_no_number_stays_none() -> None:
    product, x = Product(8, 256, 4, 128), np.ones((3, 256), np.float32)
    x[0, 200], x[1, 3] = np.nan, np.inf
    found = run(opened(product.model()), x)
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[2]).all()


def test_zeros_give_the_bias_and_no_rows_give_none() -> None:
    product = Product(8, 256, 4, 128, bias=True)
    session = opened(product.model())
    np.testing.assert_array_equal(run(session, np.zeros((2, 256), np.float32)), np.stack([product.bias] * 2))
    assert run(session, np.zeros((0, 256), np.float32)).shape == (0, 8)


@pytest.mark.parametrize("cut", ["codes", "scales", "zeros", "bias"])
def test_weights_that_are_too_short_are_refused(cut: str) -> None:
    """Nothing is read beyond them: a file whose tensors are smaller than its node says ends in an error when it is opened."""
    with pytest.raises(Exception, match="not of the size"):
        opened(Product(8, 256, 4, 128, bias=True).model(cut=cut))


def test_inputs_of_another_width_are_refused() -> None:
    with pytest.raises(Exception, match="is not K"):
        run(opened(Product(8, 256, 4, 128).model()), np.zeros((1, 255), np.float32))


@pytest.mark.parametrize(("bits", "group"), [(4, 16), (2, 32), (4, 256)])
def test_forms_it_has_no_kernel_for_are_refused(bits: int, group: int) -> None:
    product = Product(8, 256, 4, group)
    model = onnx.load_from_string(product.model())
    next(a for a in model.graph.node[0].attribute if a.name == "bits").i = bits
    with pytest.raises(Exception, match="groups of 32, 64 and 128"):
        opened(model.SerializeToString())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("llama"), "llama", options={"accuracy_level": 4})


def test_sessions_with_either_agree(llama: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what rounding inputs to int8 moves logits, on the same files; here 1.5 times what it moves ONNX Runtime's own."""
    tokens = random_tokens(40)
    exact = llama.reference(tokens)
    errors: dict[str, float] = {}
    for wish in (products.OWN, operator.STOCK):
        monkeypatch.setenv(operator.VARIABLE, wish)
        session = open_session(llama.directory, llama.manifest, threads=1)
        errors[wish] = np.sqrt(np.mean((session.forward(tokens) - exact) ** 2))
        session.close()
    assert 0 < errors[products.OWN] < 1.5 * errors[operator.STOCK]
    assert errors[products.OWN] != errors[operator.STOCK]


def test_which_is_chosen(llama: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(operator.VARIABLE, raising=False)
    details = {**llama.manifest.engine.details, "accuracy_level": 0}
    float32 = replace(llama.manifest, engine=replace(llama.manifest.engine, details=details))
    assert operator.chosen(llama.manifest) and not operator.chosen(float32)
    monkeypatch.setenv(operator.VARIABLE, operator.STOCK)
    assert not operator.chosen(llama.manifest)
    monkeypatch.setenv(operator.VARIABLE, "edgekit")
    assert operator.chosen(llama.manifest)
    assert not operator.chosen(float32), "another precision is not put up with"
    monkeypatch.setattr(products, "runs", lambda _: False)
    with pytest.raises(EngineMissing, match="unset it"):
        open_session(llama.directory, llama.manifest)
    monkeypatch.setenv(operator.VARIABLE, "mlas")
    with pytest.raises(UsageError, match="edgekit or onnxruntime"):
        open_session(llama.directory, llama.manifest)


def test_a_library_that_is_absent_or_other_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not products.runs(tmp_path / "absent.so")
    (tmp_path / "no.so").write_bytes(b"nothing")
    assert not products.runs(tmp_path / "no.so")
    copy = shutil.copy(operator.LIBRARY, tmp_path / "old.so")
    monkeypatch.setattr(products, "VERSION", products.VERSION + 1)
    assert not products.runs(copy)
