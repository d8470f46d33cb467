"""Wheels for another machine: edgekit's own, made of the package that runs here, and those it needs in turn, chosen by pip for a kind of
machine that may be another one than this, and locked by their digests."""

import base64
import csv
import email
import hashlib
import io
import platform
import re
import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edgekit
from edgekit.artifact import Manifest
from edgekit.engines import ENGINES
from edgekit.errors import DownloadError, EngineMissing, UsageError
from edgekit.files import file_digest
from edgekit.resources import data_folder

DATE = (1980, 1, 1, 0, 0, 0)
"""Of files in the wheel: the same package gives the same bytes."""
LEFT_OUT = {".pyc", ".safetensors", ".c", ".h"}
"""A device runs artifacts and makes none: no weights of tiny-phi, and nothing to compile."""
COMPILED, BUILDERS = ".so", {"_kernel.so", "_turns.so"}
"""Kernels, for machines of this kind alone; those that make artifacts for none."""
DEEP = 5
"""Times that pip is asked at most."""
GLIBC = (31, 17)
"""2.31 is Debian 11's, Raspberry Pi OS's of the same age and Ubuntu 20.04's; no wheel asks for less than 2.17 today."""
PAPERS = re.compile(r"(licen[cs]e|copying|notice|authors|copyright|third[-_ ]?party[-_ ]?(notice|licen[cs]e))[^/]*", re.IGNORECASE)
APACHE = re.compile(r"Apache[- ]?(Software License|Licen[cs]e)?,?( Version)?[- ]?(2\.0)?", re.IGNORECASE)
"""How authors name the Apache licence 2.0."""


@dataclass(frozen=True)
class Place:
    """A kind of machine with a Python. tags: of pip's platforms, the best first. markers: the environment that requirements are read in."""

    name: str
    python: str
    tags: tuple[str, ...]
    markers: Mapping[str, str]


@dataclass(frozen=True)
class Wheel:
    """license: as its author wrote it, an SPDX expression or a name; None where nothing is said."""

    path: Path
    name: str
    version: str
    sha256: str
    license: str | None


def place(name: str, python: str) -> Place:
    """``linux_aarch64``, ``linux_x86_64``, ``manylinux_2_35_aarch64`` (a newer glibc) or ``macosx_arm64``
    with a Python such as ``3.11``. Raises UsageError."""
    if not re.fullmatch(r"3\.\d{1,2}", python):
        raise UsageError(f"--python {python!r} is no version; give one such as 3.11")
    found = re.fullmatch(r"(?:linux|manylinux_2_(\d+))_(x86_64|aarch64)", name)
    if found:
        newest, machine = int(found[1] or GLIBC[0]), found[2]
        tags = tuple(f"manylinux_2_{minor}_{machine}" for minor in range(newest, GLIBC[1] - 1, -1))
        return _place(name, python, (*tags, f"manylinux2014_{machine}", f"linux_{machine}"), ("linux", "Linux", machine))
    if name == "macosx_arm64":
        return _place(name, python, ("macosx_14_0_arm64",), ("darwin", "Darwin", "arm64"))
    raise UsageError(
        f"--platform {name!r} is not known; there are: linux_aarch64, linux_x86_64, manylinux_2_35_aarch64 (any glibc), macosx_arm64"
    )


def _place(name: str, python: str, tags: tuple[str, ...], system: tuple[str, str, str]) -> Place:
    markers = {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": system[2],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": system[1],
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": system[0],
    }
    return Place(name, python, tags, markers)


def requirements(manifest: Manifest, markers: Mapping[str, str], extras: Sequence[str] = ()) -> list[Requirement]:
    """Of the runtime on a machine with these markers: of the base, of ``extras``, and of the extra that brings the engine of this artifact.

    Raises EngineMissing: an engine that is not known here, or edgekit itself is not installed.
    """
    declared = [Requirement(text) for text in _declared()]
    chosen = [*extras, *_engine_extra(manifest, declared)]
    environments = [{**markers, "extra": extra} for extra in ("", *chosen)]
    wanted = [need for need in declared if need.marker is None or any(need.marker.evaluate(one) for one in environments)]
    return list({str(bare(need)): bare(need) for need in wanted}.values())


def _engine_extra(manifest: Manifest, declared: Sequence[Requirement]) -> list[str]:
    """The last package that the manifest asks for tells a GPU's engine from the plain one."""
    if manifest.engine.name not in ENGINES:
        raise EngineMissing(f"the engine {manifest.engine.name!r} is not known to this edgekit; upgrade it: pip install --upgrade edgekit")
    usual = ENGINES[manifest.engine.name].extra
    if not manifest.engine.requires:
        return []
    last = canonicalize_name(list(manifest.engine.requires)[-1])
    bring = [need for need in declared if canonicalize_name(need.name) == last]
    extras = sorted({extra for need in bring for extra in re.findall(r"extra == [\"']([\w-]+)[\"']", str(need.marker or ""))} - {"test"})
    return [usual if usual in extras or not extras else extras[0]]


def _declared() -> list[str]:
    return [text for text in _distribution().requires or [] if not re.match(r"edgekit\b", text)]


def _distribution() -> metadata.Distribution:
    try:
        return metadata.distribution("edgekit")
    except metadata.PackageNotFoundError:
        raise EngineMissing("edgekit is not installed here, only its files are found: pip install -e .") from None


def own_license() -> str:
    """The text of edgekit's own licence."""
    text = _distribution().read_text("licenses/LICENSE")
    if text is None:
        raise EngineMissing("edgekit's LICENSE is missing from its installation; install edgekit again")
    return text


def bare(need: Requirement) -> Requirement:
    """Without its marker, which was read."""
    copy = Requirement(str(need))
    copy.marker = None
    return copy


def own_wheel(folder: Path, platforms: Collection[str]) -> Path:
    """edgekit as it runs here, checkout or installed, for any platform; where ``platforms`` (a machine's, as in wheels' tags) say that it
    is a Linux like this one, with what was compiled here."""
    version = edgekit.__version__
    info = f"edgekit-{version}.dist-info"
    members = dict(_members())
    here = f"linux_{platform.machine()}"
    kernels = dict(_kernels()) if sys.platform == "linux" and here in platforms else {}
    members |= kernels
    tag = f"py3-none-{here}" if kernels else "py3-none-any"
    needs = "".join(f"Requires-Dist: {need}\n" for need in _declared() if "extra ==" not in need)
    head = f"Metadata-Version: 2.4\nName: edgekit\nVersion: {version}\nRequires-Python: >=3.10\nLicense-Expression: Apache-2.0\n"
    members[f"{info}/METADATA"] = f"{head}License-File: LICENSE\n{needs}".encode()
    members[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: edgekit\nRoot-Is-Purelib: {str(not kernels).lower()}\nTag: {tag}\n".encode()
    members[f"{info}/entry_points.txt"] = b"[console_scripts]\nedge = edgekit.cli:main\n"
    members[f"{info}/licenses/LICENSE"] = own_license().encode()
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(content)])
    rows.writerow([f"{info}/RECORD", "", ""])
    members[f"{info}/RECORD"] = record.getvalue().encode()
    path = folder / f"edgekit-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name, DATE)
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return path


def _members() -> Iterator[tuple[str, bytes]]:
    package = Path(edgekit.__file__).parent
    folders = [(package, "edgekit"), *((data_folder(name), f"edgekit/data/{name}") for name in ("targets", "profiles"))]
    for folder, target in folders:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and path.suffix not in {*LEFT_OUT, COMPILED} and not (folder == package and name.startswith("data/")):
                yield f"{target}/{name}", path.read_bytes()


def _kernels() -> Iterator[tuple[str, bytes]]:
    package = Path(edgekit.__file__).parent
    for path in sorted(package.rglob(f"*{COMPILED}")):
        if path.name not in BUILDERS:
            yield f"edgekit/{path.relative_to(package).as_posix()}", path.read_bytes()


def collect(needed: Sequence[Requirement], where: Place, folder: Path, source: Path | None) -> tuple[Wheel, ...]:
    """Fills ``folder`` with edgekit's wheel, pip's, and all that ``needed`` asks for there; nothing else.

    Versions are those installed here wherever they exist for that machine, so that the same set-up gives the same package.
    source: a folder of wheels to take from, without a network; None asks the package index.
    Raises EngineMissing (nobody publishes a wheel for that machine), DownloadError.
    """
    folder.mkdir()
    wanted = [str(need) for need in needed]
    for _ in range(DEEP):
        _download([*wanted, "pip"], where, folder, source)
        # pip reads markers as for the Python that it runs in: what only the other machine needs is asked for by name.
        missing = [str(bare(need)) for need, path in reached(needed, folder.glob("*.whl"), where.markers) if path is None]
        if not missing:
            break
        wanted += missing
    kept = {path for _, path in reached([*needed, Requirement("pip")], folder.glob("*.whl"), where.markers) if path is not None}
    for path in folder.glob("*.whl"):
        if path not in kept:
            path.unlink()
    own_wheel(folder, where.tags)
    return tuple(_wheel(path) for path in sorted(folder.glob("*.whl")))


def _download(wanted: Sequence[str], where: Place, folder: Path, source: Path | None) -> None:
    fits = [f"--platform={tag}" for tag in where.tags]
    abis = [f"--abi={abi}" for abi in (f"cp{where.python.replace('.', '')}", "abi3", "none")]
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={where.python}", *fits, *abis, f"--dest={folder}"]
    if source is not None:
        options += ["--no-index", f"--find-links={source}"]
    here = {held.metadata["Name"]: held.version for held in metadata.distributions() if held.metadata["Name"]}
    pins = "".join(f"{name}=={version}\n" for name, version in sorted(here.items()) if canonicalize_name(name) not in ("edgekit", "pip"))
    constraints = folder / "constraints.txt"
    said: Complaint | None = None
    try:
        for text in (pins, ""):  # versions that exist for this machine alone are given up together
            constraints.write_text(text, encoding="utf-8")
            for old in folder.glob("*.whl"):
                old.unlink()
            said = pip_download([*options, f"--constraint={constraints}", *wanted])
            if said is None:
                return
    finally:
        constraints.unlink()
    assert said is not None
    what = f"Python {where.python} on {where.name}"
    if said.unpublished:
        raise EngineMissing(
            f"no wheels for {what}: {said.reason}; choose another with --platform and --python, or give them with --wheels DIR"
        )
    raise DownloadError(f"pip could not get the wheels for {what}: {said.reason}; try again, or give them with --wheels DIR")


@dataclass(frozen=True)
class Complaint:
    """Of pip, on one line. unpublished: no wheel fits; else something was in its way."""

    reason: str
    unpublished: bool


def pip_download(arguments: Sequence[str]) -> Complaint | None:
    """``pip download``; None if it did its work."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if not done.returncode:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in lines if "ERROR" in line or "No module named pip" in line), lines[-1] if lines else "no word of why")
    none = ("No matching distribution", "ResolutionImpossible", "Could not find a version")
    return Complaint(reason.removeprefix("ERROR: ")[:500], any(mark in done.stderr for mark in none))


def _metadata(path: Path) -> Message:
    with zipfile.ZipFile(path) as archive:
        info = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1)
        return email.message_from_bytes(archive.read(info))


def _wheel(path: Path) -> Wheel:
    read = _metadata(path)
    classified = [text.rpartition(" :: ")[2] for text in read.get_all("Classifier", []) if text.startswith("License ::")]
    said = read["License-Expression"] or read["License"]
    short = str(said) if said and len(str(said)) < 80 and "\n" not in str(said) else None
    digest, name = file_digest(path).hex(), canonicalize_name(str(read["Name"]))
    return Wheel(path, name, str(read["Version"]), digest, short or ", ".join(classified) or None)


def papers(wheel: Wheel) -> Iterator[tuple[str, bytes]]:
    """The licences and notices that a wheel carries, beside its metadata or at the top of its package, by file name, numbered where two are
    called the same; of one under the Apache licence that carries none, that licence's text, which is edgekit's own."""
    seen: dict[str, int] = {}
    with zipfile.ZipFile(wheel.path) as archive:
        for name in sorted(archive.namelist()):
            last = name.rpartition("/")[2]
            if (".dist-info/" in name or name.count("/") == 1) and PAPERS.fullmatch(last) and not last.endswith((".py", ".so")):
                seen[last] = seen.get(last, 0) + 1
                yield (last if seen[last] == 1 else f"{last}.{seen[last]}"), archive.read(name)
    if not seen and wheel.license is not None and APACHE.fullmatch(wheel.license):
        yield "LICENSE", own_license().encode()


def locked(wheels: Sequence[Wheel]) -> str:
    """The lines of a requirements file for ``pip install --require-hashes``; pip itself only installs."""
    return "".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in wheels if one.name != "pip")


def reached(needed: Sequence[Requirement], wheels: Iterable[Path], markers: Mapping[str, str]) -> Iterator[tuple[Requirement, Path | None]]:
    """Every requirement that holds on a machine with these markers, with the wheel that meets it, None where there is none."""
    held: dict[str, tuple[Path, list[Requirement]]] = {}
    for path in wheels:
        read = _metadata(path)
        held[canonicalize_name(str(read["Name"]))] = (path, [Requirement(text) for text in read.get_all("Requires-Dist", [])])
    waiting = [(need, extra) for need in needed for extra in ("", *need.extras)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        need, extra = waiting.pop()
        name = canonicalize_name(need.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name not in held:
            yield need, None
            continue
        path, needs = held[name]
        yield need, path
        environment = {**markers, "extra": extra}
        asked = [deep for deep in needs if deep.marker is None or deep.marker.evaluate(environment)]
        waiting += [(deep, more) for deep in asked for more in ("", *deep.extras)]
