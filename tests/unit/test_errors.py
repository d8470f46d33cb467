"""Every promised error through the ``edge`` command: its exit code, that its message names the thing, and that nothing is left behind."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import make_checkpoint, write_safetensors
from command import Edge
from edgekit import errors
from edgekit.build import build
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.engines import ENGINES

LAST = "model-00003-of-00003.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("errors") / "model", "mistral", shards=3)


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({k: v for k, v in (data | changes).items() if v is not ...}), encoding="utf-8")


def refused(edge: Edge, tmp_path: Path, code: int, *messages: str, model: Path, target: str = "cpu", options: tuple[str, ...] = ()) -> str:
    """Builds, and checks that it fails as it should. Returns what was printed."""
    place = tmp_path / "place"
    ended = edge("build", str(model), "--target", target, "--out", str(place / "out"), *options)
    assert ended.code == code, ended.err
    assert ended.out == ""
    last = ended.err.splitlines()[-1]
    assert last.startswith("edge: error: ")
    for message in messages:
        assert message in last
    assert "Traceback" not in ended.err
    assert not place.exists() or list(place.iterdir()) == []
    return last


def test_missing_shard(edge: Edge, model: Path, tmp_path: Path) -> None:
    (model / LAST).unlink()
    refused(edge, tmp_path, 3, f"shard {LAST} is missing", model=model)


def test_truncated_shard(edge: Edge, model: Path, tmp_path: Path) -> None:
    path = model / LAST
    path.write_bytes(path.read_bytes()[:-1000])
    refused(edge, tmp_path, 3, LAST, "is truncated", "Download it again", model=model)


def test_weights_that_are_not_finite(edge: Edge, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "nan", "mistral")
    opened = open_checkpoint(model, Source("nan", "local", None, None))
    tensors = {name: opened.rows(name) for name in opened.tensors}
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = np.nan
    write_safetensors(model / "model.safetensors", tensors, "BF16")
    refused(edge, tmp_path, 3, "model.layers.1.mlp.down_proj.weight", "NaN", model=model)


def test_unknown_architecture(edge: Edge, model: Path, tmp_path: Path) -> None:
    edit(model / "config.json", model_type="mamba")
    refused(edge, tmp_path, 3, "'mamba'", "known: phi3, mistral, llama, qwen2", model=model)


def test_config_that_disagrees_with_its_tensors(edge: Edge, model: Path, tmp_path: Path) -> None:
    edit(model / "config.json", intermediate_size=192)
    message = refused(edge, tmp_path, 3, "256", "192", model=model)
    assert re.search(r"(gate|up|down)_proj", message)


def test_unknown_model(edge: Edge, tmp_path: Path) -> None:
    refused(edge, tmp_path, 3, "unknown model 'phi3.5-mimi'", "did you mean phi3.5-mini", model=Path("phi3.5-mimi"))


def test_unknown_target(edge: Edge, model: Path, tmp_path: Path) -> None:
    refused(edge, tmp_path, 4, "unknown target 'cpus', did you mean 'cpu'?", ", cpu, ", model=model, target="cpus")


@pytest.mark.parametrize(
    ("line", "message"), [("speed = 9", "unknown key 'speed'; allowed: description, "), ("[options]\nturbo = true", "'turbo'")]
)
def test_unknown_key_of_a_target(edge: Edge, model: Path, tmp_path: Path, line: str, message: str) -> None:
    target = tmp_path / "own.toml"
    text = 'description = "d"\nengine = "onnx"\nscheme = "int4-g32"\ncontext = 64\nverified = "executed"\n'
    target.write_text(f"{text}{line}\n", encoding="utf-8")
    refused(edge, tmp_path, 4, message, "allowed", model=model, target=str(target))


def test_unknown_scheme(edge: Edge, model: Path, tmp_path: Path) -> None:
    refused(edge, tmp_path, 4, "unknown scheme 'int2'; known: int4-g32", model=model, options=("--scheme", "int2"))


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Makes ``import package`` fail, also for engine modules that have it already."""
    for name in [name for name in sys.modules if name.startswith(("edgekit.engines.onnx", f"{package}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def test_engine_that_is_not_installed_at_build(edge: Edge, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exporter_without_engine.py").write_text("import engine_that_is_absent")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "onnx", replace(ENGINES["onnx"], export="exporter_without_engine"))
    refused(edge, tmp_path, 5, "target 'cpu' needs engine_that_is_absent", "edgekit[build,onnx]", model=model)


def test_engine_that_is_not_installed_at_run(edge: Edge, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(original, target="cpu", output=tmp_path / "a")
    without(monkeypatch, "onnxruntime")
    ended = edge("run", str(tmp_path / "a"), "hello")
    assert ended.code == 5
    assert "edgekit[onnx]" in ended.err


def test_context_overrun(edge: Edge, original: Path, tmp_path: Path) -> None:
    build(original, target="cpu", output=tmp_path / "a", context=40)
    ended = edge("run", str(tmp_path / "a"), "the " * 60)
    assert ended.code == 7
    assert re.search(r"the prompt has \d+ tokens and the context of this artifact holds 40", ended.err)
    assert ended.out == ""


def test_broken_chat_template(edge: Edge, model: Path, tmp_path: Path) -> None:
    edit(model / "tokenizer_config.json", chat_template="{% for m in messages %}\n{{ m.content }")
    refused(edge, tmp_path, 8, "tokenizer_config.json", "the chat template is broken in line 2", model=model)


def test_output_that_exists(edge: Edge, original: Path, tmp_path: Path) -> None:
    build(original, target="cpu", output=tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    again = ["build", str(original), "--target", "cpu", "--out", str(tmp_path / "a")]
    ended = edge(*again)
    assert ended.code == 9
    assert "--force" in ended.err
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    assert edge(*again, "--scheme", "int4-g32", "--force").code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="directories have no write permission there")
def test_output_that_cannot_be_written(edge: Edge, original: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    ended = edge("build", str(original), "--target", "cpu", "--out", str(tmp_path / "file" / "a"))
    assert ended.code == 9
    assert str(tmp_path / "file" / "a") in ended.err


def test_not_an_artifact(edge: Edge, tmp_path: Path) -> None:
    for command in (["run", str(tmp_path), "hello"], ["chat", str(tmp_path)], ["inspect", str(tmp_path)]):
        ended = edge(*command)
        assert ended.code == 6
        assert f"{tmp_path} is no artifact" in ended.err


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    own = [kind.exit_code for kind in kinds if "exit_code" in vars(kind)]
    assert len(own) == len(set(own))
    listed = dict(re.findall(r"(?m)[├└]─ (\w+) +(\d+)? ", errors.__doc__ or ""))
    assert set(listed) == {kind.__name__ for kind in kinds} - {"EdgekitError"}
    for kind in kinds:
        if listed.get(kind.__name__):
            assert kind.exit_code == int(listed[kind.__name__])


def test_every_engine_names_an_extra_that_exists() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"(?m)^(\w+) = \[", text[text.index("[project.optional-dependencies]") :])
    assert {engine.extra for engine in ENGINES.values()} <= set(extras)
