"""Quantizing in a stream: the same bytes with any number of threads, with or without a cache, whatever happens in between."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints import BASE, Variant, hf_shapes, make_checkpoint, stored, write_json, write_raw_safetensors, write_tokenizer
from edgekit import build as build_artifact
from edgekit import quant, quantized
from edgekit.errors import CheckpointError
from edgekit.progress import Progress, silent
from edgekit.quant import GROUPS, Format, quantize

TOOLKIT = Path(quant.__file__).parents[2]
OUTPUT = {1: "b327e0628fde39ab"}
"""``quant.VERSION`` -> digest of what the quantizer makes of one matrix."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a checkpoint ``model`` and a cache of its own; blocks are small enough for a matrix to have many."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantized, "BLOCK", 5000)
    make_checkpoint(tmp_path / "model", "phi3-longrope-partial-tied", shards=2)
    return tmp_path


def build(place: Path, name: str, *, cached: bool = True, threads: int | None = None, scheme: str = "int4-g32", **files: Progress) -> Path:
    progress = files.get("progress", silent)
    build_artifact(
        place / "model",
        target="cpu",
        output=place / name,
        scheme=scheme,
        cached=cached,
        threads=threads,
        progress=progress,
        force=True,
        verify=False,  # what the gate keeps in the cache is no weight
    )
    return place / name


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def blocks(place: Path) -> list[Path]:
    return sorted(path for path in (place / "cache").glob("blocks/*/*") if path.name != "about.json")


def test_quantizer_version_is_raised_when_its_output_changes() -> None:
    k = np.arange(24 * 1000, dtype=np.uint64)
    primes = np.array([2654435761, 2246822519, 3266489917, 668265263], np.uint64)
    bell = (k * primes[:, None] % np.uint64(1 << 32) >> np.uint64(12)).astype(np.int64).sum(axis=0) - (1 << 21)
    w = bell.astype(np.float32).reshape(24, 1000) * np.float32(2.0**-26)
    digest = hashlib.sha256()
    for format in [Format(bits, group) for bits in (4, 8) for group in GROUPS]:
        for search in (False, True):
            t = quantize(w, format, name="w", search=search)
            digest.update(t.codes.tobytes() + t.scales.astype("<f2").tobytes() + t.zeros.tobytes())
    assert digest.hexdigest()[:16] == OUTPUT.get(quant.VERSION), "raise edgekit.quant.VERSION and add the new digest to OUTPUT"


def test_threads_and_cache_change_no_byte(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = contents(build(place, "plain", cached=False, threads=1))
    assert not (place / "cache").exists()
    assert contents(build(place, "threads", cached=False, threads=5)) == plain
    assert contents(build(place, "first", threads=3)) == plain
    made = blocks(place)
    assert len(made) > 20
    monkeypatch.setattr(quantized, "quantize", lambda *a, **k: pytest.fail("everything is in the cache"))
    assert contents(build(place, "second", threads=2)) == plain
    assert contents(build(place, "third", threads=1)) == plain
    assert blocks(place) == made


def test_another_scheme_takes_what_it_shares(place: Path) -> None:
    """Codes in groups of 64 are new; so is the embedding, whose groups go with the scheme."""
    build(place, "a", scheme="int4-g32")
    made = set(blocks(place))
    other = contents(build(place, "b", scheme="int4-g64"))
    assert len(set(blocks(place))) == 2 * len(made)
    assert other == contents(build(place, "c", scheme="int4-g64", cached=False))


def test_damaged_blocks_are_made_anew(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = contents(build(place, "a"))
    before = {path: path.read_bytes() for path in blocks(place)}
    damaged = list(before)[::7]
    for path in damaged:
        path.write_bytes(before[path][:-1] + bytes([before[path][-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert contents(build(place, "b")) == plain
    assert caplog.text.count("is damaged; it is made anew") == len(damaged)
    assert {path: path.read_bytes() for path in blocks(place)} == before


def test_the_limit_holds_after_a_build(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = contents(build(place, "a"))
    monkeypatch.setenv("EDGEKIT_CACHE_LIMIT", "200kB")
    assert sum(path.stat().st_size for path in blocks(place)) > 200_000
    assert contents(build(place, "b")) == plain
    held = sum(path.stat().st_size for path in blocks(place))
    assert 190_000 < held <= 200_000
    assert contents(build(place, "c")) == plain


def test_interrupted_build_leaves_whole_blocks_and_the_next_goes_on(place: Path) -> None:
    done: list[int] = []

    def interrupt(stage: str, now: int, total: int, /) -> None:
        if stage == "quantize":
            done.append(now)
            if len(done) == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(place, "a", threads=2, progress=interrupt)
    assert not (place / "a").exists() and not list(place.glob(".a*"))
    kept = {path: path.stat().st_ino for path in blocks(place)}
    assert len(kept) >= 9
    assert not any(path.name.startswith(".") for path in kept)
    assert contents(build(place, "a")) == contents(build(place, "b", cached=False))
    assert {path: path.stat().st_ino for path in blocks(place) if path in kept} == kept


def test_not_a_number_is_found_with_a_cache_too(place: Path) -> None:
    plain = contents(build(place, "a"))
    index = json.loads((place / "model" / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    path = place / "model" / index["model.layers.1.mlp.down_proj.weight"]
    raw = bytearray(path.read_bytes())
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    at = 8 + int.from_bytes(raw[:8], "little") + header["model.layers.1.mlp.down_proj.weight"]["data_offsets"][0] + 2000
    good = bytes(raw[at : at + 2])
    raw[at : at + 2] = b"\xc0\x7f"
    path.write_bytes(raw)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"layers\.1\.down_proj .* has 1 values that are NaN or infinite"):
            build(place, "a")
    raw[at : at + 2] = good
    path.write_bytes(raw)
    assert contents(build(place, "a")) == plain


def test_a_checkpoint_that_changes_meanwhile_is_refused_and_not_kept(place: Path) -> None:
    """It changes when it has been digested and no row been quantized."""

    def change(stage: str, now: int, total: int, /) -> None:
        if stage == "digest of the model" and now == total:
            for path in (place / "model").glob("*.safetensors"):
                path.write_bytes(path.read_bytes()[:-2] + b"\0\0")

    with pytest.raises(CheckpointError, match=r"safetensors was changed while it was built from"):
        build(place, "a", progress=change)
    assert blocks(place) == []


def test_two_builders_at_once(place: Path) -> None:
    code = "import sys, edgekit, edgekit.quantized\nedgekit.quantized.BLOCK = 5000\n"
    code += "edgekit.build(sys.argv[1], target='cpu', output=sys.argv[2], scheme='int4-g32', verify=False)"
    environment = os.environ | {"PYTHONPATH": str(TOOLKIT)}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(place / "model"), str(place / name)], env=environment) for name in ("a", "b")
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert contents(place / "a") == contents(place / "b") == contents(build(place, "c", cached=False))
    assert not any(path.name.startswith(".") for path in blocks(place))


MEASURED = """
import resource, sys, edgekit
edgekit.build(sys.argv[1], target="cpu", output=sys.argv[2], threads=2)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the resource module is not there")
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """270 MB of bf16, so 540 in float32 and 80 as INT4, with the engine's own run in another process."""
    big = Variant("llama", {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 32})
    model = tmp_path / "model"
    model.mkdir()
    shapes = hf_shapes(BASE | big.config_json())
    pattern = stored(np.random.default_rng(0).normal(0, 0.02, (1 << 20,)).astype(np.float32), "BF16")
    header, data, at = {}, [], 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        data += [pattern[: min(len(pattern), size - done)] for done in range(0, size, len(pattern))]
        at += size
    write_raw_safetensors(model / "model.safetensors", header, data)
    del data
    write_json(model / "config.json", big.config_json())
    write_tokenizer(model)
    environment = os.environ | {"PYTHONPATH": str(TOOLKIT)}
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", MEASURED, str(path), str(tmp_path / name)], env=environment, capture_output=True, check=True
            ).stdout
        )
        for name, path in (("small", make_checkpoint(tmp_path / "tiny", "llama")), ("big", model), ("cached", model))
    ]
    assert (model / "model.safetensors").stat().st_size > 250_000_000
    assert max(peaks[1:]) < peaks[0] + 150_000_000, peaks
