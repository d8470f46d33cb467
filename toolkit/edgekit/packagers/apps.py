"""What the application projects (Android, iOS, Windows) have in common."""

from collections.abc import Sequence

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.listing import headline
from edgekit.packagers.parts import plain_name, shell_safe


def facts(artifact: Artifact) -> dict[str, object]:
    """What their templates speak of."""
    words = {"model": artifact.manifest.model.name, "headline": headline(artifact.manifest)}
    return {**dict(shell_safe(words)), "name": plain_name(artifact.manifest.model.name)}


def check_app(artifact: Artifact, providers: Sequence[str], kind: str) -> None:
    """Raises UsageError: a provider that those devices do not have, or no chat template."""
    provider = str(artifact.manifest.engine.details.get("provider", "cpu"))
    if provider not in providers:
        raise UsageError(
            f"{artifact.directory} was built for {provider}; a package for {kind} takes {' or '.join(providers)}: edge targets"
        )
    details = artifact.manifest.engine.details
    if details.get("genai_tokenizer") == "unusable":
        raise UsageError(
            f"{artifact.directory}: a package for {kind} uses onnxruntime-genai's tokenizer, which does not fit this model "
            f"({details.get('genai_tokenizer_note')}); package it for python or linux-service, which use edgekit's"
        )
    if artifact.manifest.chat_template is None:
        raise UsageError(f"{artifact.directory} has no chat template, and the application is for conversations; give an instruct model")
