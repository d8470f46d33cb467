"""The NPU form: what is refused before the build, its weights, and its graphs run by the NPU plugin with the CPU for an NPU."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino

import edgekit
from edgekit.engines.openvino.export import check
from edgekit.errors import ContextOverflow, EngineError, TargetError
from edgekit.quant import dequantize, quantize
from edgekit.quant.scheme import Format, scheme
from edgekit.runtime.session import Session
from edgekit.target import OptionValue
from onnx_artifact import random_tokens
from openvino_artifact import Built, build, open_variant, target

NPU: dict[str, OptionValue] = {"device": "NPU", "precision": "float16", "symmetric": True, "prompt": 40, "tokenizer": False}
TOKENS = random_tokens(60)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("npu")
    return build(folder, "llama", grid=None, quant=scheme("int4-sym-g128"), options={**NPU, "parts": "CPU"}, context=80)


@pytest.fixture
def session(built: Built) -> Iterator[Session]:
    session = built.open()
    yield session
    session.close()


def test_weights_are_signed_and_equal_to_the_portable_ones(built: Built) -> None:
    held = {n.get_friendly_name(): n for n in built.read().get_ops() if n.get_type_name() == "Constant"}
    names = [name.removesuffix(".codes") for name in held if name.endswith("_proj.codes")]
    assert len(names) == 8 and not any(f"{name}.zeros" in held for name in names)
    for layer in range(2):
        name = f"layers.{layer}.down_proj"
        want = quantize(built.model.tensor(name), Format(4, 128, symmetric=True), name=name)
        assert (want.zeros == 8).all()
        codes = held[f"{name}.codes"]
        assert codes.get_element_type() == openvino.Type.i4
        model = openvino.Model([openvino.opset13.convert(codes, openvino.Type.i32)], [], "read")
        values = openvino.Core().compile_model(model, "CPU")([])[0].astype(np.float32) * held[f"{name}.scales"].get_data().astype(
            np.float32
        )
        assert np.array_equal(values.reshape(values.shape[0], -1), dequantize(want))


def test_symmetric_weights_run_on_other_devices_too(built: Built, tmp_path: Path) -> None:
    """Portable INT4 is portable: the same scheme as u4 with zero points gives equal weights, so nearly equal logits."""
    other = build(tmp_path, "llama", grid=None, quant=scheme("int4-sym-g128"))
    one, two = built.open(), other.open()
    assert np.abs(one.forward(TOKENS[:20]) - two.forward(TOKENS[:20])).max() < 0.05
    one.close()
    two.close()


def test_pieces_and_rewinding_give_the_same_logits(session: Session) -> None:
    whole = session.forward(TOKENS[:30])
    assert session.position == 30
    rows = session.forward_last(TOKENS[30:33], 3)
    session.rewind(0)
    again = session.forward_last(TOKENS[:33], 4)
    np.testing.assert_allclose(again[1:], rows, atol=0.05)
    np.testing.assert_allclose(again[0], whole, atol=0.05)
    session.rewind(20)
    session.forward([3, 4])
    session.rewind(20)
    np.testing.assert_allclose(session.forward(TOKENS[20:30]), whole, atol=0.05)
    session.rewind(30)
    assert session.position == 30


def test_a_prompt_over_the_limit_is_an_error(session: Session) -> None:
    with pytest.raises(ContextOverflow, match=r"a prompt of 41 tokens; this artifact's graph for the NPU takes 40"):
        session.forward(TOKENS[:41])
    session.forward(TOKENS[:40])
    session.forward(TOKENS[40:60])
    with pytest.raises(ContextOverflow, match="60 tokens and 21 more do not fit into the context of 80"):
        session.forward(TOKENS[:21])
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.forward([1])


@pytest.mark.parametrize(
    ("variant", "quant", "options", "context", "message"),
    [
        ("llama", "int4-g32", {}, 80, "without zero points, and int4-g32 has them; build with --scheme int4-sym-g128"),
        ("llama", "int4-sym-g128", {"group": 64}, 80, "in groups of 64, and int4-sym-g128 has 128"),
        ("llama", "int4-sym-g128", {"prompt": 0}, 80, "an NPU's graph needs a limit: prompt = 1024"),
        ("llama", "int4-sym-g128", {"precision": "float32"}, 80, "an NPU computes in float16"),
        ("phi3-longrope", "int4-sym-g128", {}, 80, "stays within its first 24 tokens; build with --context 24"),
    ],
)
def test_what_the_npu_does_not_take_is_refused_before_the_build(
    tmp_path: Path, variant: str, quant: str, options: dict[str, OptionValue], context: int, message: str
) -> None:
    model = open_variant(tmp_path, variant)
    with pytest.raises(TargetError, match=message):
        check(model, scheme(quant), target({**NPU, **options}, context))


def test_the_shipped_target_builds_and_a_short_context_halves_the_prompt(tmp_path: Path) -> None:
    """There is no NPU here: the vectors that need one are left out, and the manifest says so."""
    output = tmp_path / "out"
    manifest = edgekit.build("tiny-phi", target="intel-npu", context=256, output=output)
    assert manifest.engine.details["prompt"] == 128 and manifest.engine.details["symmetric"] is True
    assert manifest.scheme.name == "int4-sym-g128"
    if "NPU" not in openvino.Core().available_devices:
        assert "NPU" in str(manifest.conformance.greedy.reason)
