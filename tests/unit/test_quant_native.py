"""kernel.c against its definition, the NumPy code: every byte equal."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edgekit.errors import CheckpointError
from edgekit.quant import Format, QuantizedTensor, columns, dequantize, native, quantize

pytestmark = pytest.mark.skipif(native.KERNEL is None, reason="no C compiler was at hand when edgekit was installed")
FORMATS = [Format(bits, group) for bits in (4, 8) for group in (32, 64, 128)]
F32 = NDArray[np.float32]


def by_numpy(weight: F32 | NDArray[np.uint16], format: Format, search: bool) -> QuantizedTensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "KERNEL", None)
        return quantize(weight, format, name="w", search=search, threads=1)


def check(weight: F32 | NDArray[np.uint16], format: Format, search: bool) -> None:
    got, wanted = quantize(weight, format, name="w", search=search, threads=2), by_numpy(weight, format, search)
    np.testing.assert_array_equal(got.codes, wanted.codes)
    np.testing.assert_array_equal(got.scales, wanted.scales)
    np.testing.assert_array_equal(got.zeros, wanted.zeros)


def kinds() -> dict[str, F32]:
    rng = np.random.default_rng(11)
    normal = rng.standard_normal((40, 300)).astype(np.float32)
    grid = dequantize(quantize(normal[:, :256].copy(), Format(4, 32), name="w"))
    grid8 = dequantize(quantize(normal[:, :256].copy(), Format(8, 32), name="w"))
    heavy = np.where(rng.random(normal.shape) < 0.02, normal * np.float32(40), normal * np.float32(0.02))
    return {
        "normal": normal,
        "heavy tails": heavy.astype(np.float32),
        "on an INT4 grid": grid,
        "on an INT8 grid": grid8,
        "one sign": np.abs(normal),
        "constant": np.full((3, 130), 0.3, np.float32),
        "powers of two": np.float32(2.0) ** rng.integers(-20, 12, (20, 200)).astype(np.float32),
        "zeros of both signs": np.where(rng.random((5, 130)) < 0.5, np.float32(-0.0), np.float32(0.0)),
        "subnormal": normal * np.float32(1e-41),
        "small": normal * np.float32(1e-5),
        "large": np.clip(normal * np.float32(9000), -32000, 32000),
        "few values": rng.integers(-3, 4, (30, 257)).astype(np.float32) * np.float32(0.125),
        "one weight a row": normal[:, :1].copy(),
    }


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("kind", list(kinds()))
def test_equal_to_numpy(kind: str, search: bool, format: Format) -> None:
    weight = kinds()[kind]
    check(weight, format, search)
    check(np.asfortranarray(weight), format, search)
    check((weight.view(np.uint32) >> 16).astype(np.uint16), format, search)


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 140)), elements=st.floats(-30000, 30000, width=32)),
    st.sampled_from(FORMATS),
    st.booleans(),
)
def test_equal_to_numpy_on_anything(weight: F32, format: Format, search: bool) -> None:
    check(weight, format, search)


def test_bfloat16_is_its_upper_half_of_float32() -> None:
    weight = kinds()["normal"]
    bits = (weight.view(np.uint32) >> 16).astype(np.uint16)
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    got, wanted = quantize(bits, Format(4, 128), name="w"), quantize(widened, Format(4, 128), name="w")
    np.testing.assert_array_equal(got.codes, wanted.codes)


@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN"), (np.inf, "NaN or infinity"), (-np.inf, "infinity"), (70000.0, "too large")])
@pytest.mark.parametrize("at", [(0, 0), (7, 299)])
def test_the_same_refusals(value: float, words: str, at: tuple[int, int]) -> None:
    weight = kinds()["normal"]
    weight[at] = value
    with pytest.raises(CheckpointError, match=words):
        quantize(weight, Format(4, 64), name="w")


def test_a_library_of_another_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.load(tmp_path / "absent.so") is None
    (tmp_path / "no.so").write_bytes(b"nothing")
    assert native.load(tmp_path / "no.so") is None
    place = Path(native.__file__).with_name("_kernel.so")
    assert native.load(place) is not None
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    assert native.load(place) is None


@pytest.mark.parametrize(("n", "b"), [(1, 1), (7, 32), (33, 128), (64, 100)])
def test_columns_equal_to_numpy(n: int, b: int) -> None:
    rng = np.random.default_rng(n * b)
    weight = rng.standard_normal((n, b)).astype(np.float32)
    scale = np.repeat(rng.uniform(0.05, 0.4, (n, -(-b // 32))).astype(np.float32), 32, axis=1)[:, :b].copy()
    zero = np.repeat(rng.integers(0, 16, (n, -(-b // 32))).astype(np.float32), 32, axis=1)[:, :b].copy()
    x = rng.standard_normal((3 * b, b)).astype(np.float32)
    h = np.ascontiguousarray(x.T @ x)
    upper = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32))

    def run() -> list[F32]:
        w, codes = weight.copy(), np.empty_like(weight)
        columns.compensate(w, scale, zero, upper, codes)
        pull = np.ascontiguousarray((weight - codes * scale) @ h)
        first = codes.copy()
        columns.descend(scale, zero, h, pull, codes)
        return [first, w, codes, pull]

    got = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "COMPENSATE", None)
        patch.setattr(native, "DESCEND", None)
        wanted = run()
    assert (got[0] != got[2]).any() or b == 1, "a sweep changes codes"
    for a, expected in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, expected)
