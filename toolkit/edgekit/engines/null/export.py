"""Writes what stands for the model: a seed made from its config and the names and shapes of its weights, which are not read."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from edgekit.engines.exported import Exported, Footprint
from edgekit.engines.null.session import FILE
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import PLAIN, Quantizer
from edgekit.target import Target, parse_options


@dataclass(frozen=True)
class NullOptions:
    """There is nothing to set."""


def check(model: Model, scheme: QuantScheme, target: Target) -> None:
    """Raises TargetError when the target sets an option."""
    parse_options(target.options, NullOptions, f"target {target.name}")


def footprint(model: Model, scheme: QuantScheme, target: Target) -> Footprint:
    """Next to nothing, and no cache."""
    return Footprint(weights=1024, cache=0)


def export(
    model: Model, scheme: QuantScheme, target: Target, directory: Path, progress: Progress, quantizer: Quantizer = PLAIN
) -> Exported:
    """Writes ``null.json``."""
    identity = json.dumps([repr(model.decoder), scheme.name, target.context])
    text = json.dumps({"seed": hashlib.sha256(identity.encode()).hexdigest()}) + "\n"
    progress("export", 0, len(text))
    (directory / FILE).write_text(text, encoding="utf-8", newline="\n")
    progress("export", len(text), len(text))
    return Exported(engine_requires={}, bits_per_weight=scheme.linear.bits_per_weight)
