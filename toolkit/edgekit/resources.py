"""Files that come with the package or are named by the user: ``targets`` and ``profiles``, text; and the user's cache folder."""

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from edgekit.errors import EdgekitError, EngineMissing, TargetError, UsageError

_PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """The folder ``name``: in a wheel ``edgekit/data/<name>``, in a source tree (editable install) ``<repository>/<name>``."""
    places = (_PACKAGE / "data" / name, _PACKAGE.parent.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise EdgekitError(f"the data folder {name!r} is missing, looked in {places[0]} and {places[1]}; install edgekit again")


def data_names(folder: str) -> list[str]:
    """The names of the ``.toml`` files in the data folder ``folder``, sorted."""
    return sorted(path.stem for path in data_folder(folder).glob("*.toml"))


def data_file(folder: str, what: str, name_or_path: str | Path) -> Path:
    """The ``.toml`` file of this name in a data folder, or the one at this path. what: ``"target"``, for messages.

    Raises TargetError: an unknown name, with the known ones.
    """
    path, known = Path(name_or_path), data_names(folder)
    if path.suffix == ".toml":
        return path
    if str(name_or_path) not in known:
        close = difflib.get_close_matches(str(name_or_path).lower(), known, n=1)
        hint = f", did you mean {close[0]!r}? Known" if close else "; known"
        raise TargetError(f"unknown {what} {str(name_or_path)!r}{hint}: {', '.join(known)}; or give the path of a .toml file")
    return data_folder(folder) / f"{name_or_path}.toml"


def read_text(path: Path) -> str:
    """A UTF-8 text file that the user named. Raises UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 text") from None


def cache_folder(environment: Mapping[str, str]) -> Path:
    """EDGEKIT_CACHE, or the platform's place. Makes nothing."""
    own = environment.get("EDGEKIT_CACHE")
    if own:
        return Path(own).absolute()
    home = Path.home()
    if sys.platform == "win32":
        local = environment.get("LOCALAPPDATA")
        return (Path(local) if local else home / "AppData" / "Local") / "edgekit" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "edgekit"
    xdg = environment.get("XDG_CACHE_HOME", "")
    # A relative path is invalid and to be ignored, says the XDG specification.
    return (Path(xdg) if Path(xdg).is_absolute() else home / ".cache") / "edgekit"


def check_release(package: str, installed: str, needed: str, note: str = "") -> None:
    """note: what else to know of upgrading. Raises EngineMissing for an ``installed`` version below the one that an artifact needs."""
    if release(installed) < release(needed):
        raise EngineMissing(
            f"this artifact needs {package} {needed} or newer, installed is {installed}; "
            f'upgrade it: pip install --upgrade "{package}>={needed}"{note}'
        )


def release(version: str) -> tuple[int, ...]:
    """The numbers of a package's version, for comparing: ``"1.24.1rc1"`` -> (1, 24, 1), ``"2026.4.1-22982-e213..."`` -> (2026, 4, 1)."""
    found = re.match(r"[\d.]*", version)
    return tuple(int(part) for part in re.findall(r"\d+", found[0] if found else "")[:3])
