"""Graphs, engine options and companion files that no exporter writes end in an EdgekitError, and ask for no absurd memory."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgekit
from edgekit import strict_json, verify
from edgekit.artifact import MANIFEST, Artifact, FileInfo, load_artifact
from edgekit.engines import ENGINES
from edgekit.errors import ArtifactError, EdgekitError
from edgekit.profile.subject import subject
from edgekit.runtime.session import open_session
from tiny_artifact import build_tiny


@pytest.fixture(scope="module", params=["onnx", "openvino", "null"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}.get(request.param, "json"))
    return build_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return build_tiny(tmp_path_factory.mktemp("graph"), "onnx")


def cache(model: Any) -> Any:
    return next(i for i in model.graph.input if i.name.startswith("past_key_values.")).type.tensor_type.shape.dim


def without(names: Callable[[str], bool], part: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        held = getattr(model.graph, part)
        kept = [value for value in held if not names(value.name)]
        del held[:]
        held.extend(kept)

    return change


def symbolic(model: Any) -> None:
    cache(model)[1].dim_param = "heads"


def sized(heads: int, size: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        cache(model)[1].dim_value, cache(model)[3].dim_value = heads, size

    return change


def logits(model: Any) -> None:
    next(o for o in model.graph.output if o.name == "logits").type.tensor_type.shape.dim[2].dim_param = "words"


GRAPHS: dict[str, Callable[[Any], None]] = {
    "no outputs": without(lambda _: True, "output"),
    "no logits": without(lambda name: name == "logits", "output"),
    "no present": without(lambda name: name.startswith("present."), "output"),
    "no past": without(lambda name: name.startswith("past_key"), "input"),
    "symbolic heads": symbolic,
    "a terabyte of heads": sized(1 << 40, 16),
    "a large head": sized(2, 1 << 40),
    "heads below nothing": sized(-3, 16),
    "much of both": sized(1 << 16, 1 << 16),
    "symbolic words": logits,
}


@pytest.mark.parametrize("what", GRAPHS)
def test_graphs(graph: Path, tmp_path: Path, what: str) -> None:
    onnx = pytest.importorskip("onnx")
    copy = Path(shutil.copytree(graph, tmp_path / "a"))
    model = onnx.load(str(copy / "model.onnx"), load_external_data=False)
    GRAPHS[what](model)
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EdgekitError):
        open_session(copy, load_artifact(graph).manifest)


ODD: tuple[object, ...] = (None, "", "\x1b[2J", -1, 1 << 62, 0.5, True, "x" * 10_000)


def test_engine_details(built: Path) -> None:
    """Each gone, and each of an odd value; and versions that are none."""
    manifest = load_artifact(built).manifest
    engine = manifest.engine
    changed = [replace(engine, details={}), replace(engine, requires=dict.fromkeys(engine.requires, "\ud7ff"))]
    for key in engine.details:
        changed += [replace(engine, details={k: v for k, v in engine.details.items() if k != key})]
        changed += [replace(engine, details={**engine.details, key: value}) for value in ODD[:: len(engine.details) // 2 or 1]]
    for info in changed:
        try:
            with closing(open_session(built, replace(manifest, engine=info))) as session:
                session.forward([3, 4])
        except EdgekitError as error:
            assert len(str(error)) < 20_000


DEEP = b"[" * 100_000
DOCUMENTS = {
    "deep": DEEP,
    "deep inside": b'{"eos_token_id": ' + b"[" * 500 + b"1" + b"]" * 500 + b"}",
    "digits": b'{"eos_token_id": ' + b"9" * 5000 + b"}",
    "half a character": b'{"eos_token_id": "\\ud800"}',
    "twice": b'{"a": 1, "a": 1}',
    "a list": b"[]",
    "not UTF-8": b"\xff",
}


def listing(directory: Path, name: str, content: bytes) -> None:
    """Writes a file and what the manifest says of it."""
    import hashlib

    (directory / name).write_bytes(content)
    path = directory / MANIFEST
    data = json.loads(path.read_text(encoding="utf-8"))
    data["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize("what", DOCUMENTS)
def test_generation_config(built: Path, tmp_path: Path, what: str) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "a"))
    listing(copy, "generation_config.json", DOCUMENTS[what])
    with pytest.raises(ArtifactError, match=r"generation_config\.json"):
        verify.verify(copy, run=False)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_other_companions(built: Path, tmp_path: Path, name: str) -> None:
    for i, content in enumerate(DOCUMENTS.values()):
        copy = Path(shutil.copytree(built, tmp_path / str(i)))
        listing(copy, name, content)
        try:
            edgekit.load(copy).close()
        except EdgekitError:
            continue
        assert name == "tokenizer_config.json", content


@pytest.mark.parametrize(
    "config",
    [b"[" * 100_000, b"[]", b'{"num_attention_heads": 0}', b'{"hidden_size": 1' + b"0" * 400 + b', "vocab_size": 1' + b"0" * 400 + b"}"],
)
def test_what_is_measured_by_an_odd_config(built: Path, tmp_path: Path, config: bytes) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "a"))
    (copy / "config.json").write_bytes(config)
    assert subject(Artifact(copy, load_artifact(built).manifest)).cache_token == 0


@pytest.mark.parametrize("engine", ["onnx", "openvino", "mlx"])
def test_files_outside_of_an_artifact_are_not_read_back(engine: str, tmp_path: Path) -> None:
    """By a graph, an index or an offset."""
    import importlib

    from checkpoints import make_checkpoint
    from edgekit.catalog import resolve
    from edgekit.models import open_model
    from edgekit.progress import silent

    made = build_tiny(tmp_path / "a", engine)
    model = open_model(resolve(str(make_checkpoint(tmp_path / "m", "phi3-longrope")), progress=silent))
    manifest = load_artifact(made).manifest
    stored = importlib.import_module(f"{ENGINES[engine].session.rpartition('.')[0]}.read")
    weight = next(name for name, shape in model.decoder.weight_shapes().items() if len(shape) == 1)
    assert len(stored.open_stored(made, manifest, model).vector(weight))
    if engine == "openvino":
        path = made / "openvino_model.xml"
        path.write_text(path.read_text(encoding="utf-8").replace('offset="', 'offset="9' + "9" * 30), encoding="utf-8")
    else:
        manifest = replace(manifest, files={"config.json": FileInfo(1, "")})
    with pytest.raises(ArtifactError):
        stored.open_stored(made, manifest, model).vector(weight)


def test_json_in_words_and_in_time() -> None:
    many = "{" + ",".join(f'"k{i % 100_000}": 0' for i in range(200_000)) + "}"
    for text, said in (
        (many, "'k0' is given twice"),
        ("[" * 100_000, "too deeply"),
        ("[" * 200 + "]" * 200, "too deeply"),
        ('"\\ud800"', "half of a character"),
        ('{"\\udc00": 1}', "half of a character"),
        (b"\xff", "not UTF-8"),
        ("1" * 5000, "Exceeds the limit"),
        ("{", "not valid JSON"),
    ):
        with pytest.raises(ValueError, match=said):
            strict_json.load(text)
    assert strict_json.load('["\\ud83d\\ude00", "\\\\ud800"]') == ["\U0001f600", "\\ud800"]
    assert strict_json.load("[" * 100 + "]" * 100)
