"""Wheels without a network: what is installed here, packed again."""

import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEFT_OUT = ("INSTALLER", "REQUESTED", "direct_url.json")
MARK = "manylinux_2_28_aarch64"


def closure(names: list[str]) -> list[metadata.Distribution]:
    """What is installed here of ``names`` and of all that they need."""
    waiting, seen, found = [Requirement(name) for name in names], set(), []
    while waiting:
        need = waiting.pop()
        key = (canonicalize_name(need.name), tuple(sorted(need.extras)))
        if key in seen:
            continue
        seen.add(key)
        held = metadata.distribution(need.name)
        if held not in found:
            found.append(held)
        for text in held.requires or []:
            deep = Requirement(text)
            if deep.marker is None or any(deep.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)):
                waiting.append(deep)
    return found


def pack(names: list[str], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for held in closure(names):
        tags = [line.partition(": ")[2].split("-") for line in (held.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: ")]
        tag = "-".join(".".join(sorted(set(parts))) for parts in zip(*tags, strict=True))
        name = canonicalize_name(held.metadata["Name"]).replace("-", "_")
        with zipfile.ZipFile(folder / f"{name}-{held.version}-{tag}.whl", "w", zipfile.ZIP_STORED) as archive:
            for path in held.files or []:
                if path.parts[0] != ".." and "__pycache__" not in path.parts and path.name not in LEFT_OUT:
                    archive.write(str(path.locate()), path.as_posix())
    return folder


def for_arm(folder: Path) -> None:
    """Beside each wheel of this machine one for 64-bit ARM: of the same name and version, and with nothing in it."""
    for path in list(folder.glob("*.whl")):
        if path.name.endswith("-any.whl"):
            continue
        name, version, python, abi, _ = path.stem.split("-")
        with zipfile.ZipFile(path) as held, zipfile.ZipFile(folder / f"{name}-{version}-{python}-{abi}-{MARK}.whl", "w") as archive:
            info = next(one for one in held.namelist() if one.endswith(".dist-info/METADATA"))
            archive.writestr(info, held.read(info))
            wheel = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {python}-{abi}-{MARK}\n"
            archive.writestr(info.replace("METADATA", "WHEEL"), wheel)
            archive.writestr(info.replace("METADATA", "RECORD"), "")
