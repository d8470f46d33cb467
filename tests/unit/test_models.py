"""Architectures: what config.json means, which weights there must be, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from checkpoints import IGNORED, SWITCH, VARIANTS, Variant, hf_shapes, make_checkpoint, random_weight, write_json, write_safetensors
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.errors import CheckpointError, ConfigError, ModelError, UnknownArchitecture
from edgekit.models import ARCHITECTURES, Model, architecture, open_model

HERE = Source("test", "local", None, None)


def opened(directory: Path) -> Model:
    return open_model(open_checkpoint(directory, HERE))


def decoder(name: str, **changes: object):
    config = VARIANTS[name].config_json() | changes
    return architecture(config).decoder_config(config)


def rewritten(directory: Path, change: Callable[[dict[str, np.ndarray]], None], config: dict[str, object] | None = None) -> Path:
    """The checkpoint in ``directory`` with its tensors changed."""
    model = open_checkpoint(directory, HERE)
    tensors = {name: model.rows(name) for name in model.tensors}
    change(tensors)
    write_safetensors(directory / "model.safetensors", tensors)
    write_json(directory / "config.json", {**model.config, **(config or {})})
    return directory


@pytest.mark.parametrize("name", VARIANTS)
def test_every_weight_has_its_shape_and_place(name: str, tmp_path: Path) -> None:
    model = opened(make_checkpoint(tmp_path / "m", name))
    shapes = model.decoder.weight_shapes()
    assert set(model.slices) == set(shapes)
    for weight, shape in shapes.items():
        assert model.tensor(weight).shape == shape
    stored = sum(np.prod(t.shape) for t in model.checkpoint.tensors.values())
    assert model.parameters == stored


def test_fused_rows_are_cut_where_they_belong(tmp_path: Path) -> None:
    model = opened(make_checkpoint(tmp_path / "m", "phi3"))
    fused = model.checkpoint.rows("model.layers.1.self_attn.qkv_proj.weight")
    parts = [model.tensor(f"layers.1.{p}_proj") for p in "qkv"]
    assert [len(p) for p in parts] == [128, 64, 64]
    np.testing.assert_array_equal(np.concatenate(parts), fused)
    np.testing.assert_array_equal(model.rows("layers.1.v_proj", 3, 9), parts[2][3:9])
    gate_up = model.checkpoint.rows("model.layers.0.mlp.gate_up_proj.weight")
    np.testing.assert_array_equal(model.tensor("layers.0.up_proj"), gate_up[256:])


def test_longrope() -> None:
    rope = decoder("phi3-longrope").rope
    assert rope.switch == SWITCH and rope.dims == 32
    assert not rope.is_long(SWITCH) and rope.is_long(SWITCH + 1)
    assert rope.scale == pytest.approx(np.sqrt(1 + np.log(96 / SWITCH) / np.log(SWITCH)))
    assert rope.inv_freq[0] == pytest.approx(1 / 1.05) and rope.long_inv_freq is not None
    assert rope.long_inv_freq[-1] == pytest.approx(10000 ** (-30 / 32) / 6.0)
    assert decoder("phi3-longrope-su").rope == rope
    assert decoder("phi3-longrope-factor").rope.scale == 1.3
    assert decoder("phi3-longrope-partial-tied").rope == decoder("phi3-longrope-v5").rope
    assert decoder("phi3-longrope-v5").rope.dims == 16


def test_phi_35_attention_factor() -> None:
    """The value of Phi-3.5-mini: 131072 positions grown from 4096."""
    scaling = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    rope = decoder("phi3", rope_scaling=scaling, max_position_embeddings=131072, original_max_position_embeddings=4096).rope
    assert rope.scale == pytest.approx(1.190238, abs=1e-6)


def test_old_and_new_spelling_mean_the_same() -> None:
    assert decoder("llama3", head_dim=None).rope == decoder("llama3-v5").rope
    inside = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert decoder("llama", rope_theta=None, rope_parameters=inside).rope == decoder("llama-linear").rope


def test_llama3_scaling_keeps_short_and_stretches_long_wavelengths() -> None:
    plain, scaled = (np.array(decoder("llama", rope_theta=500000.0, **c).rope.inv_freq) for c in ({}, {"rope_scaling": LLAMA3}))
    wavelength = 2 * np.pi / plain
    assert (wavelength < 48 / 4).any() and (wavelength > 48).any()
    np.testing.assert_array_equal(scaled[wavelength < 48 / 4], plain[wavelength < 48 / 4])
    np.testing.assert_allclose(scaled[wavelength > 48], plain[wavelength > 48] / 8)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 48}


@pytest.mark.parametrize(
    ("name", "changes", "windows"),
    [
        ("mistral", {}, (None, None)),
        ("mistral-window", {}, (12, 12)),
        ("mistral", {"sliding_window": 96}, (None, None)),  # as wide as the context: hides nothing
        ("phi3-window", {"layer_types": ["sliding_attention"] * 2}, (10, 10)),
        ("qwen2", {}, (None, None)),
        ("qwen2-window", {}, (None, 12)),
        ("qwen2-window", {"max_window_layers": 0}, (12, 12)),
        ("qwen2-window", {"layer_types": ["full_attention", "sliding_attention"]}, (None, 12)),
        ("qwen2-window", {"layer_types": ["sliding_attention", "full_attention"]}, (12, None)),
    ],
)
def test_windows(name: str, changes: dict[str, object], windows: tuple[int | None, ...]) -> None:
    assert decoder(name, **changes).windows == windows


def test_head_dim() -> None:
    assert decoder("mistral-head-dim").head_dim == 64
    assert decoder("mistral-head-dim").weight_shapes()["layers.0.o_proj"] == (128, 256)
    assert decoder("mistral").head_dim == 32


# What transformers ignores (each compared with it in tests/oracle/test_ignored_transformers.py)


@pytest.mark.parametrize(("name", "changes"), IGNORED)
def test_keys_that_do_nothing_change_nothing(name: str, changes: dict[str, object]) -> None:
    assert decoder(name, **changes) == decoder(name)


def test_a_scaling_keeps_its_kind_among_keys_of_others() -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    plain = decoder("llama", rope_scaling=linear)
    more = {"attention_factor": 2.0, "beta_fast": 32, "mrope_section": [4, 6, 6], "original_max_position_embeddings": 48}
    assert decoder("llama", rope_scaling=linear | more, original_max_position_embeddings=24) == plain
    # rope_type decides where both spellings stand
    assert decoder("llama", rope_scaling=linear | {"type": "default"}) == plain
    assert decoder("llama", rope_scaling={"type": "linear", "rope_type": "default", "factor": 2.0}) == decoder("llama")


# Refusals


def test_unknown_architecture_is_named_with_the_known() -> None:
    with pytest.raises(UnknownArchitecture, match="'gemma3' is unknown; known: phi3, mistral, llama, qwen2"):
        architecture({"model_type": "gemma3"})
    with pytest.raises(UnknownArchitecture, match="no model_type"):
        architecture({})
    with pytest.raises(UnknownArchitecture, match="is unknown"):
        architecture({"model_type": ["phi3"]})


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "m", "phi3")
    marker = tmp_path / "ran"
    (directory / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w')", encoding="utf-8")
    auto_map = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    write_json(directory / "config.json", config | {"auto_map": auto_map})
    opened(directory)  # a known architecture needs none of it
    write_json(directory / "config.json", config | {"auto_map": auto_map, "model_type": "own"})
    with pytest.raises(UnknownArchitecture, match="never run"):
        opened(directory)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"hidden_size": None}, "no hidden_size"),
        ("llama", {"hidden_size": "128"}, "hidden_size is '128'"),
        ("llama", {"hidden_size": 128.0}, "hidden_size is 128.0"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers is True"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("llama", {"num_attention_heads": -4}, "num_attention_heads is -4"),
        ("llama", {"vocab_size": 10**400}, "vocab_size is 1000"),
        ("llama", {"num_key_value_heads": 3}, "4 is no multiple of num_key_value_heads 3"),
        ("llama", {"num_attention_heads": 6, "num_key_value_heads": 2}, "hidden_size 128 is no multiple"),
        ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
        ("llama", {"rope_theta": float("inf")}, "rope_theta"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn' is not implemented for llama; implemented: default, linear"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not implemented"),
        ("llama", {"rope_scaling": {"type": 3}}, "rope_type is 3"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "no factor"),
        ("llama", {"rope_parameters": {"rope_theta": 5.0}}, "two values for rope_theta"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "'full_attention' is not implemented"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama3", {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "must be greater than low_freq_factor"),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window is 1"),
        ("qwen2-window", {"max_window_layers": None}, "no max_window_layers"),
        ("phi3", {"rope_scaling": {"type": "yarn"}}, "'yarn' is not implemented for phi3"),
        ("phi3", {"partial_rotary_factor": 1.5}, "odd or too many"),
        ("phi3", {"partial_rotary_factor": 0.4, "head_dim": 33, "num_attention_heads": 4}, "13 rotary dims, which is odd"),
        ("phi3-longrope", {"original_max_position_embeddings": None}, "no original_max_position_embeddings"),
        ("phi3-longrope", {"original_max_position_embeddings": 1}, "at least 2"),
        ("phi3-longrope-partial-tied", {"partial_rotary_factor": 1.0}, "short_factor must be a list of 16 positive numbers"),
        ("phi3-longrope-v5", {"original_max_position_embeddings": 48}, "two values for original_max_position_embeddings"),
    ],
)
def test_configs_that_are_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decoder(name, **changes)


@pytest.mark.parametrize(
    "factors", [None, "x", [1.0] * 15, [1.0] * 15 + [0.0], [1.0] * 15 + [True], [1.0] * 15 + ["1"], [1.0] * 15 + [float("nan")]]
)
def test_bad_longrope_factors(factors: object) -> None:
    scaling = {**VARIANTS["phi3-longrope"].config["rope_scaling"], "long_factor": factors}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="long_factor must be a list of 16"):
        decoder("phi3-longrope", rope_scaling=scaling)


@pytest.mark.parametrize("key", ["short_mscale", "long_mscale"])
def test_mscale_is_refused_by_name(key: str) -> None:
    scaling = {**VARIANTS["phi3-longrope"].config["rope_scaling"], key: 1.2}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=f"'{key}' is not implemented"):
        decoder("phi3-longrope", rope_scaling=scaling)


def test_mistral_without_the_window_key() -> None:
    config = {k: v for k, v in VARIANTS["mistral"].config_json().items() if k != "sliding_window"}
    assert architecture(config).decoder_config(config).windows == (None, None)  # transformers' 4096 hides nothing here
    config["max_position_embeddings"] = 8192
    with pytest.raises(ConfigError, match="no sliding_window; write"):
        architecture(config).decoder_config(config)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_no_value_of_any_key_crashes(model_type: str) -> None:
    """Whatever stands in config.json: it is understood, or refused with one of our errors."""
    names = [n for n, v in VARIANTS.items() if v.model_type == model_type]
    odd = [None, True, -1, 0, 1, 7, 2**40, 10**400, 0.0, -0.5, 1e300, float("nan"), float("inf"), "", "x", [], [1], {}, {"a": 1}]
    for name in names:
        config = VARIANTS[name].config_json()
        for key in config:
            for value in odd:
                changed = config | {key: value}
                try:
                    found = architecture(changed).decoder_config(changed)
                except ModelError:
                    continue
                assert found.head_dim > 0 and np.isfinite(found.rope.inv_freq).all()


# Tensors


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    directory = rewritten(make_checkpoint(tmp_path / "m", "llama"), lambda t: t.pop("model.layers.1.mlp.up_proj.weight") is None)
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        opened(directory)


def test_a_missing_lm_head_hints_at_tying(tmp_path: Path) -> None:
    directory = rewritten(make_checkpoint(tmp_path / "m", "llama"), lambda t: t.pop("lm_head.weight") is None)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*tie_word_embeddings"):
        opened(directory)


@pytest.mark.parametrize("extra", ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.input_layernorm.weight", "base_model.lora_A"])
def test_an_unexpected_tensor_is_named(extra: str, tmp_path: Path) -> None:
    directory = rewritten(make_checkpoint(tmp_path / "m", "mistral"), lambda t: t.update({extra: np.zeros(128, np.float32)}))
    with pytest.raises(CheckpointError, match=extra.replace(".", r"\.")):
        opened(directory)


def test_old_rotary_buffers_are_no_harm(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32)}
    opened(rewritten(make_checkpoint(tmp_path / "m", "llama"), lambda t: t.update(buffer)))


@pytest.mark.parametrize(
    ("name", "changes", "tensor", "shapes"),
    [
        ("llama", {"vocab_size": 321}, "model.embed_tokens.weight", r"\[320, 128\].*\[321, 128\]"),
        ("llama", {"intermediate_size": 255}, "model.layers.0.mlp.gate_proj.weight", r"\[256, 128\].*\[255, 128\]"),
        ("phi3", {"num_key_value_heads": 4}, "model.layers.0.self_attn.qkv_proj.weight", r"\[256, 128\].*\[384, 128\]"),
        ("mistral", {"head_dim": 16}, "model.layers.0.self_attn.q_proj.weight", r"\[128, 128\].*\[64, 128\]"),
    ],
)
def test_config_disagrees_with_tensors(name: str, changes: dict[str, object], tensor: str, shapes: str, tmp_path: Path) -> None:
    directory = rewritten(make_checkpoint(tmp_path / "m", name), lambda t: None, changes)
    with pytest.raises(ConfigError, match=f"config.json disagrees.*{tensor}.*{shapes}"):
        opened(directory)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.1.self_attn.qkv_proj.weight"][200, 5] = bad

    model = opened(rewritten(make_checkpoint(tmp_path / "m", "phi3"), spoil))
    model.tensor("layers.1.q_proj")
    with pytest.raises(CheckpointError, match=r"layers\.1\.v_proj \('model.layers.1.self_attn.qkv_proj.weight' in .*1 values that are NaN"):
        model.tensor("layers.1.v_proj")


def test_unknown_canonical_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weight 'layers\.9\.q_proj'"):
        opened(make_checkpoint(tmp_path / "m", "phi3")).tensor("layers.9.q_proj")


def test_weights_of_another_dtype(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "m", "llama")
    path = directory / "model.safetensors"
    # I16 has the size of BF16: the file stays well formed
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"I16" ', 1))
    with pytest.raises(CheckpointError, match="stored as I16"):
        opened(directory)


def test_tied_and_stored_nevertheless(tmp_path: Path) -> None:
    def copy(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    directory = rewritten(make_checkpoint(tmp_path / "m", "qwen2-tied"), copy)
    assert "lm_head" not in opened(directory).slices

    def differ(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"][7, 7] += 1

    with pytest.raises(ConfigError, match=r"tie_word_embeddings true, but lm_head\.weight"):
        opened(rewritten(directory, differ))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_factory_keeps_its_promise(group: int) -> None:
    """Grid weights: codes 0..15, float16 scales of at most 7 bits, both ends in every group, also where K is no multiple of the group."""
    config = Variant("llama", {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 1}).config_json()
    rng = np.random.default_rng(0)
    for name, shape in hf_shapes(config).items():
        if len(shape) == 1:
            continue
        top, bits = (255, 3) if name.startswith(("model.embed", "lm_head")) else (15, 7)
        weight = random_weight(rng, name, shape, group).astype(np.float64)
        for start in range(0, shape[1], group):
            part = weight[:, start : start + group]
            scale = (part.max(axis=1) - part.min(axis=1)) / top
            mantissa = np.frexp(scale)[0] * 2**bits
            np.testing.assert_array_equal(mantissa, np.round(mantissa))
            codes = (part - part.min(axis=1, keepdims=True)) / scale[:, None]
            np.testing.assert_array_equal(codes, np.round(codes))
            assert (part.min(axis=1) <= 0).all() and (part.max(axis=1) >= 0).all()
