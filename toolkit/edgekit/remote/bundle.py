"""What a device needs beside the artifact: edgekit's own wheel, made of the package that runs here, and the wheels it needs in turn, of
versions that are locked once for a kind of device. A device needs no network and no package but Python."""

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from edgekit.artifact import Manifest
from edgekit.errors import DeviceUnfit, EngineMissing
from edgekit.files import file_digest, replace_file
from edgekit.remote.transport import Blob
from edgekit.resources import cache_folder
from edgekit.wheels import bare, pip_download, reached, requirements
from edgekit.wheels import own_wheel as make_own_wheel

DEEP = 5
"""Times that pip is asked at most."""


@dataclass(frozen=True)
class Platform:
    """What a device's own packaging library says of it. markers: the environment that requirements are read in. installed: distribution ->
    version there already."""

    implementation: str
    tags: tuple[str, ...]
    platforms: tuple[str, ...]
    abis: tuple[str, ...]
    markers: Mapping[str, str]
    installed: Mapping[str, str]

    @property
    def bare(self) -> bool:
        """Nobody publishes compiled wheels for it, as for Termux: what is compiled has to be there."""
        return not any(name.startswith(("manylinux", "musllinux", "macosx", "win")) for name in self.platforms)

    @property
    def name(self) -> str:
        return (
            f"{self.implementation} {self.markers['python_version']} on {self.markers['sys_platform']} {self.markers['platform_machine']}"
        )


@dataclass(frozen=True)
class Bundle:
    """wheels: file name -> blob. there: packages that the device has itself, which are used as they are."""

    wheels: Mapping[str, Blob]
    there: Mapping[str, str]

    @property
    def name(self) -> str:
        """Of the folder that they are installed into."""
        held = json.dumps([sorted((name, blob.digest) for name, blob in self.wheels.items()), sorted(self.there.items())])
        return hashlib.sha256(held.encode()).hexdigest()[:16]


def blob(path: Path) -> Blob:
    return Blob(path, file_digest(path).hex(), path.stat().st_size)


def wheel_folder() -> Path:
    folder = cache_folder(os.environ) / "remote" / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def own_wheel(platforms: Collection[str] = ()) -> Path:
    """edgekit as it runs here, checkout or installed, as a wheel for a machine of these platforms, in the cache."""
    with tempfile.TemporaryDirectory(dir=wheel_folder()) as scratch:
        made = make_own_wheel(Path(scratch), platforms)
        return made.replace(wheel_folder() / made.name)


def bundle(manifest: Manifest, platform: Platform, heard: Callable[[str], None]) -> Bundle:
    """The wheels for an artifact on a platform: those of the lock where there is one, else newly chosen by pip, of the versions that are
    installed here wherever those fit there.

    Raises EngineMissing where there is no package for that platform, DeviceUnfit where pip fails otherwise.
    """
    needed = requirements(manifest, platform.markers)
    there = dict(platform.installed) if platform.bare else {}
    facts = [sorted(map(str, needed)), platform.tags, sorted(platform.markers.items()), sorted(there.items())]
    folder = wheel_folder() / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    lock = folder / "lock.json"
    if not lock.exists():
        folder.mkdir(exist_ok=True)
        _choose(needed, platform, there, folder, heard)
        names = _closure(needed, platform, folder)
        text = json.dumps({name: blob(folder / name).digest for name in names}, indent=2) + "\n"
        replace_file(lock, text.encode())
    wheels = {name: blob(folder / name) for name in json.loads(lock.read_text(encoding="utf-8"))}
    own, pip = own_wheel(platform.platforms), pip_wheel()
    return Bundle({**wheels, own.name: blob(own), pip.name: blob(pip)}, there)


def pip_wheel() -> Path:
    """pip, for the device: it tells what fits there, and installs."""
    folder = wheel_folder() / "pip"
    found = sorted(folder.glob("pip-*.whl"))
    if not found:
        folder.mkdir(exist_ok=True)
        _pip(["--no-deps", "--dest", str(folder), "pip"], "pip for the device")
        found = sorted(folder.glob("pip-*.whl"))
    return found[-1]


def _choose(
    needed: Sequence[Requirement], platform: Platform, there: Mapping[str, str], folder: Path, heard: Callable[[str], None]
) -> None:
    """Downloads what is needed into ``folder``. pip reads the markers of requirements as for the Python that it runs in, so that what only
    the device needs is asked for again until nothing is missing."""
    for name, version in there.items():
        _stand_in(folder / "there", name, version)
    here = {held.metadata["Name"]: held.version for held in metadata.distributions() if held.metadata["Name"]}
    same = folder / "constraints.txt"
    pins = {**here, **there}
    same.write_text("".join(f"{name}=={version}\n" for name, version in sorted(pins.items()) if name != "edgekit"), encoding="utf-8")
    fits = [f"--platform={name}" for name in platform.platforms] + [f"--abi={name}" for name in (*platform.abis, "none")]
    options = [f"--implementation={platform.implementation}", f"--python-version={platform.markers['python_version']}", *fits]
    options += ["--only-binary=:all:", f"--find-links={folder / 'there'}", "--dest", str(folder)]
    wanted, what = [str(need) for need in needed], f"packages for {platform.name}"
    if platform.bare:
        what += " (nobody publishes compiled ones: install them there, Termux: pkg install python-numpy python-onnxruntime)"
    for _ in range(DEEP):
        for old in folder.glob("*.whl"):
            old.unlink()
        try:
            _pip([*options, "-c", str(same), *wanted], what)
        except EngineMissing as error:
            if same.stat().st_size == 0:
                raise
            heard(f"not all versions of this machine exist for {platform.name}: others are taken there ({error})")
            same.write_text("".join(f"{name}=={version}\n" for name, version in sorted(there.items())), encoding="utf-8")
            _pip([*options, "-c", str(same), *wanted], what)
        missing = _missing(needed, platform, folder)
        if not missing:
            break
        wanted += missing
    for old in folder.glob("*.whl"):
        if (folder / "there" / old.name).exists():
            old.unlink()


def _stand_in(folder: Path, name: str, version: str) -> None:
    """A wheel of nothing but a name, so that pip counts with what the device has."""
    folder.mkdir(exist_ok=True)
    plain = re.sub(r"[-_.]+", "_", name).lower()
    info = f"{plain}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{plain}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: edgekit\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def _pip(arguments: Sequence[str], what: str) -> None:
    said = pip_download(arguments)
    if said is None:
        return
    if said.unpublished:
        raise EngineMissing(f"no {what}: {said.reason}")
    raise DeviceUnfit(f"pip here could not get {what}: {said.reason}; it has to work on this side once: python -m pip --version")


def _reached(needed: Sequence[Requirement], platform: Platform, folder: Path) -> Iterator[tuple[Requirement, Path | None]]:
    return reached(needed, [*folder.glob("*.whl"), *(folder / "there").glob("*.whl")], platform.markers)


def _missing(needed: Sequence[Requirement], platform: Platform, folder: Path) -> list[str]:
    return [str(bare(need)) for need, wheel in _reached(needed, platform, folder) if wheel is None]


def _closure(needed: Sequence[Requirement], platform: Platform, folder: Path) -> list[str]:
    """The wheels that the platform needs; pip may have brought others for this one."""
    return sorted({wheel.name for _, wheel in _reached(needed, platform, folder) if wheel is not None and wheel.parent == folder})
