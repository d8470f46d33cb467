"""Files that come with the package or are named by the user: the folders ``targets`` and ``profiles``, and text."""

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
