"""What is installed, which engines work here, and what to do about what is missing.

Every engine is tried, not asked: the embedded model is built for it and answers a question, in a process of its own, so that one that
crashes is a line of the report and not its end.
"""

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edgekit import __version__, child
from edgekit.cache import groups, open_cache
from edgekit.drivers import Device, devices
from edgekit.engines import ENGINES
from edgekit.errors import EdgekitError, EngineMissing, TargetError
from edgekit.parallel import cores
from edgekit.resources import release
from edgekit.target import Target, targets

QUESTION, ANSWER = "turn on the kitchen light", '{"device": "light", "room": "kitchen", "action": "on"}'
"""What the embedded model was trained to say: an engine that computes something else does not work."""
CONTEXT = 256
"""Below the embedded model's LongRoPE switch, which not every engine can cross."""
PATIENCE = 300.0
"""Seconds for one engine; a device's driver may hang."""
NOT_SHOWN = ("test",)
"""Extras that no user needs."""
SETTINGS = (
    *("EDGEKIT_CACHE", "EDGEKIT_CACHE_LIMIT", "EDGEKIT_CPU", "EDGEKIT_ONNX_PRODUCTS", "EDGEKIT_OPENVINO_PRODUCTS"),
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTPS_PROXY", "HTTP_PROXY"),
)
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class Package:
    """A requirement of edgekit or of one of its extras (None: the base). installed: the version here. fits: it is what is asked for."""

    extra: str | None
    name: str
    wanted: str
    installed: str | None
    fits: bool


@dataclass(frozen=True)
class Probe:
    """Targets of one engine with the same options. missing: something has to be installed, or there is no such device. fails: it is
    there, and crashes, refuses or answers wrong. does not apply: the embedded model cannot be built for it.
    """

    engine: str
    targets: tuple[str, ...]
    outcome: Literal["works", "missing", "does not apply", "fails"]
    detail: str


@dataclass(frozen=True)
class Place:
    """Bytes. limit: None where there is none."""

    name: str
    directory: str
    holds: int
    limit: int | None
    free: int


@dataclass(frozen=True)
class Diagnosis:
    """kernel: whether the quantizer's C code was compiled. devices: None where edgekit does not know where to look. settings: environment
    variables that count here, those that hold secrets as "set"."""

    edgekit: str
    python: str
    platform: str
    cores: int
    memory: int | None
    kernel: bool
    packages: tuple[Package, ...]
    probes: tuple[Probe, ...]
    devices: tuple[Device, ...] | None
    places: tuple[Place, ...]
    settings: Mapping[str, str]
    advice: tuple[str, ...]

    @property
    def well(self) -> bool:
        """Whatever is here works."""
        return not any(probe.outcome == "fails" for probe in self.probes)


def diagnose() -> Diagnosis:
    """Takes a second or two for each engine. Raises UsageError for an EDGEKIT_CACHE_LIMIT that is no size."""
    from edgekit.quant.native import KERNEL

    packages, probes, seen = tuple(_packages()), tuple(_probes()), devices()
    return Diagnosis(
        __version__,
        f"{platform.python_version()} ({sys.executable})",
        platform.platform(),
        cores(),
        _memory(),
        KERNEL is not None,
        packages,
        probes,
        None if seen is None else tuple(seen),
        tuple(_places()),
        _settings(os.environ),
        tuple(_advice(KERNEL is not None, packages, probes, seen or [])),
    )


def _packages() -> Iterator[Package]:
    try:
        listed = importlib.metadata.requires("edgekit") or []
    except importlib.metadata.PackageNotFoundError:
        return  # run from its sources
    for requirement in listed:
        what, _, marker = requirement.partition(";")
        named = re.match(r"[\w.-]+", what.strip())
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if named is None or not _applies(marker) or (extra is not None and extra[1] in NOT_SHOWN):
            continue
        wanted = what.strip()[named.end() :].strip()
        try:
            installed = importlib.metadata.version(named[0])
        except importlib.metadata.PackageNotFoundError:
            installed = None
        yield Package(extra[1] if extra else None, named[0], wanted, installed, installed is not None and _fits(installed, wanted))


def _applies(marker: str) -> bool:
    """Of the markers that edgekit's own requirements have."""
    system = re.search(r"sys_platform == ['\"](\w+)['\"]", marker)
    python = re.search(r"python_version (<|>=) ['\"]([\d.]+)['\"]", marker)
    here = python is None or (sys.version_info[:2] < release(python[2])) == (python[1] == "<")
    return (system is None or system[1] == sys.platform) and here


def _fits(installed: str, wanted: str) -> bool:
    """Of the clauses that edgekit's own requirements have."""
    for operator, version in re.findall(r"(>=|<|==)\s*([\w.]+)", wanted):
        found, limit = release(installed), release(version)
        if not {">=": found >= limit, "<": found < limit, "==": found[: len(limit)] == limit}[operator]:
            return False
    return True


def _probes() -> Iterator[Probe]:
    """One for all targets that differ in nothing the engine is told."""
    alike: dict[str, list[Target]] = {}
    for target in targets():
        told = [option for option in sorted(target.options.items()) if option[0] not in ENGINES[target.engine].chip]
        alike.setdefault(f"{target.engine} {told}", []).append(target)
    for group in alike.values():
        yield _probe(group[0].engine, tuple(target.name for target in group))


def _probe(engine: str, names: tuple[str, ...]) -> Probe:
    with tempfile.TemporaryDirectory(prefix="edgekit-doctor-", ignore_cleanup_errors=True) as folder:
        try:
            said = child.ask(__name__, {"target": names[0], "directory": folder}, patience=PATIENCE)
        except EngineMissing as error:
            elsewhere = _elsewhere(str(error))
            return Probe(engine, names, "does not apply" if elsewhere else "missing", elsewhere or str(error))
        except TargetError as error:
            return Probe(engine, names, "does not apply", str(error))
        except EdgekitError as error:
            return Probe(engine, names, "fails", str(error))
    if said["answer"] != ANSWER:
        return Probe(engine, names, "fails", f"asked {QUESTION!r}, the embedded model answers {said['answer']!r} instead of {ANSWER!r}")
    return Probe(engine, names, "works", f"built and ran the embedded model, {said['rate']:.0f} tokens/s")


def _elsewhere(advice: str) -> str | None:
    """Whether it advises an extra of which there is nothing on this system."""
    extra = re.search(r"edgekit\[(?:build,)?([\w-]+)\]", advice)
    if extra is None or extra[1] not in _extras() or any(package.extra == extra[1] for package in _packages()):
        return None
    return f"edgekit[{extra[1]}] is for other systems than {sys.platform}"


def _extras() -> list[str]:
    try:
        return importlib.metadata.metadata("edgekit").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def main() -> None:
    """The process that tries one engine."""
    child.serve(_try)


def _try(request: child.Json) -> child.Json:
    from edgekit.artifact import read_artifact
    from edgekit.build import build
    from edgekit.catalog import EMBEDDED
    from edgekit.runtime import open_runtime

    directory = Path(str(request["directory"])) / "artifact"
    build(EMBEDDED, target=str(request["target"]), output=directory, context=CONTEXT, cached=False, verify=False)
    with open_runtime(read_artifact(directory)) as runtime:  # built here just now: no pinned key has signed it
        answer = runtime.complete([{"role": "user", "content": QUESTION}])
    return {"answer": answer.text, "rate": answer.tokens_per_second}


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _places() -> Iterator[Place]:
    cache = open_cache()
    yield Place("quantized weights", str(cache.directory), sum(group.bytes for group in groups(cache)), cache.limit, _free(cache.directory))
    try:
        hub = Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)
    except ImportError:
        return
    held = sum(path.lstat().st_size for path in hub.rglob("*") if path.is_file() and not path.is_symlink())
    yield Place("downloads", str(hub), held, None, _free(hub))


def _free(directory: Path) -> int:
    return shutil.disk_usage(next(p for p in (directory, *directory.parents) if p.is_dir())).free


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """A URL may hold a password, and that stays here too."""
    found = {name: re.sub(r"//[^/@]*@", "//***@", environment[name]) for name in SETTINGS if environment.get(name)}
    return found | {name: "set" for name in SECRETS if environment.get(name)}


def _advice(kernel: bool, packages: Sequence[Package], probes: Sequence[Probe], seen: Sequence[Device]) -> Iterator[str]:
    broken = {package.extra: package for package in packages if package.extra in (None, "build") and not package.fits}
    for extra, package in broken.items():
        which = "edgekit" if extra is None else f"edgekit[{extra}]"
        have = f"{package.installed} is installed" if package.installed else "it is missing"
        yield f'{which} needs {package.name}{package.wanted}, and {have}: pip install --upgrade "{which}"'
    if not kernel:
        yield (
            "edgekit's C code was not compiled: NumPy quantizes, the same bytes, several times as slow. Install a C compiler "
            "(cc), then: pip install --force-reinstall --no-deps --no-cache-dir edgekit"
        )
    if not any(probe.outcome == "works" for probe in probes):
        yield 'no engine works here; the plainest one: pip install "edgekit[build,onnx]"'
    yield from _clashes([package.name for package in packages])
    for probe in probes:
        if probe.outcome in ("missing", "fails"):
            yield f"{', '.join(probe.targets)}: {probe.detail}"
    for device in seen:
        if device.usable is False:
            yield f"{device.name}: it cannot be opened; add this user to its group (render, video), or see to its driver ({device.driver})"


def _clashes(ours: Sequence[str]) -> Iterator[str]:
    """Packages that overwrite each other's files, as pip lets them."""
    for module, owners in sorted(importlib.metadata.packages_distributions().items()):
        names = sorted(set(owners))
        if len(names) > 1 and set(names) & set(ours):
            yield f"{' and '.join(names)} both fill the folder {module}: pip uninstall {' '.join(names)}, then install the one you want"


def as_json(found: Diagnosis) -> dict[str, object]:
    """The document of ``edge doctor --json``."""
    return {"well": found.well, **asdict(found)}
