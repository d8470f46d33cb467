"""What every command shares: options with one meaning, and how an error becomes a message and an exit code."""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer
import typer.core

from edgekit.errors import EdgekitError
from edgekit.redact import without_secrets

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
    """Turns an EdgekitError into its message and exit code, Ctrl-C into 130, and an end of stdout into what ``printing`` says."""

    @functools.wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from edgekit import console

        console.make_safe()
        with console.printing():
            try:
                call(*args, **kwargs)
            except EdgekitError as error:
                fail(error, {} if kwargs.get("json") else None)
            except KeyboardInterrupt:
                console.notice("\nedge: interrupted")
                raise typer.Exit(INTERRUPTED) from None

    return wrapped


def fail(error: EdgekitError, document: dict[str, object] | None) -> NoReturn:
    """The message on stderr, ``document`` with the error in it on stdout, and the exit code."""
    from edgekit import console

    if document is not None:
        console.show_json({"error": described(type(error).__name__, str(error), error.exit_code), **document})
    console.notice(f"edge: error: {error}")
    raise typer.Exit(error.exit_code) from None


def described(kind: str, message: str, code: int) -> dict[str, object]:
    """An error as every ``--json`` has it."""
    return {"kind": kind, "message": without_secrets(message), "exit_code": code}


class Commands(typer.core.TyperGroup):
    """The root command: what the command line itself has wrong is told as every other error is, in JSON too where that is asked for."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        from edgekit import console

        given = list(sys.argv[1:] if args is None else args)
        console.make_safe()
        with console.printing():
            try:
                code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            except CLICK as error:
                wrong: Any = error
                if "--json" in given[: given.index("--") if "--" in given else None]:
                    console.show_json({"error": described("UsageError", wrong.format_message(), wrong.exit_code)})
                wrong.show()
                code = wrong.exit_code
            if standalone_mode:
                raise SystemExit(code if isinstance(code, int) else 0)
            return code


CLICK: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""typer's own copy of click's, or click's, by its version."""


def make_trust(keys: list[Path] | None, release: int = 0) -> "Trust | None":
    """What a command's options and EDGEKIT_TRUSTED_KEY say together. Raises UsageError: a release asked for, and no key."""
    from edgekit.errors import UsageError
    from edgekit.signing import Trust, pinned

    trust = Trust(tuple(keys), release) if keys else pinned(release)
    if trust is None and release:
        raise UsageError("--min-release is about signed artifacts; give --trusted-key FILE too")
    return trust
