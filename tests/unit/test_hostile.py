"""Everything in tests/hostile.py is answered by an EdgekitError, in a process that may take little memory and time."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

import hostile
from checkpoints import make_checkpoint
from edgekit.artifact import load_artifact
from edgekit.companions import companion_files
from edgekit.errors import CheckpointError
from tiny_artifact import build_tiny, write_target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS and Windows do not limit address space")
MEMORY, SECONDS = 3 << 30, 120
"""Bytes of address space (the interpreter with numpy, tokenizers and an engine takes 1.3 GB of it) and processor seconds of one input."""

RUN = """
    import json, os, resource, signal, sys
    from pathlib import Path
    kind, place = sys.argv[1], Path(sys.argv[2])
    from edgekit.artifact import load_artifact
    from edgekit.build import build
    from edgekit.errors import EdgekitError
    from edgekit.confine import Confined, Cost
    from edgekit.runtime import chat, tokenizer

    # Less than outside of tests, so that they end sooner.
    chat.COST = Cost(0.5, chat.COST.memory)
    tokenizer.encode_cost = lambda size: Cost(1, 256 << 20)

    def template(source):
        chat.ChatTemplate(source, {"eos_token": "</s>"}).render([{"role": "user", "content": "hi"}])

    def texts(directory):
        opened = tokenizer.open_tokenizer(Path(directory))
        for text in ("a" * 300_000, " ".join(["ab <x>"] * 50_000)):
            opened.decode(opened.encode(text)[:1000])
            opened.backend.encode(text)
        opened.backend.fewest(text)

    def built(directory):
        build(directory, target=place / "target.toml", output=place / "out", cached=False)

    def form(arguments):
        import edgekit
        with edgekit.load(place / "artifact") as runtime:
            runtime.complete("x", max_tokens=40, **arguments)

    def overrun(*_):
        raise TimeoutError("too slow")

    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]),) * 2)
    signal.signal(signal.SIGPROF, overrun)
    for name, given in json.loads(sys.stdin.read()).items():
        print(json.dumps(["begin", name]), flush=True)
        signal.setitimer(signal.ITIMER_PROF, int(sys.argv[4]))
        try:
            {"template": template, "texts": texts, "form": form, "build": lambda d: built(Path(d)), "artifact": load_artifact}[kind](given)
            ended = ["nothing", ""]
        except EdgekitError as error:
            ended = [type(error).__name__, str(error)]
        except BaseException as error:
            ended = ["UNTYPED " + type(error).__name__, str(error)[:500]]
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(["end", name, *ended]), flush=True)
    print(json.dumps(["most", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10]), flush=True)
"""


def answers(kind: str, given: Mapping[str, object], place: Path) -> dict[str, tuple[str, str]]:
    """What each input came to: the kind of error ("nothing" for none) and its message."""
    write_target(place / "target.toml", "null")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root / "toolkit"), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN), kind, str(place), str(MEMORY), str(SECONDS)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert done.returncode == 0, f"{lines[-1] if lines else None} ended the process: {done.returncode} {done.stderr[-2000:]}"
    most = max(line[1] for line in lines if line[0] == "most")
    assert most < 400 << 20, f"a process that was to be held took {most >> 20} MB"
    return {line[1]: (line[2], line[3]) for line in lines if line[0] == "end"}


def check(found: dict[str, tuple[str, str]], names: object, *allowed: str) -> None:
    assert list(found) == list(names)  # type: ignore[call-overload]
    wrong = {name: answer for name, answer in found.items() if answer[0] not in allowed}
    assert wrong == {}
    assert {name for name, (_, message) in found.items() if len(message) > 3000} == set()


def laid_out(place: Path, variant: str, file: str, contents: dict[str, bytes]) -> dict[str, str]:
    """A checkpoint for each content of ``file``."""
    good = make_checkpoint(place / "good", variant)
    directories = {}
    for i, (name, content) in enumerate(contents.items()):
        directory = Path(shutil.copytree(good, place / f"m{i}"))
        (directory / file).write_bytes(content)
        directories[name] = str(directory)
    return directories


def test_headers(tmp_path: Path) -> None:
    files = hostile.headers()
    check(answers("build", laid_out(tmp_path, "llama", "model.safetensors", files), tmp_path), files, "CheckpointError")


def test_configs(tmp_path: Path) -> None:
    files = hostile.configs()
    found = answers("build", laid_out(tmp_path, "phi3-longrope", "config.json", files), tmp_path)
    check(found, files, "ConfigError", "UnknownArchitecture", "CheckpointError")


def test_tokenizers(tmp_path: Path) -> None:
    files = hostile.tokenizers(tmp_path / "tokenizer")
    check(answers("build", laid_out(tmp_path, "llama", "tokenizer.json", files), tmp_path), files, "CheckpointError", "ConfigError")


def test_tokenizers_in_use(tmp_path: Path) -> None:
    files = hostile.costly_tokenizers(tmp_path / "tokenizer")
    check(answers("texts", laid_out(tmp_path, "llama", "tokenizer.json", files), tmp_path), files, "ArtifactError", "nothing")


def test_templates(tmp_path: Path) -> None:
    """Many are stopped for what they take; what renders, or fails by itself, within that does no harm."""
    found = answers("template", hostile.TEMPLATES, tmp_path)
    check(found, hostile.TEMPLATES, "TemplateError", "nothing")
    stopped = [name for name, (_, message) in found.items() if "out of bounds" in message]
    assert {"nested loops", "rfind", "list.count", "range.count", "raise nested", "changed lists"} <= set(stopped)


def test_forms_of_answers(tmp_path: Path) -> None:
    given = hostile.forms()
    build_tiny(tmp_path / "null", "null").rename(tmp_path / "artifact")
    check(answers("form", given, tmp_path), given, "UsageError", "nothing")


def test_manifests(tmp_path: Path) -> None:
    good = build_tiny(tmp_path / "null", "null")
    data = json.loads((good / "edgekit.json").read_text(encoding="utf-8"))
    files = hostile.manifests(data)
    directories = {}
    for i, (name, content) in enumerate(files.items()):
        directory = Path(shutil.copytree(good, tmp_path / f"a{i}"))
        (directory / "edgekit.json").write_bytes(content)
        directories[name] = str(directory)
    # An engine is looked up by name when a session is opened, which a test of the runtime does.
    check(answers("artifact", directories, tmp_path), files, "ArtifactError", "nothing")
    assert load_artifact(good)


def test_directories(tmp_path: Path) -> None:
    directories = {}
    for i, (name, make) in enumerate(hostile.DIRECTORIES.items()):
        make(tmp_path / f"d{i}")
        directories[name] = str(tmp_path / f"d{i}")
    check(answers("build", directories, tmp_path), directories, "CheckpointError", "ConfigError", "ModelNotFound")
    assert not (tmp_path / "out").exists()


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    """Its snapshots link to blobs beside them."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "main"
    make_checkpoint(snapshot, "llama")
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    assert {path.name for path in companion_files(snapshot)} == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    (snapshot / "LICENSE").symlink_to(tmp_path / "target")
    (tmp_path / "target").write_text("secret", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"LICENSE is a link to .*, outside of the checkpoint"):
        companion_files(snapshot)
