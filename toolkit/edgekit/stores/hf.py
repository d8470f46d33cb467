"""Repositories of the Hugging Face hub, through huggingface_hub: its token, endpoint, cache and offline mode hold as everywhere."""

import glob
import shutil
from pathlib import Path

from edgekit import hub
from edgekit.artifact import MANIFEST, SIGNATURE, Artifact, Manifest, check_digests, read_artifact
from edgekit.errors import ArtifactError, DownloadError, OutputError
from edgekit.output import writing
from edgekit.progress import Progress
from edgekit.signing import Trust
from edgekit.stores.place import HubPlace, check_head


def push(artifact: Artifact, place: HubPlace, *, private: bool, progress: Progress) -> str:
    """One commit that holds the artifact; the repository is made where there is none. Returns the address by commit."""
    api = hub.library()
    names = [MANIFEST, *([SIGNATURE] if (artifact.directory / SIGNATURE).is_file() else []), *artifact.manifest.files]
    client = api.HfApi()
    api.utils.disable_progress_bars()
    try:
        client.create_repo(place.repository, private=private, exist_ok=True)
        made = client.create_commit(
            place.repository,
            [api.CommitOperationAdd(name, str(artifact.directory / name)) for name in names],
            commit_message=f"{artifact.manifest.model.name} for {artifact.manifest.target}, by {artifact.manifest.producer}",
            revision=place.revision,
        )
    except (api.errors.HfHubHTTPError, api.errors.HTTPError, ValueError, KeyError, OSError) as error:
        reason = hub.without_secrets(str(error).strip().splitlines()[0])
        raise DownloadError(
            f"{artifact.directory} could not be pushed to {place.repository}: {reason}. "
            "For a token that may write: hf auth login, or set HF_TOKEN; what has been uploaded is not sent again"
        ) from None
    progress("upload", 1, 1)
    return f"hf://{place.repository}@{made.oid}"


def pull(place: HubPlace, output: Path, *, force: bool, trust: Trust | None, progress: Progress) -> Manifest:
    """See ``stores.pull``. The files stay in the hub's cache as well, so the next pull of a newer revision fetches what is new."""
    where = f"hf://{place.repository}"
    heads = hub.Selection((MANIFEST, SIGNATURE), (), None)
    folder, commit = hub.download(place.repository, place.revision, offline=False, progress=progress, select=heads)
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{where} is no artifact: it has no {MANIFEST} in its top folder")
    signature = (folder / SIGNATURE).read_bytes() if (folder / SIGNATURE).is_file() else None
    raw = (folder / MANIFEST).read_bytes()
    manifest = check_head(raw, signature, trust, where)
    every = hub.Selection((MANIFEST, SIGNATURE, *(glob.escape(name) for name in manifest.files)), (), None)
    folder, _ = hub.download(place.repository, commit, offline=False, progress=progress, select=every)
    try:
        with writing(output, force=force) as staging:
            for name in manifest.files:
                if not (folder / name).is_file():
                    raise ArtifactError(f"{where} has no {name}, which its {MANIFEST} lists; push the artifact again")
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, staging / name)
            if signature is not None:
                (staging / SIGNATURE).write_bytes(signature)
            (staging / MANIFEST).write_bytes(raw)
            check_digests(read_artifact(staging), progress)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    return manifest
