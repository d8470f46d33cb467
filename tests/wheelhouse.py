"""Wheels of what is installed here, so that pip finds every package without a network: the files of its RECORD, zipped again."""

import re
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


RUNTIME = ("jinja2", "numpy", "packaging", "tokenizers", "typer", *(("tomli",) if sys.version_info < (3, 11) else ()))
HOLLOW = {"huggingface-hub", "rich"}
"""Required by packages of the runtime, and not needed to run it: their wheels are left empty."""


def fill(folder: Path, *roots: str) -> Path:
    """``roots`` and all that they need here, and pip."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, seen = ["pip", *roots], set[str]()
    while waiting:
        name = normal(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        pack(distribution, folder)
        if name in HOLLOW:
            continue
        needs = [Requirement(text) for text in distribution.requires or []]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return folder


def python(folder: Path) -> Path:
    """A folder for PATH with the Python that these wheels are for, as ``python3``; that of the machine may be another."""
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (folder / "python3").symlink_to(own)
    return folder


def pack(distribution: metadata.Distribution, folder: Path) -> None:
    """Without scripts and compiled modules, which lie outside or are made anew."""
    name = normal(distribution.metadata["Name"])
    files = [file for file in distribution.files or [] if ".." not in file.parts and file.suffix != ".pyc"]
    if name in HOLLOW:
        files = [file for file in files if file.parts[0].endswith(".dist-info") and file.name == "WHEEL"]
    tags = [line.partition(":")[2].strip() for line in (distribution.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:")]
    python, abi, platforms = (".".join(dict.fromkeys(tag.split("-")[i] for tag in tags)) for i in range(3))
    plain = name.replace("-", "_")
    with zipfile.ZipFile(folder / f"{plain}-{distribution.version}-{python}-{abi}-{platforms}.whl", "w") as archive:
        if name in HOLLOW:
            info = files[0].parts[0]
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {distribution.version}\n")
            archive.writestr(f"{info}/RECORD", "")
        for file in files:
            archive.write(distribution.locate_file(file), str(file))


def for_arm(folder: Path) -> None:
    """Beside each wheel of this machine one for 64-bit ARM: of the same name and version, and with nothing in it."""
    for path in list(folder.glob("*.whl")):
        if path.name.endswith("-any.whl"):
            continue
        name, version, python, abi, _ = path.stem.split("-")
        platform = "manylinux_2_28_aarch64"
        with zipfile.ZipFile(path) as held, zipfile.ZipFile(folder / f"{name}-{version}-{python}-{abi}-{platform}.whl", "w") as archive:
            info = next(one for one in held.namelist() if one.endswith(".dist-info/METADATA"))
            archive.writestr(info, held.read(info))
            wheel = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {python}-{abi}-{platform}\n"
            archive.writestr(info.replace("METADATA", "WHEEL"), wheel)
            archive.writestr(info.replace("METADATA", "RECORD"), "")
