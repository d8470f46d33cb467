"""The artifact directory: manifest parsing and integrity."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.artifact import MANIFEST, FileInfo, Manifest, check_digests, load_artifact
from edgekit.errors import ArtifactError
from manifests import manifest, write


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    directory = tmp_path / "a"
    write(directory, {"weights.bin": b"12345", "sub/graph.onnx": b"g"})
    return directory


def change(directory: Path, path: str, value: Any) -> None:
    """Sets the key at ``path`` (dots between keys); ``...`` deletes it."""
    data = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    at, keys = data, path.split("/")
    for key in keys[:-1]:
        at = at[int(key) if isinstance(at, list) else key]
    if value is ...:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    (directory / MANIFEST).write_text(json.dumps(data), encoding="utf-8")


def test_manifest_round_trip() -> None:
    built = manifest(a=FileInfo(1, "ab"))
    assert Manifest.from_json(built.to_json()) == built
    assert Manifest.from_json(built.to_json()).to_json() == built.to_json()


def test_load_returns_what_was_written(artifact: Path) -> None:
    loaded = load_artifact(artifact)
    assert list(loaded.manifest.files) == ["sub/graph.onnx", "weights.bin"]
    check_digests(loaded)


def test_unknown_keys_are_ignored_anywhere(artifact: Path) -> None:
    change(artifact, "flavour", {"sweet": 0.1})
    change(artifact, "model/colour", "blue")
    assert load_artifact(artifact).manifest.model.name == "m"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", ..., "missing key 'model'"),
        ("model/name", ..., "model: missing key 'name'"),
        ("model/revision", ..., "model: missing key 'revision'"),
        ("model/source", "moon", "model.source: wanted one of 'embedded', 'hub', 'local', found 'moon'"),
        ("model/parameters", "12", "model.parameters: wanted an integer, found '12'"),
        ("model/parameters", True, "model.parameters: wanted an integer, found true"),
        ("context/rope_switch", 1.5, "context.rope_switch: wanted an integer or null, found 1.5"),
        ("context/length", 0, "context.length"),
        ("context/sliding_window", -1, "context.sliding_window: wanted at least 1 and at most 16777216, found -1"),
        ("tokens/stop", 5, "tokens.stop: wanted a list, found 5"),
        ("tokens/stop", [1, "x"], "tokens.stop[1]: wanted an integer, found 'x'"),
        ("tokens/stop", [1, 4096], "tokens.stop[1]: 4096 is outside the vocabulary"),
        ("tokens/add_bos", 1, "tokens.add_bos: wanted true or false, found 1"),
        ("scheme/bits_per_weight", 10**400, "scheme.bits_per_weight: wanted a number, found 1000000"),  # found by the fuzzer
        ("scheme/linear", None, "scheme.linear: wanted an object, found null"),
        ("scheme/exceptions/x/bits", "4", "scheme.exceptions.x.bits"),
        ("conformance/encode/0/ids", None, "conformance.encode[0].ids"),
        ("engine/details", {"x": []}, "engine.details.x"),
        ("files/weights.bin", 5, "files.weights.bin: wanted an object, found 5"),
        ("chat_template", "no.jinja", "chat_template: 'no.jinja' is not among the files"),
    ],
)
def test_wrong_manifest_names_file_and_key(artifact: Path, path: str, value: Any, message: str) -> None:
    change(artifact, path, value)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(artifact)
    assert message in str(caught.value)
    assert str(artifact / MANIFEST) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "no edgekit manifest"),
        ("{}", "no edgekit manifest"),
        ('{"format": "edgekit", "format": "edgekit"}', "key 'format' is given twice"),
        ('{"format": "edgekit", "version": NaN}', "NaN is no JSON number"),
        ('{"format": "edgekit", "version": 1e999}', "1e999 is too large a number"),
        ('{"format": "edgekit", "version": "1"}', "version: wanted a positive integer"),
        ('{"format": "edgekit", "version": 2, "all": "new"}', "newer than this edgekit knows (1); upgrade: pip install --upgrade edgekit"),
        ("[" * 100_000, "JSON nested too deeply"),
    ],
)
def test_malformed_manifest(artifact: Path, text: str, message: str) -> None:
    (artifact / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError) as caught:
        load_artifact(artifact)
    assert message in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_value_anywhere_does_worse_than_an_artifact_error(data: st.DataObject) -> None:
    """What is accepted has the types it should have: it survives a round trip."""
    built: Any = json.loads(manifest(a=FileInfo(1, "ab")).to_json())
    at = built
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not (isinstance(at[key], (dict, list)) and at[key] and data.draw(st.booleans())):
            break
        at = at[key]
    at[key] = data.draw(JUNK)
    try:
        accepted = Manifest.from_json(json.dumps(built))
    except ArtifactError:
        return
    assert Manifest.from_json(accepted.to_json()) == accepted


def test_manifest_that_is_not_utf8(artifact: Path) -> None:
    (artifact / MANIFEST).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        load_artifact(artifact)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "C:x", "a\\b", "a//b", ".", "", "a\nb", MANIFEST, "./a"])
def test_file_names_that_leave_the_directory(artifact: Path, name: str) -> None:
    change(artifact, "files", {name: {"bytes": 1, "sha256": "00"}})
    with pytest.raises(ArtifactError, match="no plain relative path"):
        load_artifact(artifact)


def test_missing_and_truncated_files(artifact: Path) -> None:
    (artifact / "weights.bin").write_bytes(b"123")
    with pytest.raises(ArtifactError, match=r"weights\.bin has 3 bytes, the manifest says 5"):
        load_artifact(artifact)
    (artifact / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match=r"weights\.bin is missing"):
        load_artifact(artifact)


def test_changed_content_is_found_by_its_digest(artifact: Path) -> None:
    (artifact / "weights.bin").write_bytes(b"54321")
    loaded = load_artifact(artifact)
    with pytest.raises(ArtifactError, match=r"weights\.bin: its content is not what was built"):
        check_digests(loaded)


def test_not_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no artifact: it has no edgekit\.json"):
        load_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        load_artifact(tmp_path / "nowhere")


def test_a_file_or_a_package_in_the_place_of_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match=r"m\.gguf is a file; an artifact is a directory"):
        load_artifact(tmp_path / "m.gguf")
    (tmp_path / "package" / "artifact").mkdir(parents=True)
    (tmp_path / "package" / "artifact" / "edgekit.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"package is a package, and its artifact lies in it; give .*artifact"):
        load_artifact(tmp_path / "package")
