"""``ios``: a Swift package on mlx-swift-lm with the model as its resource, and a minimal app."""

from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.packagers import Made, Settings
from edgekit.packagers.apps import check_app, facts
from edgekit.packagers.kinds import HOST
from edgekit.packagers.parts import Component, copy_artifact, fill_templates, texts
from edgekit.packagers.room import Place, Room, room_for
from edgekit.packagers.room import facts as room_facts
from edgekit.progress import Progress

PROVIDERS = (HOST,)
APPLE = Place(("phone", "tablet", "laptop", "desktop"), {HOST: "iphone-16"})

SWIFT_LM, TRANSFORMERS, HUB = "3.31.4", "1.3.0", "0.9.0"
"""mlx-swift-lm, and the tokenizers that its documentation takes."""
STORE = 4_000_000_000
"""Bytes of an app in the App Store (developer.apple.com, "Maximum build file sizes")."""
PLACE = Path("Sources/EdgekitModel/Resources/artifact")


def check(artifact: Artifact, settings: Settings) -> None:
    """See ``Packager.check``."""
    check_app(artifact, settings, "ios")
    room(artifact, settings)
    size = sum(info.bytes for info in artifact.manifest.files.values())
    if size > STORE:
        raise UsageError(
            f"{artifact.directory} has {size:,} bytes, more than the {STORE:,} that the App Store takes; choose a smaller model"
        )


def room(artifact: Artifact, settings: Settings) -> Room:
    """Of its conversations. Raises UsageError."""
    return room_for(artifact, "ios", settings.device, APPLE, most_tokens=limit(artifact))


def limit(artifact: Artifact) -> int:
    """The longest sequence for which a loader other than edgekit's computes what the model does (docs/mlx.md). Raises UsageError."""
    details = artifact.manifest.engine.details
    right = details.get("mlx_lm_tokens", artifact.manifest.context.length)
    if not isinstance(right, int) or right < 1:
        raise UsageError(f"{artifact.directory} is not computed right by MLX's own loaders: {details.get('mlx_lm_limit')}; docs/mlx.md")
    return min(right, artifact.manifest.context.length)


def fill(artifact: Artifact, folder: Path, settings: Settings, progress: Progress) -> Made:
    """See ``Packager.fill``."""
    copy_artifact(artifact, folder / PLACE, progress)
    versions = {"swift_lm": SWIFT_LM, "transformers": TRANSFORMERS, "hub": HUB}
    found = room(artifact, settings)
    fill_templates("ios", folder, {**facts(artifact), **room_facts(found), "right": limit(artifact), **versions})
    components = [
        Component(name, version, f"pkg:swift/github.com/{owner}/{name}@{version}", licence, papers=texts(text))
        for owner, name, version, licence, text in (
            ("ml-explore", "mlx-swift-lm", SWIFT_LM, "MIT", "MIT-ml-explore"),
            ("huggingface", "swift-transformers", TRANSFORMERS, "Apache-2.0", "Apache-2.0"),
            ("huggingface", "swift-huggingface", HUB, "Apache-2.0", "Apache-2.0"),
        )
    ]
    return Made(components, ["ios"], found)
