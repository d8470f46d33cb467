"""Targets: the files that come with edgekit, files of one's own, and what is refused."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit import resources
from edgekit.errors import EdgekitError, TargetError
from edgekit.quant.scheme import SCHEMES
from edgekit.target import load_target, parse_options, target_names, targets

GOOD = 'description = "d"\nengine = "null"\nscheme = "int4-g32"\ncontext = 64\nverified = "executed"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_target_that_comes_along_is_well_formed() -> None:
    assert {"cpu", "raspberry-pi-5"} <= set(target_names())
    for target in targets():
        assert target.scheme in SCHEMES
        assert target.description


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    target = load_target(write(tmp_path, GOOD + "memory_mb = 512\n[options]\nlevel = 4\n"))
    assert (target.name, target.engine, target.memory_mb, dict(target.options)) == ("mine", "null", 512, {"level": 4})


def test_unknown_name_lists_the_known_and_guesses() -> None:
    with pytest.raises(TargetError, match=r"unknown target 'raspbery-pi-5', did you mean 'raspberry-pi-5'\? Known: .*cpu.*\.toml"):
        load_target("raspbery-pi-5")
    with pytest.raises(TargetError, match=r"unknown target 'toaster'; known: .*cpu.*\.toml"):
        load_target("toaster")
    with pytest.raises(TargetError, match=r"unknown target '\.\./cpu'"):
        load_target("../cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + 'colour = "red"\n', "unknown key 'colour'; allowed: description, engine, scheme, context, verified, memory_mb, options"),
        (GOOD.replace("context = 64\n", ""), "missing key 'context'"),
        (GOOD.replace("64", '"64"'), "context: wanted an integer, found '64'"),
        (GOOD.replace("64", "0"), "context: wanted at least 1"),
        (GOOD.replace('"null"', '"tpu"'), "unknown engine 'tpu'; known: onnx"),
        (GOOD.replace("executed", "hoped"), "verified: wanted one of 'executed', 'compiled', 'structure checked', found 'hoped'"),
        (GOOD + "memory_mb = -1\n", "memory_mb: wanted at least 1"),
        (GOOD + "[options]\nx = [1]\n", "options.x"),
        ("description = ", "no valid TOML"),
    ],
)
def test_wrong_files_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TargetError) as caught:
        load_target(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none\.toml cannot be read"):
        load_target(tmp_path / "none.toml")


@dataclass(frozen=True)
class Options:
    level: int = 4
    scale: float = 1.0
    fast: bool = False


def test_options_are_typed_and_closed() -> None:
    assert parse_options({"level": 2, "scale": 3}, Options, "target cpu") == Options(2, 3.0)
    with pytest.raises(TargetError, match="target cpu: options: unknown key 'lvel'; allowed: level, scale, fast"):
        parse_options({"lvel": 2}, Options, "target cpu")
    with pytest.raises(TargetError, match=r"options\.fast: wanted true or false, found 1"):
        parse_options({"fast": 1}, Options, "target cpu")


def test_data_is_found_in_a_wheel_and_in_a_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, wheel = tmp_path / "repository" / "targets", tmp_path / "site-packages" / "edgekit" / "data" / "targets"
    for folder in (source, wheel):
        folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "repository" / "toolkit" / "edgekit")
    assert resources.data_folder("targets") == source
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "site-packages" / "edgekit")
    assert resources.data_folder("targets") == wheel
    with pytest.raises(EdgekitError, match="the data folder 'profiles' is missing"):
        resources.data_folder("profiles")
