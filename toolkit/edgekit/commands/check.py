"""``edge inspect``, ``edge verify`` and ``edge doctor``: is it what it should be?"""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands.common import Directory, Json, MinRelease, Threads, TrustedKey, command, make_trust
from edgekit.errors import EngineError


@command
def inspect(
    directory: Directory,
    check: Annotated[bool, typer.Option("--check", help="Read every file and compare its digest.")] = False,
    trusted_key: TrustedKey = None,
    min_release: MinRelease = 0,
    json: Json = False,
) -> None:
    """Show what an artifact is: model, scheme, context, stop set, files."""
    from edgekit import console, listing
    from edgekit.artifact import load_artifact

    trust = make_trust(trusted_key, min_release)
    with console.progress(quiet=json) as progress:
        artifact = load_artifact(directory, trust=trust, whole=check, progress=progress)
    if json:
        console.show_json_text(artifact.manifest.to_json().rstrip("\n"))
    else:
        console.show_pairs(listing.description(artifact.manifest, checked=check or trust is not None))


@command
def verify(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Artifacts that `edge build` made.", show_default=False)],
    no_run: Annotated[bool, typer.Option("--no-run", help="Check and compare files only; no engine need be here.")] = False,
    against: Annotated[
        str | None, typer.Option("--against", metavar="MODEL", help="Measure fidelity to this model, unquantized.", show_default=False)
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="With --against: measure on this text. Default: edgekit's own.", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="With --against: 4,096 positions instead of 256.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="With --against: write the report as a page.", show_default=False)] = None,
    max_kl: Annotated[float | None, typer.Option("--max-kl", min=0.0, help="With --against: fail above this mean KL divergence.")] = None,
    min_top1: Annotated[
        float | None, typer.Option("--min-top1", min=0.0, max=1.0, help="With --against: fail below this share of same likeliest tokens.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="With several DIR: what to ask; may be repeated. Default: chats and texts of the manifest."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="With several DIR: most tokens of an answer.")] = 32,
    margin: Annotated[
        float, typer.Option("--margin", min=0.0, help="With several DIR: logits by which another token may lead and still count as a tie.")
    ] = 0.5,
    threads: Threads = None,
    trusted_key: TrustedKey = None,
    min_release: MinRelease = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; nothing at all where all is right.")] = False,
    json: Json = False,
) -> None:
    """Check that artifacts are what was built, say the same, and are faithful to their model."""
    from edgekit import console, examination

    wishes = examination.Wishes(
        run=not no_run,
        against=against,
        text=text,
        full=full,
        html=html,
        max_kl=max_kl,
        min_top1=min_top1,
        prompts=tuple(prompt or ()),
        tokens=tokens,
        margin=margin,
        threads=threads,
        trust=make_trust(trusted_key, min_release),
    )
    with console.progress(quiet=quiet or json) as progress:
        found = examination.examine(directories, wishes, progress)
    if json:
        console.show_json(found.as_json())
    elif not quiet:
        console.show("\n".join(found.as_lines()))
    for problem in found.problems:
        console.notice(f"edge: error: {problem.message}")
    if found.problems:
        raise typer.Exit(found.problems[0].exit_code)


@command
def doctor(json: Json = False) -> None:
    """Show what is installed and which engines work here, and what to do about the rest."""
    from edgekit import console, listing
    from edgekit.doctor import as_json, diagnose

    found = diagnose()
    if json:
        console.show_json(as_json(found))
    else:
        console.show_pairs(listing.diagnosis(found))
    if not found.well:
        raise typer.Exit(EngineError.exit_code)
