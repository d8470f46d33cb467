"""Device profiles: where an artifact will run. Each is one file in ``profiles/``; every figure in it says where it is from.

Device side: imports nothing of the build. ``docs/plan.md`` describes the file.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.errors import TargetError
from edgekit.files import replace_file
from edgekit.records import RecordError, parse
from edgekit.resources import data_file, data_folder, data_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Basis = Literal["specification", "computed", "reported", "rule", "measured"]


@dataclass(frozen=True)
class Figure:
    """A number with its origin. source: an address, or for "measured" the command.

    basis: "specification", the maker's own figure; "computed" from such figures, as ``note`` says; "reported" by others who measured it;
    "rule", a limit that systems or libraries apply, or one that we chose, as ``note`` says; "measured" on this very device.
    """

    value: float
    basis: Basis
    source: str
    note: str = ""


@dataclass(frozen=True)
class Unit:
    """What computes: a device's CPU, GPU or NPU. targets: those of ``edge targets`` that run on it.

    compute: its peak in 10^9 operations a second (a multiply-add is two), in the type that ``note`` names.
    generation: of an NPU, as its maker's tools name it. context: most tokens there, memory: most MB, where less than the device has.
    """

    kind: Literal["cpu", "gpu", "npu"]
    name: str
    targets: tuple[str, ...]
    compute: Figure | None = None
    generation: str | None = None
    context: Figure | None = None
    memory: Figure | None = None


@dataclass(frozen=True)
class Measurement:
    """What ``edge profile --save`` found there; never an estimate.

    artifact: sha256 of its manifest. model, target, scheme: of the artifact. versions: package -> version, the engine's among them.
    figures: name, ending in its unit, such as ``decode_64_tokens_s`` -> number.
    """

    date: str
    command: str
    system: str
    model: str
    target: str
    scheme: str
    artifact: str
    versions: Mapping[str, str]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class DeviceProfile:
    """memory: MB (10^6 bytes) of RAM, or of a graphics card's own. app_memory: MB of it that one application may use.

    bandwidth: of that memory, 10^9 bytes a second; a peak that programs do not reach, unless it is measured.
    """

    name: str
    description: str
    chip: str
    kind: Literal["phone", "tablet", "laptop", "desktop", "mini PC", "board", "class"]
    memory: Figure
    app_memory: Figure
    bandwidth: Figure
    units: tuple[Unit, ...]
    measured: tuple[Measurement, ...]

    def unit(self, target: str) -> Unit | None:
        """What runs this target there, if anything does."""
        return next((unit for unit in self.units if target in unit.targets), None)

    @property
    def targets(self) -> tuple[str, ...]:
        """Every target that runs there."""
        return tuple(target for unit in self.units for target in unit.targets)


@dataclass(frozen=True)
class _File:
    """The keys of a profile's TOML file. Its name is the file's."""

    description: str
    chip: str
    kind: Literal["phone", "tablet", "laptop", "desktop", "mini PC", "board", "class"]
    memory: Figure
    app_memory: Figure
    bandwidth: Figure
    units: tuple[Unit, ...]
    measured: tuple[Measurement, ...] = ()


def device_names() -> list[str]:
    """The names of all profiles that come with edgekit, sorted."""
    return data_names("profiles")


def devices() -> list[DeviceProfile]:
    """All profiles that come with edgekit, sorted by name."""
    return [load_device(name) for name in device_names()]


def load_device(name_or_path: str | Path) -> DeviceProfile:
    """The profile of this name, or in this ``.toml`` file.

    Raises TargetError: unknown name (with the known ones), unreadable file, unknown key (with the allowed ones), wrong value.
    """
    path = data_file("profiles", "device", name_or_path)
    try:
        return parse_device(path.stem, path.read_text(encoding="utf-8"), f"device profile {path}")
    except OSError as error:
        raise TargetError(f"device profile {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise TargetError(f"device profile {path} is not UTF-8 (byte {error.start})") from None


def parse_device(name: str, text: str, where: str) -> DeviceProfile:
    """The profile that stands in ``text``; ``where`` is for messages. Raises TargetError."""
    try:
        file = parse(_File, tomllib.loads(text), unknown="refuse")
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"{where} is no valid TOML: {error}") from None
    except RecordError as error:
        raise TargetError(f"{where}: {error}") from None
    _check(file, where)
    return DeviceProfile(
        name, file.description, file.chip, file.kind, file.memory, file.app_memory, file.bandwidth, file.units, file.measured
    )


def add_measurement(path: Path, measurement: Measurement) -> DeviceProfile:
    """Writes one more ``[[measured]]`` table at the end of a profile's file, whose other lines stay as they are; returns the profile.

    Raises TargetError where the file is no profile; then it is left as it was.
    """
    profile = load_device(path)
    text = path.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + measured_toml(measurement)
    changed = parse_device(profile.name, text, f"device profile {path}")
    replace_file(path, text.encode())
    return changed


def measured_toml(measurement: Measurement) -> str:
    """A ``[[measured]]`` table, ending in a newline."""
    words = ("date", "command", "system", "model", "target", "scheme", "artifact")
    lines = ["[[measured]]", *(f"{key} = {_toml(getattr(measurement, key))}" for key in words)]
    for key, table in (("versions", measurement.versions), ("figures", measurement.figures)):
        lines.append(f"{key} = {{ {', '.join(f'{_toml(name)} = {_toml(value)}' for name, value in table.items())} }}")
    return "\n".join(lines) + "\n"


def _toml(value: str | float) -> str:
    # JSON's escapes are a part of TOML's, but for what lies outside of 16 bits and DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check(file: _File, where: str) -> None:
    known = {path.stem for path in data_folder("targets").glob("*.toml")}
    figures = {"memory": file.memory, "app_memory": file.app_memory, "bandwidth": file.bandwidth}
    if not file.units:
        raise TargetError(f"{where}: units: at least one is needed")
    seen: set[str] = set()
    for i, unit in enumerate(file.units):
        figures |= {f"units[{i}].{key}": f for key in ("compute", "context", "memory") if (f := getattr(unit, key)) is not None}
        for target in unit.targets:
            if target not in known:
                raise TargetError(f"{where}: units[{i}].targets: unknown target {target!r}; known: {', '.join(sorted(known))}")
            if target in seen:
                raise TargetError(f"{where}: units[{i}].targets: {target!r} is another unit's already")
            seen.add(target)
    for key, figure in figures.items():
        if not 0 < figure.value < float("inf"):
            raise TargetError(f"{where}: {key}.value: wanted a number above 0, found {figure.value}")
        if not (figure.source.startswith(("https://", "http://")) or (figure.basis in ("measured", "rule") and figure.source)):
            raise TargetError(f"{where}: {key}.source: wanted an address (https://...), found {figure.source!r}")
        if figure.basis in ("computed", "rule") and not figure.note:
            raise TargetError(f"{where}: {key}.note: a figure that is {figure.basis} says here how")
    if file.app_memory.value > file.memory.value:
        raise TargetError(f"{where}: app_memory is {file.app_memory.value:g} MB, more than the memory of {file.memory.value:g} MB")
    for i, measurement in enumerate(file.measured):
        if not re.fullmatch(r"[0-9a-f]{64}", measurement.artifact):
            raise TargetError(f"{where}: measured[{i}].artifact: wanted the sha256 of a manifest, found {measurement.artifact!r}")
