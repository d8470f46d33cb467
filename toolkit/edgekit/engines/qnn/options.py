"""What a target's ``[options]`` may set for this engine."""

from dataclasses import dataclass
from typing import Literal

from edgekit.engines.qnn.socs import SOCS, Soc
from edgekit.errors import TargetError
from edgekit.target import Target, parse_options


@dataclass(frozen=True)
class QnnOptions:
    """soc: the chip to compile for (socs.py).
    runtime: what opens the artifact: "genai" is onnxruntime-genai, "genie" Genie of Qualcomm's AI Runtime (genie.py).
    activations: "uint16" for an NPU without float16: weights of 8 bits, ranges by a calibration (integers.py). For small models.
    chunk: tokens of a prompt that the NPU takes at a time.
    layers: most decoder layers in one compiled file.
    sharing: the graph for prompts and that for single tokens share one copy of the weights. Such files load on a device only; without,
    they are larger and run on any x86-64 Linux too, in the vendor's emulation: for checks.
    reproducible: compile in turns (turns.c), where this machine can; off for a compiler that does not bear it.
    memory_mb: most that the compiler may take on the machine that builds.
    """

    soc: str
    runtime: Literal["genai", "genie"] = "genai"
    activations: Literal["float16", "uint16"] = "float16"
    chunk: int = 64
    layers: int = 8
    sharing: bool = True
    reproducible: bool = True
    memory_mb: int = 16000

    @property
    def chip(self) -> Soc:
        return SOCS[self.soc]


def qnn_options(target: Target) -> QnnOptions:
    """Raises TargetError naming the unknown key or the wrong value."""
    options = parse_options(target.options, QnnOptions, f"target {target.name}")
    if options.soc not in SOCS:
        raise TargetError(f"target {target.name}: options.soc: unknown chip {options.soc!r}; known: {', '.join(SOCS)}")
    for name, value, least in (("layers", options.layers, 1), ("memory_mb", options.memory_mb, 1000)):
        if value < least:
            raise TargetError(f"target {target.name}: options.{name}: wanted at least {least}, found {value}")
    if options.chunk not in (16, 32, 64, 128):
        raise TargetError(f"target {target.name}: options.chunk: wanted 16, 32, 64 or 128, found {options.chunk}")
    return options
