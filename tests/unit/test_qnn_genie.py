"""Bundles for Genie: what is written and refused, and Genie's own answers in emulation against those of onnxruntime-genai."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn needs Python 3.11 or newer")
pytest.importorskip("onnxruntime_genai")

import edgekit
from checkpoints import Variant
from edgekit.artifact import Manifest
from edgekit.catalog import resolve
from edgekit.engines.onnx_format import weights
from edgekit.engines.onnx_format.proto import External
from edgekit.engines.qnn.genie import ROWS, write_embedding
from edgekit.engines.qnn.genie_config import positions
from edgekit.engines.qnn.layout import plan_genie
from edgekit.errors import EngineMissing, TargetError
from edgekit.models import open_model
from edgekit.progress import silent
from edgekit.quant import dequantize, quantize
from edgekit.quant.scheme import scheme
from edgekit.quantized import PLAIN
from edgekit.target import OptionValue, load_target
from genie_run import genie_accepts, genie_tokens
from onnx_artifact import open_variant
from qnn_artifact import target

PROMPT = "Turn on the light in the kitchen."
CONTEXT = 128
GENIE: dict[str, OptionValue] = {"runtime": "genie", "layers": 8}


def write_target(path: Path, options: str) -> Path:
    """snapdragon-8-elite with more options."""
    shipped = load_target("snapdragon-8-elite")
    path.write_text(
        f'description = "test"\nengine = "qnn"\nscheme = "{shipped.scheme}"\ncontext = {CONTEXT}\nverified = "compiled"\n'
        f'[options]\nsoc = "SM8750"\nchunk = 16\n{options}\n',
        encoding="utf-8",
    )
    return path


def build_bundle(folder: Path, options: str = "") -> tuple[Path, Manifest]:
    wanted = write_target(folder / "genie.toml", f'runtime = "genie"\n{options}')
    return folder / "bundle", edgekit.build("tiny-phi", target=wanted, output=folder / "bundle")


def test_a_bundle_holds_what_genie_opens(tmp_path: Path) -> None:
    """As it ships: one binary of both graphs, no ONNX, a configuration that libGenie takes; and the product says what opens it."""
    bundle, manifest = build_bundle(tmp_path)
    config = json.loads((bundle / "genie_config.json").read_text(encoding="utf-8"))["dialog"]
    binaries = config["engine"]["model"]["binary"]["ctx-bins"]
    assert binaries == ["part0_prompt_qnn.bin"] == [path.name for path in bundle.glob("*.bin")]
    assert not list(bundle.glob("*.onnx"))
    raw = (bundle / binaries[0]).read_bytes()
    assert b"soc_type=SM8750;arch=79" in raw
    assert all(
        name in raw for name in (b"input_ids", b"attention_mask", b"position_ids_cos", b"past_key_3_in", b"past_value_3_out", b"logits")
    )
    assert (bundle / config["tokenizer"]["path"]).exists()
    assert config["context"]["size"] == CONTEXT and config["context"]["eos-token"] == list(manifest.tokens.stop)
    genie_accepts(bundle, "genie_config.json")
    facts = manifest.engine.details
    assert (facts["runtime"], facts["weight_sharing"], facts["parts"], facts["soc"]) == ("genie", True, 1, "SM8750")
    assert manifest.weights["embed_tokens"] and not manifest.scheme.exceptions
    with pytest.raises(EngineMissing, match=r"genie-t2t-run -c genie_config\.json"):
        edgekit.load(bundle)


@pytest.mark.emulated
def test_genie_and_genai_agree_on_tokens(tmp_path: Path) -> None:
    """tiny-phi, the same weights: Genie by the graph for prompts, Genie by that for single tokens, and onnxruntime-genai."""
    bundle, manifest = build_bundle(tmp_path, "sharing = false")
    genai = edgekit.build("tiny-phi", target=write_target(tmp_path / "genai.toml", "sharing = false"), output=tmp_path / "genai")
    assert genai.weights == manifest.weights
    with edgekit.load(tmp_path / "genai") as runtime:
        prompt = runtime.tokenizer.encode(runtime.render([{"role": "user", "content": PROMPT}]))
        wanted = [step.token for step in runtime.generate(prompt, max_tokens=CONTEXT - len(prompt))]
    stop = set(manifest.tokens.stop)
    wanted = [token for token in wanted if token not in stop]
    assert len(wanted) > 5
    text = (bundle / "genie_config.json").read_text(encoding="utf-8")
    (bundle / "token.json").write_text(text.replace("part0_prompt_qnn.bin", "part0_token_qnn.bin"), encoding="utf-8")
    for config in ("genie_config.json", "token.json"):
        assert genie_tokens(bundle, config, prompt) == wanted, config


def test_the_embedding_holds_the_quantized_values(tmp_path: Path) -> None:
    """Read back from the file that the compiler gets."""
    model = open_variant(tmp_path / "model", "phi3", grid=None)
    (planned,) = plan_genie(model, scheme("int4-g32"), target(GENIE)).parts
    weights.write(planned.part.data, model, tmp_path, silent)
    write_embedding(planned.part, model, tmp_path, PLAIN)
    place = planned.part.vectors[ROWS].content
    assert isinstance(place, External)
    shape = (model.decoder.vocab_size, model.decoder.hidden_size)
    held = np.fromfile(tmp_path / place.file, "<f2", shape[0] * shape[1], offset=place.offset).reshape(shape)
    wanted = dequantize(quantize(model.tensor("embed_tokens"), scheme("int4-g32").format_of("embed_tokens"), name="embed_tokens"))
    assert np.array_equal(held, wanted.astype(np.float16))


@pytest.mark.parametrize("variant", ["phi3-longrope-partial-tied", "llama3", "mistral"])
def test_the_configuration_has_the_models_frequencies(tmp_path: Path, variant: str) -> None:
    """By the formula of LongRoPE, as Genie applies it, whatever the model's own is."""
    rope = open_variant(tmp_path, variant).decoder.rope
    found = positions(rope, 16)
    scaling = found["rope-scaling"]
    assert isinstance(scaling, dict) and scaling["original-max-position-embeddings"] >= 16
    np.testing.assert_allclose([1 / factor for factor in scaling["short-factor"]], rope.inv_freq, rtol=1e-6)
    scale = np.sqrt(1 + np.log(scaling["factor"]) / np.log(scaling["original-max-position-embeddings"]))
    np.testing.assert_allclose(scale, rope.scale, rtol=1e-9)


@pytest.mark.parametrize(
    ("variant", "more", "context", "message"),
    [
        ("phi3", {"layers": 1}, 96, "needs all layers in one part.* set layers = 2"),
        ("phi3-longrope", {}, 96, "one set of LongRoPE factors.* beyond 24 tokens: build with --context 24 or less"),
        ("mistral-window", {}, 96, r"no mask for a sliding window of \d+ tokens: build with --context \d+ or less"),
        ("phi3", {}, 16, "more than a chunk of 16 tokens, found 16"),
        ("phi3", {"soc": "QCS6490", "activations": "uint16"}, 96, "for NPUs that compute float16"),
        ("phi3", {"memory_mb": 1000}, 96, "take a smaller model, or leave out runtime"),
        ("phi3", {"runtime": "snpe"}, 96, "options.runtime"),
    ],
)
def test_what_genie_cannot_do_is_refused(
    tmp_path: Path, variant: str | Variant, more: dict[str, OptionValue], context: int, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        plan_genie(open_variant(tmp_path / "model", variant, grid=None), scheme("int4-g32"), target({**GENIE, **more}, context))


def test_tiny_phi_is_refused_beyond_its_switch() -> None:
    model = open_model(resolve("tiny-phi", revision=None, offline=True, progress=silent))
    with pytest.raises(TargetError, match="build with --context 256 or less"):
        plan_genie(model, scheme("int4-g128"), target(GENIE, 512))
