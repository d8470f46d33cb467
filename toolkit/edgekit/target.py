"""Targets: what to build for a kind of device. Each is one file in ``targets/``; TOML selects and parameterizes, Python sequences."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from edgekit.engines import ENGINES
from edgekit.errors import TargetError
from edgekit.records import RecordError, parse
from edgekit.resources import data_file, data_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
OptionValue = str | int | float | bool


@dataclass(frozen=True)
class Target:
    """context: tokens the artifact is built for, capped by the model's own. memory_mb: what an app may use there, None if unknown.

    verified: how far this target was tried by the project itself. options: the engine's own table, see ``parse_options``.
    """

    name: str
    description: str
    engine: str
    scheme: str
    context: int
    memory_mb: int | None
    verified: Literal["executed", "compiled", "structure checked"]
    options: Mapping[str, OptionValue]


@dataclass(frozen=True)
class _File:
    """The keys of a target's TOML file. Its name is the file's."""

    description: str
    engine: str
    scheme: str
    context: int
    verified: Literal["executed", "compiled", "structure checked"]
    memory_mb: int | None = None
    options: Mapping[str, OptionValue] | None = None


def target_names() -> list[str]:
    """The names of all targets that come with edgekit, sorted."""
    return data_names("targets")


def targets() -> list[Target]:
    """All targets that come with edgekit, sorted by name."""
    return [load_target(name) for name in target_names()]


def load_target(name_or_path: str | Path) -> Target:
    """The target of this name, or in this ``.toml`` file.

    Raises TargetError: unknown name (with the known ones), unreadable file, unknown key (with the allowed ones), wrong value.
    """
    path = data_file("targets", "target", name_or_path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        file = parse(_File, data, unknown="refuse")
    except OSError as error:
        raise TargetError(f"target file {path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"target file {path} is no valid TOML: {error}") from None
    except RecordError as error:
        raise TargetError(f"target file {path}: {error}") from None
    return _checked(file, path)


def parse_options(options: Mapping[str, OptionValue], into: type[T], where: str) -> T:
    """``options`` as the engine's own frozen dataclass ``into``; absent ones keep their default.

    where: for messages, e.g. ``"target cpu"``. Raises TargetError naming the unknown key and the allowed ones, or the wrong value.
    """
    try:
        return parse(into, options, unknown="refuse", path="options")
    except RecordError as error:
        raise TargetError(f"{where}: {error}") from None


def _checked(file: _File, path: Path) -> Target:
    if file.engine not in ENGINES:
        raise TargetError(f"target file {path}: engine: unknown engine {file.engine!r}; known: {', '.join(ENGINES)}")
    if file.context < 1:
        raise TargetError(f"target file {path}: context: wanted at least 1 token, found {file.context}")
    if file.memory_mb is not None and file.memory_mb < 1:
        raise TargetError(f"target file {path}: memory_mb: wanted at least 1, found {file.memory_mb}")
    return Target(
        path.stem, file.description, file.engine, file.scheme, file.context, file.memory_mb, file.verified, dict(file.options or {})
    )
