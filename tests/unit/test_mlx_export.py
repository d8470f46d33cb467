"""What lies in the files for MLX, read back by MLX itself and compared with ``==``. No test here runs a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import VARIANTS, Variant
from edgekit.checkpoint import read_header
from edgekit.engines.mlx import weights
from edgekit.engines.mlx.export import check, footprint
from edgekit.engines.mlx.weights import biases
from edgekit.errors import CheckpointError, TargetError
from edgekit.quant import concatenate, dequantize, quantize
from edgekit.quant.scheme import Format, QuantizedTensor, QuantScheme, scheme
from mlx_artifact import FLOAT32, REFUSED, Built, build, target
from onnx_artifact import open_variant

mx = pytest.importorskip("mlx.core", reason="MLX has wheels for macOS on Apple silicon and for Linux")

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def stored(built: Built) -> "dict[str, mx.array]":
    """Every tensor, by MLX's own reader."""
    found: dict[str, mx.array] = {}
    for path in sorted(built.directory.glob("model*.safetensors")):
        found |= mx.load(str(path))
    return found


def plain(array: "mx.array") -> NDArray[np.float32]:
    return np.array(array.astype(mx.float32))


def modules(built: Built) -> dict[str, QuantizedTensor]:
    """MLX's name of each matrix -> the portable weight behind it, quantized anew."""
    model, found = built.model, dict[str, list[str]]()
    for name, shape in model.decoder.weight_shapes().items():
        if len(shape) == 2:
            found.setdefault(model.slices[name].tensor.removesuffix(".weight"), []).append(name)
    made = {}
    for module, names in found.items():
        form = built.scheme.format_of(names[0])
        made[module] = concatenate([quantize(model.tensor(name), form, name=name) for name in names])
    return made


def form_of(built: Built, module: str) -> tuple[int, int]:
    """Bits and group, as mlx-lm finds them in config.json."""
    quantization = built.config["quantization"]
    assert isinstance(quantization, dict)
    chosen = quantization.get(module, quantization)
    return chosen["bits"], chosen["group_size"]


def read(built: Built, held: "dict[str, mx.array]", module: str, dtype: "mx.Dtype | None" = None) -> NDArray[np.float32]:
    """The weights that MLX makes of a module, in the type of its scales or in ``dtype``."""
    bits, group = form_of(built, module)
    codes, scales, offsets = (held[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
    if dtype is not None:
        scales, offsets = scales.astype(dtype), offsets.astype(dtype)
    return plain(mx.dequantize(codes, scales, offsets, group_size=group, bits=bits))


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("variant", ["phi3-longrope-partial-tied", "phi3-longrope", "mistral-head-dim", "llama3", "qwen2"])
def test_weights_that_mlx_dequantizes_are_the_portable_ones(tmp_path: Path, variant: str, group: int) -> None:
    """float16, gaussian weights: every INT4 matrix and an untied lm_head with ==. The INT8 embedding: codes, scales and zero points
    with ==, weights within what float16 does to them."""
    built = build(tmp_path, variant, grid=None, quant=scheme(f"int4-g{group}"))
    held, wanted = stored(built), modules(built)
    assert {"model.embed_tokens", "model.layers.1.mlp.down_proj"} <= set(wanted)
    for module, want in wanted.items():
        assert form_of(built, module) == (want.format.bits, group)
        codes, scales, offsets = (np.array(held[f"{module}.{part}"]) for part in ("weight", "scales", "biases"))
        assert np.array_equal(codes.view(np.uint8).reshape(want.codes.shape), want.codes)
        assert np.array_equal(scales, want.scales)
        assert np.array_equal(np.rint(-offsets.astype(np.float32) / scales.astype(np.float32)), want.zeros)
        if module == "model.embed_tokens":
            assert scales.dtype == offsets.dtype == np.float16
            off = np.abs(read(built, held, module, mx.float32) - dequantize(want)).reshape(*want.scales.shape, -1)
            assert 0 < (off / want.scales.astype(np.float32)[..., None]).max() <= 1 / 8, "the rounded bias"
        else:
            assert scales.dtype == (np.float32 if module == "lm_head" else np.float16)
            assert np.array_equal(read(built, held, module), dequantize(want))
            assert np.array_equal(read(built, held, module, mx.float32), dequantize(want))


@pytest.mark.parametrize("variant", ["phi3-longrope-partial-tied", "qwen2"])
def test_in_float32_all_of_them_are_equal(tmp_path: Path, variant: str) -> None:
    built = build(tmp_path, variant, grid=None, options=FLOAT32)
    held = stored(built)
    for module, want in modules(built).items():
        assert held[f"{module}.biases"].dtype == mx.float32
        assert np.array_equal(read(built, held, module), dequantize(want))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in REFUSED])
def test_mlx_lm_loads_grid_weights_of_every_architecture_unchanged(tmp_path: Path, variant: str) -> None:
    """On a grid that float16 holds, what ``mlx_lm.load`` makes of the directory dequantizes to the checkpoint's own weights, all ==."""
    utils = pytest.importorskip("mlx_lm.utils")
    built = build(tmp_path, variant)
    model, _ = utils.load_model(built.directory)
    leaves = dict(model.named_modules())
    for name, shape in built.model.decoder.weight_shapes().items():
        where = built.model.slices[name]
        module, _, kind = where.tensor.rpartition(".")
        leaf = leaves[module]
        if len(shape) == 1:
            got = plain(leaf[kind])
        else:
            got = plain(mx.dequantize(leaf.weight, leaf.scales, leaf.biases, group_size=leaf.group_size, bits=leaf.bits))
        assert np.array_equal(got[where.start : where.stop], built.model.tensor(name)), name


def test_int4_biases_are_exact_in_float16_over_the_whole_format() -> None:
    """Every scale of 7 bits, every zero point."""
    scales = np.array([m * 2.0**e for m in range(64, 128) for e in range(-20, 6)])
    scales = scales[(scales >= 2.0**-14) & (scales <= 4352)].astype(np.float16)
    zeros = np.broadcast_to(np.arange(16, dtype=np.uint8), (scales.size, 16))
    block = QuantizedTensor((0, 0), Format(4, 32), np.empty(0, np.uint8), np.broadcast_to(scales[:, None], zeros.shape), zeros)
    assert np.array_equal(biases(block, np.float16).astype(np.float64), -zeros.astype(np.float64) * scales[:, None])
    assert not np.signbit(biases(block, np.float16)[:, 0]).any(), "no negative zero"


def test_int8_zero_points_survive_the_rounding_of_their_biases() -> None:
    """Every float16 significand at the ends of the format, every zero point; so the portable weight can be had back from the file."""
    scales = np.concatenate([np.arange(1024, 2048) * 2.0**-24, np.arange(1024, 1028) * 2.0**-2]).astype(np.float16)
    zeros = np.broadcast_to(np.arange(256, dtype=np.uint8), (scales.size, 256))
    block = QuantizedTensor((0, 0), Format(8, 32), np.empty(0, np.uint8), np.broadcast_to(scales[:, None], zeros.shape), zeros)
    rounded = biases(block, np.float16).astype(np.float32)
    assert np.isfinite(rounded).all()
    off = np.abs(rounded + zeros * scales[:, None].astype(np.float32)) / scales[:, None].astype(np.float32)
    assert 0.12 < off.max() <= 1 / 8
    assert np.array_equal(np.rint(-rounded / scales[:, None].astype(np.float32)), zeros)


def test_headers_hold_no_gap_and_align_every_tensor(tmp_path: Path) -> None:
    built = build(tmp_path, Variant("qwen2", {"vocab_size": 333, "head_dim": 32}), grid=None)
    infos = read_header(built.directory / "model.safetensors")  # refuses gaps, overlaps and a wrong length
    for info in infos.values():
        assert info.begin % {"U32": 4, "F32": 4, "F16": 2}[info.dtype] == 0
    assert min(info.begin for info in infos.values()) % 8 == 0
    index = json.loads((built.directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"] == dict.fromkeys(sorted(infos), "model.safetensors")
    assert index["metadata"]["total_size"] == sum(info.end - info.begin for info in infos.values())


def test_a_large_model_is_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    one = build(tmp_path / "one", "phi3-longrope", grid=None)
    monkeypatch.setattr(weights, "SHARD", 40_000)
    (tmp_path / "many").mkdir()
    many = build(tmp_path / "many", "phi3-longrope", grid=None)
    files = sorted(path.name for path in many.directory.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    held, whole = stored(many), stored(one)
    assert set(held) == set(whole) and all(mx.array_equal(held[name], whole[name]) for name in whole)
    index = json.loads((many.directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"].values()) == set(files)


def test_footprint_is_the_size_of_the_files(tmp_path: Path) -> None:
    for name, options, width in (("half", {}, 2), ("full", FLOAT32, 4)):
        (tmp_path / name).mkdir()
        built = build(tmp_path / name, "qwen2", options=options)
        size = footprint(built.model, built.scheme, target(options))
        assert size.weights == sum(path.stat().st_size for path in built.directory.glob("*.safetensors"))
        assert size.cache == 2 * width * 2 * 2 * 32


def test_bits_per_weight_count_scales_and_biases(tmp_path: Path) -> None:
    bits = build(tmp_path, "qwen2-tied", quant=scheme("int4-g128")).exported.bits_per_weight
    weights_in = {"embed": 320 * 128, "linear": 2 * (128 * 128 * 2 + 2 * 64 * 128 + 3 * 256 * 128)}
    assert bits == pytest.approx((weights_in["embed"] * 8.25 + weights_in["linear"] * 4.25) / sum(weights_in.values()))


def test_the_same_bytes_for_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit import quantized

    monkeypatch.setattr(quantized, "BLOCK", 3000)
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append((build(tmp_path / name, "phi3-longrope", grid=None).directory / "model.safetensors").read_bytes())
        monkeypatch.setattr(quantized, "BLOCK", 1 << 21)
    assert made[0] == made[1]


def test_what_fills_no_group_is_refused(tmp_path: Path) -> None:
    ragged = open_variant(tmp_path / "ragged", "llama-ragged")
    with pytest.raises(TargetError, match=r"target test: .* embed_tokens has 80, no multiple of 32: build .* another engine"):
        check(ragged, scheme("int4-g32"), target())
    wide = open_variant(tmp_path / "wide", Variant("llama", {"hidden_size": 192, "head_dim": 32}))
    for name in ("int4-g128", "int4-g64"):  # of 192 inputs groups of 64 are taken
        check(wide, scheme(name), target())


@pytest.mark.parametrize("variant", ["phi3", "qwen2"])
def test_heads_that_mlx_lms_class_cannot_have_are_refused(tmp_path: Path, variant: str) -> None:
    model = open_variant(tmp_path / "model", Variant(variant, {"head_dim": 64}), grid=None)
    with pytest.raises(TargetError, match=rf"MLX's {variant} has heads of .* = 32 dimensions; test has 64"):
        check(model, scheme("int4-g32"), target())


def test_options_and_formats_that_cannot_be_are_refused(tmp_path: Path) -> None:
    model = open_variant(tmp_path / "model", "phi3")
    with pytest.raises(TargetError, match=r"target test: options.precision: .*'float16', 'float32', found 'bfloat16'"):
        check(model, scheme("int4-g32"), target({"precision": "bfloat16"}))

    class Mixed(QuantScheme):
        def format_of(self, weight: str) -> Format:
            return Format(8, 32) if weight.endswith("v_proj") else super().format_of(weight)

    with pytest.raises(
        TargetError, match=r"layers\.0\.v_proj is part of model\.layers\.0\.self_attn\.qkv_proj\.weight, .* several formats"
    ):
        check(model, Mixed("mixed", Format(4, 32), Format(8, 32), Format(8, 32)), target())


def test_a_norm_beyond_float16_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoints

    real = checkpoints.random_weight

    def huge(rng: np.random.Generator, name: str, shape: tuple[int, ...], grid: int | None) -> NDArray[np.float32]:
        return real(rng, name, shape, grid) * np.float32(1e5 if name == "model.norm.weight" else 1)

    monkeypatch.setattr(checkpoints, "random_weight", huge)
    with pytest.raises(CheckpointError, match=r'norm holds .* which float16 .* precision = "float32"'):
        build(tmp_path, "llama", grid=None)


def test_config_names_the_switch_and_keeps_both_factors(tmp_path: Path) -> None:
    config = build(tmp_path, "phi3-longrope-v5").config
    scaling, ours = config["rope_scaling"], config["edgekit"]
    assert isinstance(scaling, dict) and isinstance(ours, dict)
    assert scaling["type"] == "longrope" and scaling["long_factor"] == scaling["short_factor"], "mlx-lm rotates with the long ones"
    assert ours["rope"]["switch"] == config["original_max_position_embeddings"] == 24
    assert ours["rope"]["long_wavelengths"] != ours["rope"]["wavelengths"]
    assert config["partial_rotary_factor"] == 0.5
    assert "rope_parameters" not in config


@pytest.mark.parametrize(
    ("variant", "context", "tokens", "why"),
    [
        ("llama3", 96, 96, None),
        ("phi3-longrope", 96, 24, "one set of LongRoPE factors"),
        ("phi3-longrope", 24, 24, None),
        ("phi3-longrope-factor", 96, 0, "scales by 1.1984, not by 1.3000"),
        ("phi3-window", 96, 10, "ignore the sliding window"),
        ("mistral-window", 12, 12, None),
        ("qwen2-window", 96, 12, "ignore the sliding window"),
    ],
)
def test_the_manifest_says_how_far_other_loaders_are_right(
    tmp_path: Path, variant: str, context: int, tokens: int, why: str | None
) -> None:
    built = build(tmp_path, variant, context=context)
    details = built.exported.details
    assert details["mlx_lm_tokens"] == tokens
    tokenizer = json.loads((built.directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["model_max_length"] == (96 if why is None else max(1, tokens)) and "chat_template" in tokenizer
    assert (details["mlx_lm_limit"] is None) if why is None else (why in str(details["mlx_lm_limit"]))


HIDE = "import importlib.metadata as m, sys; sys.modules['mlx'] = None; real = m.version; m.version = lambda name: real(name + '-gone'); "


def test_building_needs_no_mlx(tmp_path: Path) -> None:
    """As on Windows. The artifact is the same, with the reason why it was not tried."""
    for name, before in (("with", ""), ("without", HIDE)):
        (tmp_path / name).mkdir()
        code = (
            f"import sys; {before}import edgekit, edgekit.child as c; real_command = c.command; "
            f"c.command = lambda m: (w := real_command(m), w.__setitem__(2, {before!r} + w[2]))[0]; "
            f"m = edgekit.build('tiny-phi', target='apple-m', output={str(tmp_path / name / 'out')!r}, cached=False); "
            "print(m.conformance.greedy.reason); print(sorted({'mlx.core', 'mlx_lm', 'torch'} & set(sys.modules)))"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(weights.__file__).parents[3])}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        reason, loaded = done.stdout.strip().splitlines()
        assert "pip install" in reason if before else reason == "None"
        assert loaded == "[]", "the process that builds never loads it"
    for path in (tmp_path / "with" / "out").iterdir():
        if path.name != "edgekit.json":
            assert path.read_bytes() == (tmp_path / "without" / "out" / path.name).read_bytes()
