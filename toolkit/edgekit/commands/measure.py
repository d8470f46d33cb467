"""``edge profile``: how fast, how much memory, how hot?"""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands.common import Json, Threads, command


@command
def profile(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact that `edge build` made.", show_default=False)],
    prompt: Annotated[
        list[int] | None,
        typer.Option("--prompt", min=1, help="Tokens of a prompt; may be repeated. Default: 32, 128, 512, 2048."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Decoded after each prompt, in each round.")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Measurements of everything, after one that does not count.")] = 5,
    loads: Annotated[int, typer.Option("--loads", min=1, help="Cold and warm loads, each in a new process.")] = 3,
    journal: Annotated[Path | None, typer.Option("--journal", help="Keep every measurement here; started again, go on after them.")] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="DEVICE", help="Elsewhere: ssh://[user@]host[:port][/folder], adb:SERIAL or aihub:DEVICE.", show_default=False
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="With --on: leave runtime and artifact there for the next time.")] = True,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No word of what is being measured.")] = False,
    json: Json = False,
) -> None:
    """Measure an artifact on this machine: load, prompt, decoding, memory."""
    from edgekit import console
    from edgekit.artifact import load_artifact
    from edgekit.profile import report, run

    settings = run.settled(load_artifact(directory), tuple(prompt or ()), tokens, rounds, loads, threads)
    said = "edge " + shlex.join(sys.argv[1:])
    if on is not None:
        from edgekit.remote.aihub import HubReport, as_lines
        from edgekit.remote.command import profile_elsewhere

        there = profile_elsewhere(on, directory, settings, journal_path=journal, keep=keep, command=said, quiet=quiet or json)
        if json:
            console.show_json(asdict(there))
        elif isinstance(there, HubReport):
            head, *rows = as_lines(there)
            console.show_table(head, rows)
        return
    found = run.profile(directory, settings, journal_path=journal, command=said, tell=console.hide if quiet else console.notice)
    if json:
        console.show_json(report.as_json(found))
