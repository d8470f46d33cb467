"""Files that come with the package or are named by the user: ``targets`` and ``profiles``, text; and the user's cache folder."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from edgekit.errors import EdgekitError, UsageError

_PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """The folder ``name``: in a wheel ``edgekit/data/<name>``, in a source tree (editable install) ``<repository>/<name>``."""
    places = (_PACKAGE / "data" / name, _PACKAGE.parent.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise EdgekitError(f"the data folder {name!r} is missing, looked in {places[0]} and {places[1]}; install edgekit again")


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


def release(version: str) -> tuple[int, ...]:
    """The numbers of a package's version, for comparing: ``"1.24.1rc1"`` -> (1, 24, 1), ``"2026.4.1-22982-e213..."`` -> (2026, 4, 1)."""
    found = re.match(r"[\d.]*", version)
    return tuple(int(part) for part in re.findall(r"\d+", found[0] if found else "")[:3])
