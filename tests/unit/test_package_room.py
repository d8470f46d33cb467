"""How much memory kits ask for: by one formula, which stands in ``room.py`` and in each kit's own code, for a model of 128k tokens too."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

import pytest

import edgekit
from command import Edge
from edgekit.artifact import Artifact, load_artifact
from edgekit.device import load_device
from edgekit.errors import UsageError
from edgekit.packagers import Settings, android, ios, web, windows
from edgekit.packagers.android import GENAI
from edgekit.packagers.apps import facts
from edgekit.packagers.parts import fill_templates
from edgekit.packagers.room import ANSWER, Room
from edgekit.packagers.room import facts as room_facts
from edgekit.target import load_target
from tiny_artifact import build_tiny

sys.path.append(str(Path(__file__).parents[2] / "bench"))  # not first: toolkit has a package of the name of one of its files
from synthetic import COMMON, MODELS

PHI = {**COMMON, **MODELS["phi-3.5-mini"]}
SIZES = {"cpu": 2_190_000_000, "webgpu": 2_080_000_000, "apple-iphone": 2_100_000_000}
"""Bytes of Phi-3.5-mini's weights by target."""
WIDTHS = {"cpu": 4, "webgpu": 2, "apple-iphone": 2}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Of tiny-phi, as if of Phi-3.5-mini: its config.json, its context, the size of its weights."""
    folder, made = tmp_path_factory.mktemp("phi"), {}
    for target, size in SIZES.items():
        edgekit.build("tiny-phi", target=target, output=folder / target, verify=False)
        found = load_artifact(folder / target)
        (folder / target / "config.json").write_text(json.dumps(PHI), encoding="utf-8")
        files = {
            name: replace(info, bytes=size) if name.endswith((".data", "model.safetensors")) else info
            for name, info in found.manifest.files.items()
        }
        context = replace(found.manifest.context, length=min(131072, load_target(target).context), rope_switch=4096)
        details = {**found.manifest.engine.details, **({"mlx_lm_tokens": context.length} if target == "apple-iphone" else {})}
        engine = replace(found.manifest.engine, details=details)
        made[target] = replace(found, manifest=replace(found.manifest, files=files, context=context, engine=engine))
    return made


def test_a_model_of_128k_gets_no_more_than_the_device_has(artifacts: dict[str, Artifact]) -> None:
    assert artifacts["cpu"].manifest.context.length == 131072
    for kind, target, device in (
        (android, "cpu", "galaxy-s24"),
        (windows, "cpu", "generic-8gb"),
        (web, "webgpu", "rtx-4060"),
        (ios, "apple-iphone", "iphone-14-pro"),
        (ios, "apple-iphone", "iphone-16"),
    ):
        room = kind.room(artifacts[target], Settings(device=device))
        copies = 2 if kind is web else 1
        assert room.cache == copies * 2 * WIDTHS[target] * 32 * 32 * 96  # keys and values, layers, heads, dimensions
        assert room.memory == load_device(device).app_memory.value * 1e6
        assert room.fixed > SIZES[target]
        assert room.fixed + room.limit * (room.cache + room.activation) <= room.memory
        assert 256 <= room.limit <= artifacts[target].manifest.context.length
    usual = android.room(artifacts["cpu"], Settings())
    assert (usual.device, usual.cache * 131072) == ("galaxy-s24", 103_079_215_104)
    assert usual.limit < 4096
    assert usual == android.room(artifacts["cpu"], Settings(device="galaxy-s24"))
    board = replace(artifacts["cpu"], manifest=replace(artifacts["cpu"].manifest, target="raspberry-pi-5"))
    assert android.room(board, Settings()) == usual, "the target's memory is a board's"
    assert windows.room(board, Settings()).device == "generic-8gb"
    assert android.room(artifacts["cpu"], Settings(device="snapdragon-8-elite-16gb")).limit > 2 * usual.limit


def test_a_request_is_sized_by_prompt_and_answer() -> None:
    room = Room("a phone", 4_000_000_000, 2_400_000_000, 786_432, 300_000, 1400)
    assert (room.length(100), room.length(100, 50), room.length(1300), room.length(1399, 1 << 30)) == (100 + ANSWER, 150, 1400, 1400)
    assert room.reserved(100, 50) == 150 * 786_432


def test_the_target_for_iphones_has_memory_for_its_own_context(artifacts: dict[str, Artifact]) -> None:
    """With the entitlement that the kit asks for; devices of it agree."""
    target = load_target("apple-iphone")
    room = ios.room(artifacts["apple-iphone"], Settings())
    assert (room.device, room.memory, room.limit) == ("target apple-iphone", target.memory_mb * 1_000_000, target.context)  # type: ignore[operator]
    assert target.memory_mb == min(load_device(name).app_memory.value for name in ("iphone-14-pro", "iphone-16"))
    for name in ("iphone-14-pro", "iphone-16"):
        assert "increased-memory-limit" in load_device(name).app_memory.note


def test_what_fits_nowhere_usual_is_told_which_devices_do(artifacts: dict[str, Artifact]) -> None:
    files = {
        name: replace(info, bytes=4_100_000_000) if name.endswith(".data") else info
        for name, info in artifacts["cpu"].manifest.files.items()
    }
    large = replace(artifacts["cpu"], manifest=replace(artifacts["cpu"].manifest, files=files))
    with pytest.raises(UsageError, match="--device galaxy-s25, pixel-9, snapdragon-8-elite-16gb or snapdragon-8-gen-3-12gb"):
        android.room(large, Settings())


def test_devices_that_run_no_such_package_are_refused(artifacts: dict[str, Artifact], edge: Edge, tmp_path: Path) -> None:
    for kind, device in ((android, "iphone-16"), (android, "rtx-4060"), (windows, "pixel-9"), (windows, "raspberry-pi-5-8gb")):
        with pytest.raises(UsageError, match=f"does not run on {device} in a package"):
            kind.room(artifacts["cpu"], Settings(device=device))
    null = build_tiny(tmp_path / "null", "null")
    ended = edge("package", str(null), "--for", "python", "--device", "galaxy-s24", "--out", str(tmp_path / "out"))
    assert (ended.code, "--device is about" in ended.err) == (2, True)


@pytest.fixture(scope="module")
def kits(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Room]]:
    """The sources of kits for Phi-3.5-mini."""
    folder, made = tmp_path_factory.mktemp("kits"), {}
    more: dict[str, dict[str, object]] = {
        "android": {"genai": GENAI, "ort": android.ORT, "in_app": False, "megabytes": 2190},
        "windows": {"genai": GENAI, "library": windows.LIBRARIES["cpu"]},
    }
    for name, kind in (("android", android), ("windows", windows)):
        room = kind.room(artifacts["cpu"], Settings())
        fill_templates(name, folder / name, {**facts(artifacts["cpu"]), **room_facts(room), **more[name]})
        made[name] = (folder / name, room)
    return made


SOURCES = {"android": ("Model.kt", "minOf", r"ROOM = (\d+)"), "windows": ("Model.cs", "Math.Min", r"Room = (\d+)")}


@pytest.mark.parametrize("kind", SOURCES)
def test_kits_ask_for_what_room_says(kind: str, kits: dict[str, tuple[Path, Room]]) -> None:
    """The expression in the kit's own code, evaluated; nothing else reaches GenAI's ``max_length``."""
    folder, room = kits[kind]
    name, least, constant = SOURCES[kind]
    (path,) = folder.rglob(name)
    text = path.read_text(encoding="utf-8")
    assert re.findall(constant, text) == [str(room.limit)]
    assert f"most: Int = {ANSWER}" in text or f"int most = {ANSWER}" in text
    (formula,) = re.findall(r"va[lr] length = (.+)", text)
    (limit,) = re.findall(r"va[lr] limit = (.+)", text)
    for prompt in (1, 100, room.limit - ANSWER, room.limit - 1):
        for most in (1, 20, ANSWER, 2**31 - 1):
            known = {"first": prompt, "most": most, "least": min, "limit": room.limit}
            assert eval(formula.rstrip(";").replace(least, "least"), {}, known) == room.length(prompt, most)
    assert re.fullmatch(r"(minOf|Math\.Min)\((limits\.getInt\(\"length\"\)|manifest\.Context\.Length), R(OOM|oom)\);?", limit)
    asked = re.findall(r"etSearchOption\(\"max_length\", ([^)]+)\)", text)
    assert [one.partition(".")[0].rstrip("(") for one in asked] == ["length"]
    assert (
        re.findall(r"tart\(tokens(.*)\)", text, re.IGNORECASE).count(", length") == 2
    )  # the first generator, and that beyond LongRoPE's switch
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"room for {room.limit} tokens" in readme and room.device in readme


def test_kits_loop_answers_as_edgekit_does_across_the_switch(tmp_path: Path) -> None:
    """With GenAI's Python package, sized as the kits do it: the second generator has room for the same answer."""
    og = pytest.importorskip("onnxruntime_genai", minversion="0.18")
    directory = build_tiny(tmp_path, "onnx")
    manifest = load_artifact(directory).manifest
    limit, switch, most = manifest.context.length, manifest.context.rope_switch, 30
    assert switch == 24
    prompt = [5 + i for i in range(10)]
    room = Room("here", 0, 0, 0, 0, limit)
    length = room.length(len(prompt), most)
    model = og.Model(str(directory))

    def start(tokens: list[int]) -> object:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=length, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(tokens)
        return generator

    tokens = list(prompt)
    generator = start(tokens)
    while len(tokens) < length:
        if len(tokens) == switch + 1 and len(tokens) > len(prompt):
            generator = start(tokens)
        generator.generate_next_token()  # type: ignore[attr-defined]
        tokens.append(int(generator.get_sequence(0)[-1]))  # type: ignore[attr-defined]
        if tokens[-1] in manifest.tokens.stop:
            break
    assert len(tokens) > switch + 2
    assert tokens[len(prompt) :] == greedy(directory, prompt, len(tokens) - len(prompt))


def greedy(directory: Path, prompt: list[int], count: int) -> list[int]:
    """Of edgekit's own session, computed anew beyond the switch."""
    from edgekit.runtime.session import open_session

    artifact = load_artifact(directory)
    session = open_session(directory, artifact.manifest)
    switch = artifact.manifest.context.rope_switch or 0
    tokens, logits = list(prompt), session.forward(prompt)
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        if session.position == switch:
            session.rewind(0)
            logits = session.forward(tokens)
        else:
            logits = session.forward(tokens[-1:])
    session.close()
    return tokens[len(prompt) :]


def test_android_takes_no_part_in_telemetry(kits: dict[str, tuple[Path, Room]], artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    """Of what the libraries' manifests bring (microsoft/onnxruntime, java/src/main/android-telemetry, and GenAI) nothing
    is left but what the app itself needs."""
    name = "{http://schemas.android.com/apk/res/android}name"
    node = "{http://schemas.android.com/tools}node"
    values = {**facts(artifacts["cpu"]), **room_facts(kits["android"][1]), "genai": GENAI, "ort": android.ORT, "megabytes": 1}
    for in_app in (True, False):
        fill_templates("android", tmp_path / str(in_app), {**values, "in_app": in_app})
        root = xml.parse(tmp_path / str(in_app) / "app/src/main/AndroidManifest.xml").getroot()
        removed = {one.get(name) for one in root.iter() if one.get(node) == "remove"}
        asked = {one.get(name) for one in root.iter("uses-permission") if one.get(node) is None}
        assert removed >= {"ai.onnxruntime.TelemetryInitializer", "ai.onnxruntime.genai.TelemetryInitializer"}
        assert "android.permission.ACCESS_NETWORK_STATE" in removed
        assert ("android.permission.INTERNET" in removed, "android.permission.INTERNET" in asked) == (in_app, not in_app)


@pytest.mark.parametrize(("kind", "loads"), [("android", "= GenAiModel("), ("windows", "new Microsoft.ML.OnnxRuntimeGenAI.Model(")])
def test_telemetry_is_switched_off_before_the_library_is_loaded(kind: str, loads: str, kits: dict[str, tuple[Path, Room]]) -> None:
    folder, _ = kits[kind]
    (path,) = folder.rglob(SOURCES[kind][0])
    text = path.read_text(encoding="utf-8")
    call = "Os.setenv(" if kind == "android" else "Quiet();"
    assert 0 < text.index(call) < text.index(loads)
    assert re.search(r'(setenv|SetEnvironmentVariable)\("ORT_DISABLE_TELEMETRY", "1"', text)
    assert "No telemetry" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the threads of a process")
def test_genai_starts_no_telemetry_when_it_is_told(tmp_path: Path) -> None:
    """What the kits set, on the same native library: it makes no store of events, no identifier and none of the threads that upload."""
    pytest.importorskip("onnxruntime_genai", minversion="0.18")
    directory = build_tiny(tmp_path / "built", "onnx")
    script = (
        f"import onnxruntime_genai as og, os, time\nmodel = og.Model({str(directory)!r})\ntime.sleep(1)\n"
        "print(sorted(open(f'/proc/self/task/{t}/comm').read().strip() for t in os.listdir('/proc/self/task')))"
    )
    outcome = {}
    clean = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS")}
    for told in ("1", "0"):
        home = tmp_path / f"home{told}"
        home.mkdir()
        environment = {**clean, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "ORT_DISABLE_TELEMETRY": told}
        command = ["unshare", "-n", sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False)
        if "unshare" in done.stderr:
            pytest.skip("unshare -n is not permitted here")
        assert done.returncode == 0, done.stderr
        outcome[told] = ([path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()], done.stdout)
    assert outcome["1"][0] == []
    assert outcome["0"][0], "it did report once; if no release does any more, this test proves nothing"


def test_versions_are_in_support(kits: dict[str, tuple[Path, Room]]) -> None:
    """Google Play asks for API 36 since August 2026; .NET 8 has ended in November 2026."""
    gradle = "".join(path.read_text(encoding="utf-8") for path in kits["android"][0].rglob("build.gradle.kts"))
    assert set(re.findall(r"(?:compile|target)Sdk = (\d+)", gradle)) == {"36"}
    projects = [path.read_text(encoding="utf-8") for path in kits["windows"][0].rglob("*.csproj")]
    assert {version for text in projects for version in re.findall(r"<TargetFramework>(.*)</TargetFramework>", text)} == {"net10.0"}
