"""Weights that already lie on a grid come back with ==."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from edgekit.quant import GROUPS, Format, dequantize, quantize

INT4_SCALES = st.builds(lambda m, e: m * 2.0**e, st.integers(64, 127), st.integers(-20, 6)).filter(lambda s: s <= 4352)
INT8_SCALES = st.builds(lambda m, e: m * 2.0**e, st.integers(1024, 2047), st.integers(-24, -3)).filter(lambda s: s <= 256.75)


def some_codes(data: st.DataObject, top: int, group: int) -> tuple[NDArray[np.int64], int]:
    """Codes of one group drawn from a few values only, or from all, and a zero point."""
    allowed = data.draw(st.lists(st.integers(0, top), min_size=1, max_size=4) | st.just(list(range(top + 1))))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    return rng.choice(allowed, group), data.draw(st.integers(0, top))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("search", [False, True])
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_4_bit_grid(bits: int, group: int, search: bool, data: st.DataObject) -> None:
    """Both formats reproduce it; where a scale of the 8-bit format does not reach it is out of its range."""
    scale = data.draw(INT4_SCALES if bits == 4 else INT8_SCALES)
    rows = []
    for _ in range(3):
        q, zero = some_codes(data, 15, group)
        rows.append((q - zero) * scale)
    w = np.array(rows).astype(np.float32)
    assert (dequantize(quantize(w, Format(bits, group), name="w", search=search)) == w).all()


@pytest.mark.parametrize("search", [False, True])
def test_every_range_of_codes(search: bool) -> None:
    """All 136 pairs of least and greatest step, every 7-bit significand, one nonzero value or a mix."""
    rng = np.random.default_rng(0)
    for significand in range(64, 128):
        lows, highs = np.array([(lo, hi) for lo in range(-15, 1) for hi in range(16) if hi - lo <= 15]).T
        r = rng.integers(lows[:, None], highs[:, None] + 1, (len(lows), 64))
        r[:, 40], r[:, 41] = lows, highs
        r[:, 32:40] = 0  # the second group of 32 has few values
        r[:, 42:] = 0
        w = (r * (significand * 2.0**-13)).astype(np.float32)
        assert (dequantize(quantize(w, Format(4, 32), name="w", search=search)) == w).all()
        assert (dequantize(quantize(w, Format(4, 64), name="w", search=search)) == w).all()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_was_quantized_once_stays(bits: int, group: int, dtype: str) -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_t(3, (200, 3 * group + 17)).astype(np.float32)
    w *= np.exp(rng.uniform(-12, 3, (200, 1))).astype(np.float32)  # tiny ones too: their scale is the smallest
    w[::5] = np.abs(w[::5])
    if dtype == "bfloat16":
        w = (w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    elif dtype == "float16":
        w = w.astype(np.float16).astype(np.float32)
    once = dequantize(quantize(w, Format(bits, group), name="w"))
    assert not (once == w).all()
    assert (dequantize(quantize(once, Format(bits, group), name="w")) == once).all()
    assert (dequantize(quantize(once, Format(bits, group), name="w", search=False)) == once).all()


@settings(deadline=None, max_examples=50)
@given(scale=INT8_SCALES, zero=st.integers(0, 255), seed=st.integers(0, 1000), short=st.integers(0, 1))
def test_8_bit_grids_that_use_their_range(scale: float, zero: int, seed: int, short: int) -> None:
    q = np.random.default_rng(seed).integers(short, 256, (1, 128))
    q[0, :3] = short, 255, zero if zero >= short else short
    w = ((q - max(zero, short)) * scale).astype(np.float32)
    assert (dequantize(quantize(w, Format(8, 128), name="w")) == w).all()


def test_a_grid_beside_ordinary_groups_changes_nothing_else() -> None:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((50, 256)).astype(np.float32)
    plain = dequantize(quantize(w, Format(4, 32), name="w"))
    w[10:20, 64:96] = (rng.integers(0, 16, (10, 32)) - 7) * np.float32(0.171875)
    mixed = dequantize(quantize(w, Format(4, 32), name="w"))
    assert (mixed[10:20, 64:96] == w[10:20, 64:96]).all()
    mixed[10:20, 64:96] = plain[10:20, 64:96]
    assert (mixed == plain).all()
