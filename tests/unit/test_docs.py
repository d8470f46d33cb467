"""The documentation says what the code does: generated parts are current, and the specification lists the manifest's keys."""

import dataclasses
import importlib.util
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit.artifact import Manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generate: ModuleType) -> None:
    stale = [path.relative_to(ROOT).as_posix() for path, _ in generate.stale()]
    assert stale == [], "run: make docs"


def test_command_page_names_every_option(generate: ModuleType) -> None:
    page = generate.cli_page()
    for option in ("--target", "--force", "--max-tokens", "--temperature", "--json", "--check", "--stats"):
        assert f"`{option}`" in page


def test_a_block_nobody_generates_is_an_error(generate: ModuleType) -> None:
    with pytest.raises(SystemExit, match="nothing generates 'colours'"):
        generate.fill("<!-- generated: colours -->\n<!-- end -->", "README.md")


def test_specification_lists_every_key_of_the_manifest() -> None:
    page = (ROOT / "docs" / "artifact.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?m)^\| `([^`]+)`", page))
    named |= {f"scheme.{kind}" for kind in ("linear", "embedding", "lm_head")}  # share a row
    for key in keys(Manifest, ""):
        assert key in named, f"docs/artifact.md has no row for {key}"


def keys(record: Any, path: str) -> Iterator[str]:
    """Keys as the specification names them: objects by their members, lists of objects with []."""
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        hint, name = hints[field.name], path + field.name
        item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
        if dataclasses.is_dataclass(item):
            yield f"{name}[]"
        elif dataclasses.is_dataclass(hint) and "TensorFormat" not in str(hint):
            yield from keys(hint, f"{name}.")
        else:
            assert typing.get_origin(hint) in (None, tuple, Mapping) or "None" in str(hint) or "Literal" in str(hint)
            yield name
