"""The ``edge`` command: names every command there is; ``commands`` holds them."""

import signal
import sys
from typing import Annotated

import typer

from edgekit import __version__
from edgekit.commands.build import build
from edgekit.commands.cache import cache
from edgekit.commands.check import doctor, inspect, verify
from edgekit.commands.common import Commands
from edgekit.commands.listing import devices, models, targets
from edgekit.commands.measure import profile
from edgekit.commands.package import package
from edgekit.commands.plan import plan
from edgekit.commands.serve import serve
from edgekit.commands.ship import apply, diff, keygen, pull, push, rollback, sign
from edgekit.commands.talk import chat, run

app = typer.Typer(
    name="edge",
    cls=Commands,
    help="Quantize a small language model once and run it on any edge engine.",
    epilog="Exit codes: 0 done, 1 anything else, 2 usage, 3 model, 4 target, 5 engine missing, 6 artifact, 7 context overrun, "
    "8 chat template, 9 output, 10 download, 11 engine, 12 fidelity, 14 signature, 15 performance, 16 does not fit the device, "
    "17 remote, 130 Ctrl-C.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def edge(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


for command in (
    plan,
    build,
    run,
    chat,
    serve,
    inspect,
    verify,
    profile,
    targets,
    devices,
    models,
    doctor,
    keygen,
    sign,
    package,
    diff,
    apply,
    rollback,
    push,
    pull,
):
    app.command()(command)
app.add_typer(cache, name="cache")


def main() -> None:
    """The console script. A polite kill or a closed terminal cleans up as Ctrl-C does: the exception passes through every ``finally``."""
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    app()


if __name__ == "__main__":
    main()
