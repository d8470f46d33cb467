"""``edge keygen``, ``sign``, ``diff``, ``apply``, ``rollback``, ``push`` and ``pull``: artifacts on their way to devices."""

import os
from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands.common import Directory, Json, MinRelease, TrustedKey, command, make_trust

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")]


@command
def keygen(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="Writes NAME.key, to be kept secret, and NAME.pub.", show_default=False)],
    json: Json = False,
) -> None:
    """Make a pair of keys to sign artifacts with; EDGEKIT_KEY_PASSPHRASE encrypts the private one."""
    from edgekit import console
    from edgekit.signing import PASSPHRASE, make_keys

    private, public = make_keys(name, os.environ.get(PASSPHRASE))
    if json:
        console.show_json({"private": str(private), "public": str(public)})
    else:
        console.show(f"{private}: private, keep it secret\n{public}: public, for --trusted-key")


@command
def sign(
    directory: Directory,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private key that `edge keygen` made.", show_default=False)],
    release: Annotated[
        int | None, typer.Option("--release", min=0, help="Number by which devices tell an older artifact.", show_default=False)
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Sign an artifact, after comparing every digest. A pinned key is not asked for: it is this command that gives the signature."""
    from edgekit import console, signing

    with console.progress(quiet=quiet or json) as progress:
        passphrase = os.environ.get(signing.PASSPHRASE)
        manifest = signing.sign(directory, key, release=release, passphrase=passphrase, progress=progress)
    if json:
        console.show_json({"directory": str(directory), "release": manifest.release})
    elif not quiet:
        console.show(f"{directory}: signed, release {'without a number' if manifest.release is None else manifest.release}")


@command
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The artifact that devices have.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The artifact that they shall have.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The update to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
    trusted_key: TrustedKey = None,
    min_release: MinRelease = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write an update: what is new in NEW, for devices that have OLD."""
    from dataclasses import asdict

    from edgekit import console
    from edgekit.updates.diff import diff as make_diff

    trust = make_trust(trusted_key, min_release)
    with console.progress(quiet=quiet or json) as progress:
        made = make_diff(old, new, out, force=force, trust=trust, progress=progress)
    if json:
        console.show_json({"file": str(out), **asdict(made)})
    elif not quiet:
        console.show(f"{out}: {made.bytes / 1e6:,.2f} MB for an artifact of {made.total / 1e6:,.2f} MB")


@command
def apply(
    update: Annotated[Path, typer.Argument(metavar="FILE", help="What `edge diff` wrote.", show_default=False)],
    directory: Directory,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the new artifact there, and leave DIR as it is.", show_default=False)
    ] = None,
    trusted_key: TrustedKey = None,
    min_release: MinRelease = 0,
    downgrade: Annotated[bool, typer.Option("--downgrade", help="Take an older release too.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make an artifact the new one of an update, in one step; the old one stays as DIR.previous."""
    from edgekit import console, listing
    from edgekit.updates.apply import apply as apply_update

    trust = make_trust(trusted_key, min_release)
    with console.progress(quiet=quiet or json) as progress:
        manifest = apply_update(update, directory, out=out, trust=trust, downgrade=downgrade, progress=progress)
    if json:
        console.show_json({"directory": str(out or directory), **listing.summary(manifest)})
    elif not quiet:
        console.show(f"{out or directory}: {listing.headline(manifest)}")


Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="hf://org/name[@revision] or oci://host/path[:tag].", show_default=False)]


@command
def push(
    directory: Directory,
    address: Address,
    private: Annotated[bool, typer.Option("--private", help="Of a hub repository that is made for it: private.")] = False,
    trusted_key: TrustedKey = None,
    min_release: MinRelease = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Copy an artifact to the Hugging Face hub or an OCI registry."""
    from edgekit import console, stores

    trust = make_trust(trusted_key, min_release)
    with console.progress(quiet=quiet or json) as progress:
        exact = stores.push(directory, address, private=private, trust=trust, progress=progress)
    if json:
        console.show_json({"address": exact})
    elif not quiet:
        console.show(exact)


@command
def pull(
    address: Address,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is already there.")] = False,
    trusted_key: TrustedKey = None,
    min_release: MinRelease = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Fetch an artifact from the Hugging Face hub or an OCI registry."""
    from edgekit import console, listing, stores

    trust = make_trust(trusted_key, min_release)
    with console.progress(quiet=quiet or json) as progress:
        manifest = stores.pull(address, out, force=force, trust=trust, progress=progress)
    if json:
        console.show_json({"directory": str(out), **listing.summary(manifest)})
    elif not quiet:
        console.show(f"{out}: {listing.headline(manifest)}")


@command
def rollback(
    directory: Directory, trusted_key: TrustedKey = None, min_release: MinRelease = 0, quiet: Quiet = False, json: Json = False
) -> None:
    """Put back the artifact that the last `edge apply` replaced, in one step, after comparing every digest."""
    from edgekit import console, listing
    from edgekit.updates.apply import roll_back

    trust = make_trust(trusted_key, min_release)
    with console.progress(quiet=quiet or json) as progress:
        manifest = roll_back(directory, trust=trust, progress=progress)
    if json:
        console.show_json({"directory": str(directory), **listing.summary(manifest)})
    elif not quiet:
        console.show(f"{directory}: {listing.headline(manifest)}")
