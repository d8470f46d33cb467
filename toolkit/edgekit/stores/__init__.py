"""Artifacts in stores that exist: the Hugging Face hub (``hf://``) and any OCI registry (``oci://``).

    place.py   what an address means
    hf.py      a repository of the hub, through huggingface_hub
    oci.py     an image manifest whose layers are the files, as ``oras push`` makes it, through the oras package

A store is not trusted: what it sends gets its name only once it is what the artifact's manifest says, and with a pinned key the manifest's
signature is checked before anything else is fetched.
"""

from pathlib import Path

from edgekit.artifact import Manifest, check_files, load_artifact
from edgekit.output import check_output
from edgekit.progress import Progress, silent
from edgekit.signing import Trust, pinned
from edgekit.stores.place import HubPlace, parse_place


def push(directory: Path, address: str, *, private: bool = False, trust: Trust | None = None, progress: Progress = silent) -> str:
    """Copies an artifact into a store, after comparing its digests, and returns the address that means exactly what was pushed.

    private: of a hub repository that is made for it. trust: whose signature it must bear.
    Raises SignatureError, ArtifactError, UsageError (the address), DownloadError (the store), EngineMissing.
    """
    place = parse_place(address)
    artifact = load_artifact(directory, trust=trust, whole=True, progress=progress)
    check_files(artifact)
    if isinstance(place, HubPlace):
        from edgekit.stores import hf

        return hf.push(artifact, place, private=private, progress=progress)
    from edgekit.stores import oci

    return oci.push(artifact, place, progress)


def pull(address: str, output: Path, *, force: bool = False, trust: Trust | None = None, progress: Progress = silent) -> Manifest:
    """Fetches an artifact into ``output``, whole or not at all. trust: whose signature it must bear; None: a pinned key's, if there is one.

    Raises DownloadError, ModelNotFound, SignatureError, ArtifactError, OutputError, UsageError, EngineMissing.
    """
    place, trust = parse_place(address), trust or pinned()
    check_output(output, force=force)
    if isinstance(place, HubPlace):
        from edgekit.stores import hf

        return hf.pull(place, output, force=force, trust=trust, progress=progress)
    from edgekit.stores import oci

    return oci.pull(place, output, force=force, trust=trust, progress=progress)
