"""Finds the data folders that lie beside the package: ``targets`` and ``profiles``."""

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
