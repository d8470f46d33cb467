"""Quantizing: what the specification promises, and agreement with slow code written without looking at the fast one."""

import hashlib
import math
import tracemalloc
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import edgekit.quant as quant
from edgekit.errors import CheckpointError
from edgekit.quant import GROUPS, Format, QuantizedTensor, concatenate, dequantize, quantize, storage_bytes, unpack_nibbles

FORMATS = [Format(bits, group) for bits in (4, 8) for group in GROUPS]
DIGESTS = {
    "INT4 g32": "8e5c05a2e7fb0811",
    "INT4 g64": "da887c4ededc5bbd",
    "INT4 g128": "d63b68f9fad6dad3",
    "INT8 g32": "dace97666bc5388f",
    "INT8 g64": "931cb243c8be7472",
    "INT8 g128": "3860338cfdc72045",
}
LARGEST = {4: 4352.0, 8: 256.75}


def weights(n: int, k: int, *, tails: bool = False, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, (n, k)) if tails else rng.standard_normal((n, k))).astype(np.float32) * np.float32(0.02)


def codes_of(t: QuantizedTensor) -> NDArray[np.int64]:
    return (unpack_nibbles(t.codes) if t.format.bits == 4 else t.codes).astype(np.int64)


def group_errors(w: NDArray[np.float32], t: QuantizedTensor) -> NDArray[np.float64]:
    """Squared error of each group in float64, [N, G]."""
    padded = np.zeros((w.shape[0], t.zeros.shape[1] * t.format.group))
    padded[:, : w.shape[1]] = w.astype(np.float64) - dequantize(t).astype(np.float64)
    return np.square(padded.reshape(w.shape[0], -1, t.format.group)).sum(axis=2)


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    return (a.shape, a.format) == (b.shape, b.format) and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in ((a.codes, b.codes), (a.scales, b.scales), (a.zeros, b.zeros))
    )


def slow_scale(x: float, bits: int) -> float:
    """The nearest number with 7 (4-bit format) or 11 (8-bit: float16) significant bits, not below 2^-14."""
    x = max(x, 2.0**-14)
    if bits == 8:
        return float(np.float16(x))
    mantissa, exponent = math.frexp(x)
    return math.ldexp(math.floor(mantissa * 128 + 0.5), exponent - 7)


def slow_min_max(group: list[float], bits: int) -> tuple[list[int], float, int]:
    """Codes, scale and zero point of one group, in Python floats (float64)."""
    top = 2**bits - 1
    lo, hi = min(0.0, *group), max(0.0, *group)
    scale = slow_scale((hi - lo) / top, bits)
    zero = min(round(-lo / scale), top)
    return [min(max(round(x / scale) + zero, 0), top) for x in group], scale, zero


def slow_optimum(group: NDArray[np.float64]) -> float:
    """The least squared error any 4-bit scale of 7 significant bits and any zero point can reach (scales near min/max's are tried)."""
    lo, hi = min(0.0, group.min()), max(0.0, group.max())
    scale, best = slow_scale((hi - lo) / 25, 4), math.inf
    while scale < (hi - lo) / 11:
        for zero in range(16):
            r = np.clip(np.rint(group / scale), -zero, 15 - zero)
            best = min(best, float(np.square(group - r * scale).sum()))
        scale += math.ldexp(1, math.frexp(scale)[1] - 7)
    return best


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("k", [128, 300, 5])
def test_min_max_equals_a_slow_implementation(format: Format, k: int) -> None:
    w = weights(6, k, tails=True)
    t = quantize(w, format, name="w", search=False)
    q, g = codes_of(t), format.group
    back = dequantize(t)
    for row in range(len(w)):
        for at in range(t.zeros.shape[1]):
            group = [float(x) for x in w[row, at * g : (at + 1) * g]]
            codes, scale, zero = slow_min_max(group, format.bits)
            assert (float(t.scales[row, at]), int(t.zeros[row, at])) == (scale, zero)
            assert q[row, at].tolist() == codes + [zero] * (g - len(codes))  # filled up with the zero point
            assert back[row, at * g : (at + 1) * g].tolist() == [(c - zero) * scale for c in codes]


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_what_every_quantized_tensor_promises(format: Format, search: bool) -> None:
    w = weights(64, 700, tails=True)
    w[:, ::7] = 0
    t = quantize(w, format, name="w", search=search)
    groups = -(-700 // format.group)
    assert t.shape == (64, 700)
    assert t.codes.shape == (64, groups, format.group * format.bits // 8) and t.codes.dtype == np.uint8
    assert t.scales.shape == t.zeros.shape == (64, groups)
    assert (t.scales.dtype, t.zeros.dtype) == (np.float16, np.uint8)
    assert (t.scales >= 2.0**-14).all() and (t.scales <= LARGEST[format.bits]).all()
    assert (t.zeros < 2**format.bits).all()
    back = dequantize(t)
    assert back.dtype == np.float32 and back.shape == w.shape
    assert (back[:, ::7] == 0).all()
    if format.bits == 4:
        mantissa, _ = np.frexp(t.scales.astype(np.float64))
        assert (mantissa * 128 == np.rint(mantissa * 128)).all()  # at most 7 significant bits
        assert (back.astype(np.float16).astype(np.float32) == back).all()
        bias = t.zeros.astype(np.float64) * t.scales.astype(np.float64)
        assert (bias.astype(np.float16).astype(np.float64) == bias).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_round_trip_bound(format: Format, data: st.DataObject) -> None:
    """Half a scale within the grid's reach, and never more than 1/2 + levels / 128 (4 bits) or levels / 2048 (8 bits) scales."""
    limit = 30000 if format.bits == 4 else 30000.0
    finite = st.floats(-limit, limit, width=32) | st.floats(-1, 1, width=32) | st.floats(-(2.0**-12), 2.0**-12, width=32)
    w = data.draw(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 140)), elements=finite, fill=finite))
    t = quantize(w, format, name="w", search=False)
    levels = 2**format.bits - 1
    scale, zero = (np.repeat(x.astype(np.float64), format.group, axis=1)[:, : w.shape[1]] for x in (t.scales, t.zeros))
    error = np.abs(w.astype(np.float64) - dequantize(t)) / scale
    slack = 1 + 2.0**-20  # one float32 division
    reached = (w >= -(zero + 0.5) * scale) & (w <= (levels - zero + 0.5) * scale)
    assert (error[reached] <= 0.5 * slack).all()
    assert (error <= (0.5 + levels / (128 if format.bits == 4 else 2048)) * slack).all()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("tails", [False, True])
def test_search_is_near_the_optimum_and_never_worse_than_min_max(group: int, tails: bool) -> None:
    w = weights(8, 8 * group, tails=tails)
    plain = group_errors(w, quantize(w, Format(4, group), name="w", search=False))
    found = group_errors(w, quantize(w, Format(4, group), name="w"))
    best = np.array([[slow_optimum(g) for g in row.reshape(-1, group).astype(np.float64)] for row in w])
    assert (found <= plain).all()
    assert (found >= best * (1 - 1e-9)).all()  # nothing beats the exhaustive search, or one of the two is wrong
    assert found.sum() < 1.015 * best.sum()
    assert found.sum() < 0.95 * plain.sum()


@pytest.mark.parametrize("group", GROUPS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_search_is_never_worse_on_odd_weights(group: int, data: st.DataObject) -> None:
    finite = st.floats(-20000, 20000, width=32) | st.sampled_from([0.0, 1.0, -1.0, 2.0**-15, 65000.0, 2.0**-100])
    w = data.draw(arrays(np.float32, (2, group), elements=finite, fill=st.just(0.0)))
    if float(w.max(initial=0)) - float(w.min(initial=0)) > 65000:
        w /= 2
    found, plain = (group_errors(w, quantize(w, Format(4, group), name="w", search=s)) for s in (True, False))
    assert (found <= plain).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_one_result_for_any_threads_chunks_and_cuts(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights(60, 300)
    whole = quantize(w, format, name="w", threads=1)
    parts = [quantize(w[a:b], format, name="w") for a, b in ((0, 1), (1, 7), (7, 60))]
    assert same(whole, concatenate(parts))
    assert same(whole, quantize(np.asfortranarray(w), format, name="w"))
    for chunk in (1, 1000, 5000):
        monkeypatch.setattr(quant, "CHUNK", chunk)
        for threads in (1, 2, 5):
            assert same(whole, quantize(w, format, name="w", threads=threads))
        assert (dequantize(whole) == dequantize(quantize(w, format, name="w"))).all()


def test_the_same_bytes_on_every_machine() -> None:
    """Digests of what this matrix becomes, first made on x86-64 (AVX-512, and without any SIMD) under NumPy 1.26 and 2.4."""
    k = np.arange(48 * 1000, dtype=np.uint64)
    primes = np.array([2654435761, 2246822519, 3266489917, 668265263], np.uint64)
    bell = (k * primes[:, None] % np.uint64(1 << 32) >> np.uint64(12)).astype(np.int64).sum(axis=0) - (1 << 21)
    w = bell.astype(np.float32).reshape(48, 1000) * np.float32(2.0**-26)
    digests = {}
    for format in FORMATS:
        t = quantize(w, format, name="w")
        stored = t.codes.tobytes() + t.scales.astype("<f2").tobytes() + t.zeros.tobytes()
        digests[f"INT{format.bits} g{format.group}"] = hashlib.sha256(stored).hexdigest()[:16]
    assert digests == DIGESTS


@pytest.mark.parametrize("bits", [4, 8])
def test_memory_beside_weight_and_result_is_a_few_chunks(bits: int) -> None:
    w = weights(1024, 2048)
    tracemalloc.start()
    t = quantize(w, Format(bits, 32), name="w", threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    extra = peak - t.codes.nbytes - t.scales.nbytes - t.zeros.nbytes
    assert extra < 5 * quant.CHUNK * 4 < w.nbytes


def test_a_column_of_one_weight_and_a_matrix_of_one() -> None:
    for format in FORMATS:
        w = np.array([[0.3], [-0.3], [0.0]], np.float32)
        t = quantize(w, format, name="w")
        assert np.abs(dequantize(t) - w).max() < 0.002
        assert same(QuantizedTensor((1, 1), format, t.codes[:1], t.scales[:1], t.zeros[:1]), quantize(w[:1], format, name="w"))


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_all_zero_groups(format: Format, search: bool) -> None:
    w = np.zeros((2, 2 * format.group), np.float32)
    w[1] = -0.0
    t = quantize(w, format, name="w", search=search)
    assert not t.codes.any() and not t.zeros.any()
    assert (t.scales == np.float16(2.0**-14)).all()
    assert not dequantize(t).any()


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_tiny_weights_get_the_smallest_normal_scale_and_round_correctly(format: Format, search: bool) -> None:
    w = weights(4, format.group) * np.float32(2e-3)
    smallest = 2.0**-14
    t = quantize(w, format, name="w", search=search)
    assert (t.scales == smallest).all()
    assert (dequantize(t) == np.rint(w.astype(np.float64) / smallest) * smallest).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_the_greatest_weights_that_fit(format: Format) -> None:
    reach = LARGEST[format.bits] * (2**format.bits - 1)
    w = np.zeros((1, format.group), np.float32)
    w[0, :2] = reach, reach / 2
    back = dequantize(quantize(w, format, name="w"))
    assert back[0, 0] == reach and np.isfinite(back.astype(np.float16)).all()
    w[0, 1] = -reach / 100
    with pytest.raises(CheckpointError, match=r"layers\.3\.up_proj is too large .* spans 6\d{4}"):
        quantize(w, format, name="layers.3.up_proj")


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [1, 3])
def test_weights_that_are_not_finite(format: Format, bad: float, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant, "CHUNK", 1000)
    w = weights(40, 130)
    w[31, 129] = bad
    with pytest.raises(CheckpointError, match=r"tensor lm_head holds NaN or infinity"):
        quantize(w, format, name="lm_head", threads=threads)
    w[31, 129] = 3e38
    w[31, 128] = -3e38
    with pytest.raises(CheckpointError, match=r"tensor lm_head is too large"):
        quantize(w, format, name="lm_head", threads=threads)


def test_misuse() -> None:
    w = weights(2, 64)
    for bad in (w[0], w.astype(np.float16), w.astype(np.float64), w[:0], w[:, :0]):
        with pytest.raises(ValueError, match="a matrix of float32"):
            quantize(bad, Format(4, 32), name="w")
    for format in (Format(3, 32), Format(4, 48), Format(8, 16)):
        with pytest.raises(ValueError, match="not known"):
            quantize(w, format, name="w")
    t = quantize(w, Format(4, 32), name="w")
    for parts in ([], [t, quantize(w, Format(4, 64), name="w")], [t, replace(t, shape=(2, 63))]):
        with pytest.raises(ValueError, match="cannot concatenate"):
            concatenate(parts)


def test_storage_is_what_the_format_says() -> None:
    for format in FORMATS:
        t = quantize(weights(16, 4 * format.group), format, name="w")
        assert storage_bytes(t) * 8 == format.bits_per_weight * 16 * 4 * format.group
    assert storage_bytes(quantize(weights(10, 96), Format(4, 32), name="w")) == 10 * (48 + 3 * 2 + 2)


@pytest.mark.parametrize("group", [32, 128])
def test_symmetric_codes_have_the_zero_point_8_and_scales_of_7_bits(group: int) -> None:
    w = weights(40, 300)
    format = Format(4, group, symmetric=True)
    plain, searched = (quantize(w, format, name="w", search=search) for search in (False, True))
    for t in (plain, searched):
        assert (t.zeros == 8).all()
        bits = t.scales.astype(np.float32).view(np.uint32)
        assert (bits & 0x1FFFF == 0).all(), "7 significant bits"
    error = [float(np.square(dequantize(t) - w).sum()) for t in (plain, searched)]
    assert error[1] < error[0]
    assert same(searched, concatenate([quantize(w[a:b], format, name="w") for a, b in ((0, 3), (3, 40))]))


def test_eight_bits_have_no_symmetric_form() -> None:
    with pytest.raises(ValueError, match="symmetric=True"):
        quantize(weights(4, 64), Format(8, 32, symmetric=True), name="w")
