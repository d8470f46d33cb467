"""``edge package --for web``: the page in a browser answers as the engine does here, and goes on when its server is gone."""

import hashlib
import http.server
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import edgekit
from chromium import Page, chromium, program, serving
from command import Edge
from edgekit import packagers
from edgekit.artifact import load_artifact
from edgekit.errors import DownloadError, UsageError
from edgekit.packagers import Settings, npm
from edgekit.packagers.split import split
from edgekit.packagers.web import libraries
from edgekit.progress import silent
from tiny_artifact import build_tiny, write_target

PROMPT = "turn on the kitchen light"
TARBALLS = Path.home() / ".cache" / "edgekit" / "npm"
"""The user's own cache: `edge package --for web` puts them there."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-phi") / "artifact"
    edgekit.build("tiny-phi", target="cpu", output=directory)
    return directory


def page_of(artifact: Path, output: Path) -> Path:
    """Its package, of the libraries that the user's cache has."""
    for package in npm.packages():
        kept = TARBALLS / npm.place(package).name
        if not kept.exists():
            pytest.skip(f"{kept} is not there and tests fetch nothing: edge package DIR --for web --out DIR")
        place = npm.place(package)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(kept)
    packagers.package(artifact, "web", output, Settings(part=500_000))
    return output


@pytest.fixture(scope="module")
def made(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(artifact, tmp_path_factory.mktemp("made") / "package")


@pytest.fixture
def server(made: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    with serving(made) as server:
        yield server


def ask(page: Page, prompt: str) -> tuple[str, list[int]]:
    """An answer's text and tokens."""
    assert page.wait("document.body?.dataset.state") == "ready", page.evaluate("document.body.innerText")
    page.evaluate(f"document.getElementById('prompt').value = {json.dumps(prompt)}; document.getElementById('ask').requestSubmit()")
    assert page.wait("document.body.dataset.state !== 'answering' && document.body.dataset.state") == "ready"
    last = "[...document.querySelectorAll('.assistant')].at(-1)"
    return page.evaluate(f"{last}.textContent"), json.loads(page.evaluate(f"{last}.dataset.tokens"))


def test_page_answers_as_the_engine_does_and_works_offline(
    made: Path, artifact: Path, server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    if program() is None:
        pytest.skip("there is no Chromium here")
    with edgekit.load(artifact) as runtime:
        answer = runtime.complete([{"role": "user", "content": PROMPT}])
        stop = set(runtime.manifest.tokens.stop)
        long = "what is 3 plus 4? " * 29 + PROMPT  # its answer crosses the switch of LongRoPE, and no token of it is nearly a tie
        crossing = runtime.complete([{"role": "user", "content": long}])
        assert crossing.prompt_tokens < 256 < crossing.prompt_tokens + len(crossing.tokens)
    with chromium(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{server.server_port}/")
        assert ask(page, PROMPT) == (answer.text, [token for token in answer.tokens if token not in stop])
        assert page.wait("document.body.dataset.offline") == "ready"
        server.shutdown()
        server.server_close()
        page.reload()
        page.wait("document.getElementById('talk')?.childElementCount === 0")
        assert ask(page, PROMPT) == (answer.text, [token for token in answer.tokens if token not in stop])
        page.reload()
        page.wait("document.getElementById('talk')?.childElementCount === 0")
        assert ask(page, long)[1] == [token for token in crossing.tokens if token not in stop]
        page.evaluate(f"document.getElementById('prompt').value = {json.dumps(long * 9)}; document.getElementById('ask').requestSubmit()")
        assert page.wait(
            "document.body.dataset.state !== 'answering' && document.getElementById('status').textContent.includes('a new one')"
        )
        page.evaluate("document.getElementById('new').click()")
        assert ask(page, PROMPT)[0] == answer.text


@pytest.mark.full_size
def test_a_page_on_webgpu_answers_as_the_engine_does(artifact: Path, tmp_path: Path) -> None:
    """By SwiftShader, which has no float16, on the CPU: a minute for 31 tokens of tiny-phi."""
    if program() is None:
        pytest.skip("there is no Chromium here")
    target = write_target(tmp_path / "webgpu.toml", "onnx", context=4096, options='provider = "webgpu"\nprecision = "float32"')
    edgekit.build("tiny-phi", target=target, output=tmp_path / "artifact", scheme="int4-g128")
    with edgekit.load(artifact) as runtime:
        answer = runtime.complete([{"role": "user", "content": PROMPT}])
        tokens = [token for token in answer.tokens if token not in runtime.manifest.tokens.stop]
    made = page_of(tmp_path / "artifact", tmp_path / "package")
    with serving(made) as server, chromium(tmp_path / "profile", webgpu=True) as page:
        page.open(f"http://127.0.0.1:{server.server_port}/")
        assert ask(page, PROMPT) == (answer.text, tokens)


def test_a_changed_part_is_refused(made: Path, server: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    if program() is None:
        pytest.skip("there is no Chromium here")
    part = made / "artifact" / "model.onnx.data.001"
    before = part.read_bytes()
    part.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with chromium(tmp_path / "profile") as page:
            page.open(f"http://127.0.0.1:{server.server_port}/")
            assert page.wait("document.body?.dataset.state") == "failed"
            assert "model.onnx.data.001 is not what was packaged" in page.evaluate("document.body.innerText")
    finally:
        part.write_bytes(before)


def test_page_fetches_nothing_from_elsewhere(made: Path) -> None:
    for name in ("index.html", "page.js", "worker.js", "model.js", "files.js", "sw.js", "page.css"):
        text = (made / name).read_text(encoding="utf-8")
        assert "http://" not in text and "https://" not in text, name
    shell = (made / "sw.js").read_text(encoding="utf-8")
    for path in (made / "vendor").iterdir():
        assert f'"vendor/{path.name}"' in shell


def test_what_npm_sends_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    package = npm.packages()[0]
    path = npm.place(package)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else")
    with pytest.raises(DownloadError, match="sha512 differs"):
        npm.tarball(package, silent)
    assert not path.exists()


@pytest.mark.network
def test_registry_has_what_is_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    for package in npm.packages():
        assert npm.vendor(package, tmp_path, silent).sha256


def test_split_keeps_every_byte(tmp_path: Path) -> None:
    content = os.urandom(2500)
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "small").write_bytes(content[:1000])
    (tmp_path / "empty").touch()
    files = {one.path: one for one in split(tmp_path, 1000)}
    assert [part.path for part in files["large"].parts] == ["large.000", "large.001", "large.002"]
    assert [part.path for part in files["small"].parts] == ["small"]
    assert not (tmp_path / "large").exists()
    for one in files.values():
        whole = b"".join((tmp_path / part.path).read_bytes() for part in one.parts)
        assert (len(whole), hashlib.sha256(whole).hexdigest()) == (one.bytes, one.sha256)
        assert all(hashlib.sha256((tmp_path / part.path).read_bytes()).hexdigest() == part.sha256 for part in one.parts)


def test_options_of_python_and_other_engines_are_refused(edge: Edge, artifact: Path, tmp_path: Path) -> None:
    ended = edge("package", str(artifact), "--for", "web", "--out", str(tmp_path / "out"), "--python", "3.12")
    assert (ended.code, "--python" in ended.err) == (2, True)
    null = build_tiny(tmp_path / "null", "null")
    assert edge("package", str(null), "--for", "web", "--out", str(tmp_path / "out")).code == 2


def test_an_artifact_for_a_newer_onnx_runtime_is_refused(artifact: Path) -> None:
    """As one with an INT8 KV cache is, until the release that pages run on has it."""
    opened = load_artifact(artifact)
    engine = replace(opened.manifest.engine, requires={"onnxruntime": "9.1"})
    with pytest.raises(UsageError, match=r"needs ONNX Runtime 9\.1, and pages run on onnxruntime-web \d"):
        libraries(replace(opened, manifest=replace(opened.manifest, engine=engine)))
