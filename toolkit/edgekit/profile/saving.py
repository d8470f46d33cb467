"""A measurement's way into a device profile, ``profiles/NAME.toml``."""

import re
from pathlib import Path

from edgekit.device import Measurement, add_measurement, device_names
from edgekit.errors import EngineError, OutputError, TargetError
from edgekit.profile.figures import figures
from edgekit.profile.report import Report
from edgekit.resources import data_folder

UNITS = {"tok/s": "tokens_s", "s": "s", "B": "bytes", "J": "j"}


def place(name: str) -> Path:
    """The file of the device profile ``name``, or the ``.toml`` file itself. Raises TargetError where there is none."""
    path = Path(name) if name.endswith(".toml") else data_folder("profiles") / f"{name}.toml"
    if not path.is_file():
        raise TargetError(
            f"--save {name}: there is no device profile {path}; known: {', '.join(device_names())}. Write one first (docs/plan.md), "
            "with what the maker says of the device"
        )
    return path


def save(path: Path, report: Report) -> None:
    """Adds what was measured to the device profile. Raises EngineError (not everything was measured), TargetError, OutputError."""
    if not report.complete:
        raise EngineError(f"{path} is left as it was: not everything was measured")
    try:
        add_measurement(path, measurement(report))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; give the path of a copy: --save FILE.toml") from None


def measurement(report: Report) -> Measurement:
    """The medians, each under a name that ends in its unit."""
    of, here = report.subject, report.machine
    named = {_name(f.name, f.at, UNITS[f.unit]): float(f"{f.value:.4g}") for f in figures(report)}
    if report.bandwidth is not None:
        named["bandwidth_bytes_s"] = float(f"{report.bandwidth.rate:.4g}")
    return Measurement(
        date=report.began[:10],
        command=report.command,
        system=f"{here.processor}, {here.system}, Python {here.python}",
        model=of.model,
        target=of.target,
        scheme=of.scheme,
        artifact=of.manifest_sha256,
        versions={"edgekit": re.sub(r"^edgekit ", "", report.producer), **here.packages},
        figures=named,
    )


def _name(figure: str, at: str, unit: str) -> str:
    return "_".join(word for word in (figure, at, unit) if word)
