"""What every command shares: options with one meaning, and how an error becomes a message and an exit code."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, ParamSpec

import typer

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.signing import Trust

P = ParamSpec("P")
INTERRUPTED = 130

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; errors too.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact that `edge build` made.", show_default=False)]
TrustedKey = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-key",
        metavar="FILE",
        help="Public key that must have signed it (edge keygen, edge sign); may be repeated. Default: EDGEKIT_TRUSTED_KEY.",
        show_default=False,
    ),
]
MinRelease = Annotated[int, typer.Option("--min-release", min=0, help="With --trusted-key: refuse an older release.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the engine. Default: its own choice.")]


def command(call: Callable[P, None]) -> Callable[P, None]:
    """Turns an EdgekitError into its message and exit code, Ctrl-C into 130, and a closed pipe into a quiet end."""

    @functools.wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from edgekit import console

        console.make_safe()
        try:
            call(*args, **kwargs)
        except EdgekitError as error:
            fail(error, {} if kwargs.get("json") else None)
        except KeyboardInterrupt:
            print("\nedge: interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # What is still buffered has nowhere to go; else the interpreter would complain while it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None

    return wrapped


def fail(error: EdgekitError, document: dict[str, object] | None) -> NoReturn:
    """The message on stderr, ``document`` with the error in it on stdout, and the exit code."""
    from edgekit import console

    if document is not None:
        console.show_json({"error": _described(error), **document})
    print(f"edge: error: {error}", file=sys.stderr)
    raise typer.Exit(error.exit_code) from None


def _described(error: EdgekitError) -> dict[str, object]:
    return {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}


def make_trust(keys: list[Path] | None, release: int = 0) -> "Trust | None":
    """What a command's options and EDGEKIT_TRUSTED_KEY say together. Raises UsageError: a release asked for, and no key."""
    from edgekit.errors import UsageError
    from edgekit.signing import Trust, pinned

    trust = Trust(tuple(keys), release) if keys else pinned(release)
    if trust is None and release:
        raise UsageError("--min-release is about signed artifacts; give --trusted-key FILE too")
    return trust
