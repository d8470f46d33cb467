"""Whole artifacts of small checkpoints, through ``edgekit.build``, for any engine."""

from pathlib import Path

import edgekit
from checkpoints import make_checkpoint

NEEDED = {"qnn": 'soc = "SM8750"\nchunk = 32\nsharing = false'}
"""Options of an engine that has no target without them: of Qualcomm's, such that it runs in emulation."""


def write_target(path: Path, engine: str, *, context: int = 96, options: str = "") -> Path:
    """A target file. ``options``: lines of its ``[options]`` table."""
    options = options or NEEDED.get(engine, "")
    head = f'description = "test"\nengine = "{engine}"\nscheme = "int4-g32"\ncontext = {context}\nverified = "executed"\n'
    path.write_text(head + (f"[options]\n{options}\n" if options else ""), encoding="utf-8")
    return path


def build_tiny(folder: Path, engine: str, variant: str = "phi3-longrope", *, grid: int | None = None, options: str = "") -> Path:
    """A checkpoint in ``folder / "model"`` and its artifact, which is returned. The default's LongRoPE switch is at 24 of 96 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(folder / "model", variant, grid=grid)
    output = folder / "the artéfact"
    edgekit.build(checkpoint, target=write_target(folder / "test.toml", engine, options=options), output=output)
    return output
