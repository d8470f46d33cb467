"""``edge package``."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands.common import Directory, Json, MinRelease, TrustedKey, command, make_trust


@command
def package(
    directory: Directory,
    kind: Annotated[
        str,
        typer.Option("--for", metavar="KIND", help="python, linux-service, container, web, android, ios or windows.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write.", show_default=False)],
    platform: Annotated[
        list[str] | None,
        typer.Option(
            "--platform",
            metavar="NAME",
            help="Machine that it is for, such as linux_aarch64; a container may have several. Default: this one.",
            show_default=False,
        ),
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", metavar="VERSION", help="Python there. Default: 3.11.", show_default=False)
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option("--wheels", metavar="DIR", help="Take Python packages from there alone, without a network.", show_default=False),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="DIR", help="OCI image layout with Python, which a container is built upon.", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="PROFILE",
            help="A name from `edge devices` or a .toml file: whose memory conversations of an app or page have to fit.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a package that is already there.")] = False,
    trusted_key: TrustedKey = None,
    min_release: MinRelease = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")] = False,
    json: Json = False,
) -> None:
    """Write what an application drops in: an artifact with its loader, licences, model card, bill of materials and checksums."""
    from edgekit import console
    from edgekit.packagers import Settings
    from edgekit.packagers import package as make

    settings = Settings(platforms=tuple(platform or ()), python=python, wheels=wheels, base=base, device=device)
    trust = make_trust(trusted_key, min_release)
    with console.progress(quiet=quiet or json) as progress:
        said = make(directory, kind, out, settings, force=force, trust=trust, progress=progress)
    if json:
        console.show_json({"directory": str(out), **said})
    elif not quiet:
        console.show(f"{out}: {said['model']} for {kind}; begin with its README.md")
