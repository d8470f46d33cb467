"""``edge profile``: how fast, how much memory, how hot?"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.commands.common import Json, MinRelease, Threads, TrustedKey, command, make_trust
from edgekit.errors import RemoteError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.artifact import Artifact
    from edgekit.remote.address import HubDevice


@command
def profile(
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="An artifact that `edge build` made.", show_default=False)] = None,
    prompt: Annotated[
        list[int] | None, typer.Option("--prompt", min=1, help="Tokens of a prompt; may be repeated. Default: 32, 128, 512, 2048.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Decoded after each prompt, in each round.")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Measurements of everything, after one that does not count.")] = 5,
    loads: Annotated[int, typer.Option("--loads", min=1, help="Cold and warm loads, each in a new process.")] = 3,
    sustained: Annotated[
        float, typer.Option("--sustained", metavar="SECONDS", min=0, help="Then decode so long without a pause: does it throttle?")
    ] = 0.0,
    trace: Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="Write a Chrome trace of every operator.")] = None,
    journal: Annotated[
        Path | None, typer.Option("--journal", metavar="FILE", help="Keep every measurement here; started again, go on after them.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report, or the comparison, as a page.")] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="FILE", help="Compare with this profile, which --json printed.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="FILE FILE", help="Compare the second profile with the first.", show_default=False),
    ] = None,
    save: Annotated[
        str | None, typer.Option("--save", metavar="NAME", help="Write the figures into this device profile (or .toml file).")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option("--fail-if", metavar="LIMIT", help="Fail where this holds, as 'decode < 0.9x'; may be repeated."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="WHERE", help="Elsewhere: ssh://[user@]host[:port][/folder], adb:SERIAL or aihub:DEVICE.", show_default=False
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="With --on: leave runtime and artifact there for the next time.")] = True,
    threads: Threads = None,
    trusted_key: TrustedKey = None,
    min_release: MinRelease = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No word of what is being measured.")] = False,
    json: Json = False,
) -> None:
    """Measure an artifact on this machine: load, prompts, decoding, memory, energy; or compare two such profiles."""
    from edgekit import console
    from edgekit.artifact import load_artifact
    from edgekit.files import shown
    from edgekit.profile import judging, report, run, saving

    trust = make_trust(trusted_key, min_release)
    limits, broken = judging.limits(fail_if or []), None
    device = saving.place(save) if save is not None else None
    if compare is not None:
        if directory is not None or baseline is not None:
            raise UsageError("--compare takes two profiles and measures nothing; give DIR and --baseline FILE to measure")
        found, names = report.read(compare[1]), judging.names(compare)
        before: report.Report | None = report.read(compare[0])
    else:
        if directory is None:
            raise UsageError("name the artifact's directory, or two profiles with --compare FILE FILE")
        before = report.read(baseline) if baseline is not None else None
        names = ("baseline", "now")
        wanted = report.Settings(tuple(prompt or ()), tokens, rounds, loads, threads, sustained)
        said = shown("edge " + shlex.join(sys.argv[1:]))
        tell = console.hide if quiet else console.notice
        if on is None:
            found = run.profile(directory, wanted, journal_path=journal, trace=trace, command=said, tell=tell, trust=trust)
        else:
            from edgekit.remote.address import HubDevice, address
            from edgekit.remote.command import profile_elsewhere

            place = address(on)
            if isinstance(place, HubDevice):
                if any((html, before, limits, trace, device)):
                    raise UsageError("AI Hub runs single graphs, nothing to compare with: --on aihub: goes with --journal and --json alone")
                _show_hub(place, load_artifact(directory, trust=trust), journal, said, tell, json=json)
                return
            with console.progress(quiet=quiet or json) as progress:
                found, broken = profile_elsewhere(
                    place,
                    directory,
                    wanted,
                    journal_path=journal,
                    trace=trace,
                    keep=keep,
                    command=said,
                    tell=tell,
                    progress=progress,
                    trust=trust,
                )
    seen = judging.judge(found, before, limits, names, broken)
    if device is not None:
        saving.save(device, found)
    if html is not None:
        judging.write(html, seen)
    if json:
        console.show_json(judging.as_json(seen, measured=compare is None))
    else:
        console.show("\n".join(judging.as_lines(seen)))
    for problem in seen.problems:
        console.notice(f"edge: error: {problem}")
    if seen.problems:
        raise typer.Exit(seen.problems[0].exit_code)


def _show_hub(
    place: "HubDevice", artifact: "Artifact", journal: Path | None, said: str, tell: "Callable[[str], None]", *, json: bool
) -> None:
    from dataclasses import asdict

    from edgekit import console
    from edgekit.remote.aihub import as_lines, profile_in_hub

    found = profile_in_hub(place.name, place.os, artifact, journal, said, tell)
    if json:
        console.show_json(asdict(found))
    else:
        head, *rows = as_lines(found)
        console.show_table(head, rows)
    if found.missing:
        raise typer.Exit(RemoteError.exit_code)
