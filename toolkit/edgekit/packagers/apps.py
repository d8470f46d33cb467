"""What the applications (Android, iOS, Windows, a page) have in common."""

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.listing import headline
from edgekit.packagers import Settings
from edgekit.packagers.parts import plain_name, shell_safe


def facts(artifact: Artifact) -> dict[str, object]:
    """What their templates speak of."""
    words = {"model": artifact.manifest.model.name, "headline": headline(artifact.manifest)}
    return {**dict(shell_safe(words)), "name": plain_name(artifact.manifest.model.name)}


def check_app(artifact: Artifact, settings: Settings, kind: str) -> None:
    """Raises UsageError: options of Python's packages, or no chat template."""
    refuse_python(settings, kind)
    if artifact.manifest.chat_template is None:
        raise UsageError(f"{artifact.directory} has no chat template, and the application is for conversations; give an instruct model")


def check_genai(artifact: Artifact, kind: str) -> None:
    """Raises UsageError where onnxruntime-genai's tokenizer gives other tokens: the application compares, and would not start."""
    details = artifact.manifest.engine.details
    if details.get("genai_tokenizer") in ("unusable", "differs"):
        raise UsageError(
            f"{artifact.directory}: a package for {kind} uses onnxruntime-genai's tokenizer, which does not fit this model "
            f"({details.get('genai_tokenizer_note')}); package it for python or linux-service, which use edgekit's"
        )


def refuse_python(settings: Settings, kind: str) -> None:
    """Raises UsageError: options that are about Python's packages."""
    given = {"--platform": settings.platforms, "--python": settings.python, "--wheels": settings.wheels, "--base": settings.base}
    if names := [name for name, value in given.items() if value]:
        raise UsageError(f"{names[0]} says nothing of a package for {kind}; leave it out")
