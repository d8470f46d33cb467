"""Finds folders: ``targets`` and ``profiles``, which lie beside the package, and the user's cache."""

import sys
from collections.abc import Mapping
from pathlib import Path

from edgekit.errors import EdgekitError

_PACKAGE = Path(__file__).parent


def data_folder(name: str) -> Path:
    """The folder ``name``: in a wheel ``edgekit/data/<name>``, in a source tree (editable install) ``<repository>/<name>``."""
    places = (_PACKAGE / "data" / name, _PACKAGE.parent.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise EdgekitError(f"the data folder {name!r} is missing, looked in {places[0]} and {places[1]}; install edgekit again")


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
