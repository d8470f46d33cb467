"""Device profiles: those that come with edgekit, files of one's own, what is refused, and measurements added to them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from command import Edge
from edgekit.device import Measurement, add_measurement, device_names, devices, load_device, measured_toml
from edgekit.errors import TargetError
from edgekit.target import target_names

FIGURE = '{ value = 8000, basis = "specification", source = "https://example.org" }'
GOOD = (
    f'description = "d"\nchip = "c"\nkind = "board"\nmemory = {FIGURE}\napp_memory = {FIGURE}\nbandwidth = {FIGURE}\n'
    '[[units]]\nkind = "cpu"\nname = "u"\ntargets = ["cpu"]\n'
)
MEASURED = Measurement(
    "2026-11-21",
    'edge profile "x" \\ \x7f',
    "Linux",
    "tiny-phi",
    "cpu",
    "int4-g128",
    "a" * 64,
    {"onnxruntime": "1.31.1"},
    {"decode_64_tokens_s": 10.5},
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_profile_that_comes_along_is_well_formed() -> None:
    known = devices()
    assert [device.name for device in known] == device_names()
    for device in known:
        assert device.description and device.chip and device.targets
        assert set(device.targets) <= set(target_names())
        assert device.unit(device.targets[0]) is device.units[0] or not device.units[0].targets
        assert device.measured == (), "a measurement that comes along was made with the command it names: review it"


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    device = load_device(write(tmp_path, GOOD))
    assert (device.name, device.targets, device.memory.value) == ("mine", ("cpu",), 8000.0)
    assert device.unit("cuda") is None


def test_unknown_name_lists_the_known_and_guesses() -> None:
    name = device_names()[0]
    with pytest.raises(TargetError, match=f"unknown device '{name}x', did you mean '{name}'"):
        load_device(f"{name}x")
    with pytest.raises(TargetError, match=r"unknown device '\.\./x'; known: .*\.toml"):
        load_device("../x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f'colour = "red"\n{GOOD}',
            "unknown key 'colour'; allowed: description, chip, kind, memory, app_memory, bandwidth, units, measured",
        ),
        (
            GOOD.replace("value = 8000, ", "value = 8000, unit = 'MB', ", 1),
            "memory: unknown key 'unit'; allowed: value, basis, source, note",
        ),
        (GOOD.replace('chip = "c"\n', ""), "missing key 'chip'"),
        (GOOD.replace("8000", "0", 1), "memory.value: wanted a number above 0, found 0"),
        (GOOD.replace("8000", "nan", 1), "memory.value: wanted a number above 0, found nan"),
        (GOOD.replace("https://example.org", "somewhere", 1), "memory.source: wanted an address (https://...), found 'somewhere'"),
        (GOOD.replace("specification", "computed", 1), "memory.note: a figure that is computed says here how"),
        (GOOD.replace("specification", "guessed", 1), "memory.basis: wanted one of 'specification', 'computed'"),
        (GOOD.replace("8000", "4000", 1), "app_memory is 8000 MB, more than the memory of 4000 MB"),
        (GOOD.replace('"cpu"]', '"toaster"]'), "units[0].targets: unknown target 'toaster'; known: "),
        (GOOD.replace('"cpu"]', '"cpu", "cpu"]'), "'cpu' is another unit's already"),
        (GOOD[: GOOD.index("[[")], "missing key 'units'"),
        (GOOD + measured_toml(replace(MEASURED, artifact="x")), "measured[0].artifact: wanted the sha256 of a manifest, found 'x'"),
        ("chip = ", "no valid TOML"),
    ],
)
def test_wrong_files_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TargetError) as caught:
        load_device(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none\.toml cannot be read"):
        load_device(tmp_path / "none.toml")


def test_a_measurement_is_added_and_nothing_else_changed(tmp_path: Path) -> None:
    path = write(tmp_path, "# a comment that stays\n" + GOOD)
    assert add_measurement(path, MEASURED).measured == (MEASURED,)
    assert add_measurement(path, replace(MEASURED, target="x")).measured == (MEASURED, replace(MEASURED, target="x"))
    assert path.read_text(encoding="utf-8").startswith("# a comment that stays\n" + GOOD)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]


def test_a_file_that_is_no_profile_is_left_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path, "chip = 1\n")
    with pytest.raises(TargetError):
        add_measurement(path, MEASURED)
    assert path.read_text(encoding="utf-8") == "chip = 1\n"


def test_the_command_lists_them(edge: Edge) -> None:
    ended = edge("devices")
    assert ended.code == 0
    assert [line.split()[0] for line in ended.out.splitlines()[1:]] == device_names()
    assert json.loads(edge("devices", "--json").out)[0]["name"] == device_names()[0]
