"""``edge package --for android|windows|ios``: complete sources without a syntax error. No compiler for them is at hand: docs/package.md."""

import hashlib
import importlib
import json
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

import edgekit
from command import Edge
from edgekit import packagers
from edgekit.packagers import Settings, android
from tiny_artifact import build_tiny

GRAMMARS = {".kt": "tree_sitter_kotlin", ".kts": "tree_sitter_kotlin", ".swift": "tree_sitter_swift", ".cs": "tree_sitter_c_sharp"}
TARGETS = {"android": "cpu", "windows": "cpu", "ios": "apple-iphone"}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny-phi")
    for target in sorted(set(TARGETS.values())):
        edgekit.build("tiny-phi", target=target, output=folder / target)
    return {kind: folder / target for kind, target in TARGETS.items()}


@pytest.fixture(scope="module", params=TARGETS)
def made(request: pytest.FixtureRequest, artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / str(request.param)
    packagers.package(artifacts[request.param], request.param, output, Settings(part=500_000))
    return output


def test_sources_have_no_syntax_error(made: Path) -> None:
    tree_sitter = pytest.importorskip("tree_sitter")
    sources = [path for path in made.rglob("*") if path.suffix in GRAMMARS]
    assert len(sources) >= 3
    for path in sources:
        grammar = importlib.import_module(GRAMMARS[path.suffix])
        parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
        root = parser.parse(path.read_bytes()).root_node
        assert not root.has_error, f"{path}: {wrong(root)}"
        assert "{{" not in path.read_text(encoding="utf-8") and "{%" not in path.read_text(encoding="utf-8")


def wrong(node: object) -> str:
    """Where the first error is."""
    found = next((child for child in node.children if child.has_error), None)  # type: ignore[attr-defined]
    return wrong(found) if found is not None else str(node)


def test_project_files_are_xml(made: Path) -> None:
    for path in [*made.rglob("*.csproj"), *made.rglob("*.xml")]:
        xml.parse(path)


def test_papers_are_there(made: Path) -> None:
    assert {"README.md", "LICENSE", "NOTICE", "MODEL_CARD.md", "sbom.cdx.json", "SHA256SUMS"} <= {path.name for path in made.iterdir()}
    assert "not compiled" in (made / "README.md").read_text(encoding="utf-8")


def test_the_whole_model_is_in_it(made: Path, artifacts: dict[str, Path]) -> None:
    artifact = artifacts[made.name]
    wanted = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in artifact.iterdir()}
    (folder,) = (path for path in made.rglob("artifact") if path.is_dir())
    if not (folder / "files.json").exists():
        assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == wanted
        return
    listed = json.loads((folder / "files.json").read_text(encoding="utf-8"))["files"]
    held = {one["path"]: b"".join((folder / part["path"]).read_bytes() for part in one["parts"]) for one in listed}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in held.items()} == wanted


def test_same_package_twice_is_equal_and_the_command_says_what_it_is(
    edge: Edge, made: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    ended = edge("package", str(artifacts[made.name]), "--for", made.name, "--out", str(tmp_path / "again"), "--json")
    assert (ended.code, json.loads(ended.out)["kind"]) == (0, made.name)
    packagers.package(artifacts[made.name], made.name, tmp_path / "again", Settings(part=500_000), force=True)
    assert (made / "SHA256SUMS").read_bytes() == (tmp_path / "again" / "SHA256SUMS").read_bytes()


def test_a_large_model_is_downloaded_at_the_first_run(artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(android, "IN_APP", 1_000_000)
    packagers.package(artifacts["android"], "android", tmp_path / "out", Settings(part=500_000))
    assets = tmp_path / "out" / android.ASSETS
    assert [path.name for path in assets.iterdir()] == ["files.json"]
    listed = json.loads((assets / "files.json").read_text(encoding="utf-8"))["files"]
    assert all((tmp_path / "out" / android.HOSTED / part["path"]).exists() for one in listed for part in one["parts"])
    assert "android.permission.INTERNET" in (tmp_path / "out" / "app/src/main/AndroidManifest.xml").read_text(encoding="utf-8")


def test_what_those_devices_cannot_run_is_refused(edge: Edge, artifacts: dict[str, Path], tmp_path: Path) -> None:
    null = build_tiny(tmp_path / "null", "null")
    for kind in TARGETS:
        assert edge("package", str(null), "--for", kind, "--out", str(tmp_path / "out")).code == 2
    crossed = edge("package", str(artifacts["ios"]), "--for", "windows", "--out", str(tmp_path / "out"))
    assert crossed.code == 2
    assert "runs on onnx" in crossed.err
