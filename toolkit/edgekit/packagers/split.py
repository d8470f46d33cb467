"""Weights in parts: what stores and web hosts take as files, and what a broken download is begun again from."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

LIST = "files.json"
"""Every file of the model, each as its parts in their order."""


@dataclass(frozen=True)
class Part:
    """path: from the list's folder."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """A file of the artifact. path: its name there."""

    path: str
    bytes: int
    sha256: str
    parts: tuple[Part, ...]


def split(folder: Path, limit: int) -> tuple[Split, ...]:
    """Cuts every file below ``folder`` that is larger than ``limit`` bytes into NAME.000, NAME.001, ... in its place, and lists all."""
    listed = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        size, whole, parts = path.stat().st_size, hashlib.sha256(), []
        with path.open("rb") as file:
            for number in range(max(1, -(-size // limit))):
                piece = file.read(limit)
                whole.update(piece)
                own = name if size <= limit else f"{name}.{number:03}"
                if own != name:
                    (folder / own).write_bytes(piece)
                parts.append(Part(own, len(piece), hashlib.sha256(piece).hexdigest()))
        if size > limit:
            path.unlink()
        listed.append(Split(name, size, whole.hexdigest(), tuple(parts)))
    return tuple(listed)


def listing(files: tuple[Split, ...]) -> str:
    """The text of ``files.json``."""
    return json.dumps({"files": [asdict(one) for one in files]}, indent=1) + "\n"
