"""One door: with a pinned key no command and no function opens, ships or puts back what that key has not signed."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

import edgekit
from command import Edge
from edgekit import cli, parity, stores, verify
from edgekit.artifact import SIGNATURE, load_artifact
from edgekit.errors import EngineMissing, SignatureError, UsageError
from edgekit.packagers import package
from edgekit.profile.report import Settings
from edgekit.profile.run import profile
from edgekit.signing import PINNED, Trust, make_keys, pinned, sign
from edgekit.updates.apply import apply, roll_back
from edgekit.updates.diff import diff
from tiny_artifact import build_tiny

ROOT = Path(edgekit.__file__).parent


class Place:
    """An artifact for devices, one beside it to go back to, an update that brings it, and a key that has signed none of them."""

    def __init__(self, folder: Path, artifact: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.artifact = Path(shutil.copytree(artifact, folder / "model"))
        shutil.copytree(artifact, folder / "model.previous")
        self.update = folder / "update"
        self.device = Path(shutil.copytree(artifact, folder / "device"))
        self.key = make_keys(folder / "ours")[1]

    def offer(self, kind: str) -> None:
        """Unsigned, or signed by another."""
        if kind == "another's":
            private = make_keys(self.folder / "theirs")[0]
            sign(self.artifact, private, release=9)
            sign(self.folder / "model.previous", private, release=9)
        else:
            (self.artifact / "edgekit.json").write_text(
                (self.artifact / "edgekit.json").read_text(encoding="utf-8") + " ", encoding="utf-8"
            )
        diff(self.device, self.artifact, self.update)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("doors"), "onnx")


@pytest.fixture(params=["unsigned", "another's"])
def place(built: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path, built)
    made.offer(request.param)
    monkeypatch.setattr("edgekit.hub.download", lambda *_, **__: (made.artifact, "c" * 40))  # what a store would send
    return made


COMMANDS: dict[str, Callable[[Place], list[object]] | None] = {
    "run": lambda p: [p.artifact, "hello"],
    "chat": lambda p: [p.artifact],
    "serve": lambda p: [p.artifact],
    "inspect": lambda p: [p.artifact],
    "verify": lambda p: [p.artifact],
    "profile": lambda p: [p.artifact],
    "package": lambda p: [p.artifact, "--for", "python", "--out", p.out],
    "diff": lambda p: [p.device, p.artifact, "--out", p.out],
    "apply": lambda p: [p.update, p.device],
    "rollback": lambda p: [p.artifact],
    "push": lambda p: [p.artifact, "hf://org/name"],
    "pull": lambda p: ["hf://org/name", "--out", p.out],
    **dict.fromkeys(("plan", "build", "targets", "devices", "models", "doctor", "keygen", "cache"), None),  # open none but their own
    "sign": None,  # gives the signature
}


def test_every_command_is_listed_here() -> None:
    assert set(typer.main.get_command(cli.app).commands) == set(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name, arguments in COMMANDS.items() if arguments is not None])
@pytest.mark.parametrize("how", ["environment", "option"])
def test_commands_refuse(place: Place, edge: Edge, name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = COMMANDS[name]
    assert made is not None
    arguments = list(map(str, made(place)))
    if how == "environment":
        monkeypatch.setenv(PINNED, str(place.key))
    else:
        arguments += ["--trusted-key", str(place.key)]
    ended = edge(name, *arguments)
    assert ended.code == SignatureError.exit_code, (ended.out, ended.err)
    assert "not signed" in ended.err or "none of the trusted keys" in ended.err
    assert not place.out.exists()


FUNCTIONS: dict[str, Callable[[Place, Trust | None], object]] = {
    "edgekit.load": lambda p, t: edgekit.load(p.artifact, trust=t),
    "edgekit.load_artifact": lambda p, t: edgekit.load_artifact(p.artifact, trust=t),
    "verify": lambda p, t: verify.verify(p.artifact, trust=t),
    "parity": lambda p, t: parity.verify([p.artifact, p.device], trust=t),
    "package": lambda p, t: package(p.artifact, "python", p.out, trust=t),
    "push": lambda p, t: stores.push(p.artifact, "hf://org/name", trust=t),
    "pull": lambda p, t: stores.pull("hf://org/name", p.out, trust=t),
    "diff": lambda p, t: diff(p.artifact, p.device, p.out, trust=t),
    "apply": lambda p, t: apply(p.update, p.device, trust=t),
    "roll_back": lambda p, t: roll_back(p.artifact, trust=t),
    "profile": lambda p, t: profile(
        p.artifact, Settings((), 1, 1, 1, None, 0.0), journal_path=None, trace=None, command="", tell=lambda _: None, trust=t
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("how", ["environment", "argument"])
def test_functions_refuse(place: Place, name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv(PINNED, str(place.key))
    with pytest.raises(SignatureError):
        FUNCTIONS[name](place, None if how == "environment" else Trust((place.key,)))
    assert not place.out.exists()


def test_a_pinned_key_opens_what_it_signed(built: Path, tmp_path: Path, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = make_keys(tmp_path / "ours")
    model = Path(shutil.copytree(built, tmp_path / "model"))
    monkeypatch.setenv(PINNED, str(public))
    assert edge("sign", str(model), "--key", str(private)).code == 0
    for arguments in (["run", model, "hello", "--max-tokens", "2"], ["inspect", model], ["verify", model]):
        assert edge(*map(str, arguments)).code == 0
    ended = edge("profile", str(model), "--prompt", "4", "--tokens", "2", "--rounds", "1", "--loads", "1", "--quiet", "--json")
    assert ended.code == 0, ended.err
    with edgekit.load(model) as runtime:
        assert runtime.manifest == load_artifact(model).manifest


def test_several_keys_can_be_pinned_and_none_by_mistake(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    private, public = make_keys(tmp_path / "a")
    model = Path(shutil.copytree(built, tmp_path / "model"))
    sign(model, private)
    monkeypatch.setenv(PINNED, os.pathsep.join([str(make_keys(tmp_path / "b")[1]), str(public)]))
    load_artifact(model)
    monkeypatch.setenv(PINNED, os.pathsep)
    with pytest.raises(UsageError, match="names no file"):
        load_artifact(model)
    monkeypatch.setenv(PINNED, "")
    (model / SIGNATURE).unlink()
    assert pinned() is None and load_artifact(model)


def test_a_pinned_key_without_cryptography_opens_nothing(built: Path, tmp_path: Path, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setenv(PINNED, str(make_keys(tmp_path / "a")[1]))
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    model = Path(shutil.copytree(built, tmp_path / "model"))
    (model / SIGNATURE).write_bytes(bytes(64))
    ended = edge("run", str(model), "hello")
    assert ended.code == EngineMissing.exit_code and "edgekit[sign]" in ended.err


def test_doctor_opens_what_it_has_built_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.doctor import _try

    monkeypatch.setenv(PINNED, str(make_keys(tmp_path / "a")[1]))
    assert _try({"directory": str(tmp_path), "target": "cpu"})["answer"]


def test_only_what_was_let_in_is_opened_without_asking() -> None:
    """``read_artifact`` asks for no signature: each place that calls it is here, with its reason."""
    allowed = {
        "artifact.py": "the door itself",
        "signing.py": "behind the door; and sign, which makes the signature",
        "output.py": "whether what a killed build left is whole",
        "verify.py": "the engine's process, whose parent was let in",
        "parity.py": "the engine's process, whose parent was let in",
        "profile/worker.py": "a process whose parent was let in",
        "profile/trace.py": "a process whose parent was let in",
        "doctor.py": "an artifact of its own",
        "packagers/parts.py": "a copy that edgekit has just made",
        "stores/hf.py": "a copy that edgekit has just made, its head checked",
        "updates/apply.py": "the old artifact, of which nothing is taken that the new manifest does not vouch for",
    }
    calling = {p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py") if re.search(r"\bread_artifact\(", p.read_text(encoding="utf-8"))}
    assert calling == set(allowed)
