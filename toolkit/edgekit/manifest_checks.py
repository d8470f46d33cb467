"""What a manifest must hold beyond the types of its keys: numbers within bounds, names that stay inside the artifact, token ids."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from edgekit import strict_json
from edgekit.errors import ArtifactError

if TYPE_CHECKING:
    from edgekit.artifact import Manifest

MOST = {"context": 1 << 24, "vocab": 1 << 24, "layers": 1 << 20, "bytes": 1 << 50, "parameters": 1 << 50}
"""Far above anything known, and low enough that no engine is asked for absurd memory because of a number in a manifest."""


def check_version(data: object, known: int, where: str) -> None:
    """Looked at before the rest: a newer version than ``known`` may have any shape. Raises ArtifactError."""
    if not isinstance(data, dict) or data.get("format") != "edgekit":
        raise ArtifactError(f'{where}: no edgekit manifest ("format": "edgekit" is missing)')
    version = data.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ArtifactError(f"{where}: version: wanted a positive integer, found {version!r}")
    if version > known:
        raise ArtifactError(
            f"{where}: manifest version {version} is newer than this edgekit knows ({known}); upgrade: pip install --upgrade edgekit"
        )


def check_values(manifest: "Manifest", where: str, reserved: Collection[str]) -> None:
    """What types cannot say. reserved: names that no listed file has. Raises ArtifactError naming ``where`` and the key."""

    def within(key: str, value: float | None, least: float, most: float) -> None:
        if value is not None and not least <= value <= most:
            raise ArtifactError(
                f"{where}: {key}: wanted at least {least} and at most {most}, found {strict_json.brief(value)}; build the artifact again"
            )

    vocab, context, scheme = manifest.tokens.vocab_size, manifest.context, manifest.scheme
    within("tokens.vocab_size", vocab, 1, MOST["vocab"])
    for i, token in enumerate(manifest.tokens.stop):
        if not 0 <= token < vocab:
            raise ArtifactError(f"{where}: tokens.stop[{i}]: {token} is outside the vocabulary of {vocab}")
    within("tokens.bos", manifest.tokens.bos, 0, MOST["vocab"])
    for key, value in (("length", context.length), ("rope_switch", context.rope_switch), ("sliding_window", context.sliding_window)):
        within(f"context.{key}", value, 1, MOST["context"])
    within("model.parameters", manifest.model.parameters, 0, MOST["parameters"])
    within("scheme.bits_per_weight", scheme.bits_per_weight, 0, 64)
    forms = {"linear": scheme.linear, "embedding": scheme.embedding, "lm_head": scheme.lm_head}
    for name, form in (*forms.items(), *((f"exceptions.{name}", form) for name, form in scheme.exceptions.items())):
        within(f"scheme.{name}.bits", form.bits, 1, 64)
        within(f"scheme.{name}.group", form.group, 1, 1 << 24)
    for name, info in manifest.files.items():
        _check_name(name, where, reserved)
        within(f"files.{name}.bytes", info.bytes, 0, MOST["bytes"])
    within("release", manifest.release, 0, (1 << 63) - 1)
    for key, template in (("chat_template", manifest.chat_template), ("tool_template", manifest.tool_template)):
        if template is not None and template not in manifest.files:
            raise ArtifactError(f"{where}: {key}: {template!r} is not among the files")
    _check_vectors(manifest, where)


def _check_name(name: str, where: str, reserved: Collection[str]) -> None:
    parts = name.split("/")
    plain = not any(p in ("", ".", "..") for p in parts) and not any(c in '\\:*?"<>|' or not c.isprintable() for c in name)
    if not plain or name in reserved or any(len(p.encode()) > 255 for p in parts) or len(name.encode()) > 1024:
        raise ArtifactError(f"{where}: files: {strict_json.brief(name)} is no plain relative path inside the artifact")


def _check_vectors(manifest: "Manifest", where: str) -> None:
    """Token ids reach tokenizers and engines written in other languages."""
    given = manifest.conformance
    ids = {f"encode[{i}].ids": vector.ids for i, vector in enumerate(given.encode)}
    for i, vector in enumerate(given.greedy.vectors):
        ids |= {f"greedy.vectors[{i}].prompt": vector.prompt, f"greedy.vectors[{i}].continuation": vector.continuation}
    for name, tokens in ids.items():
        if wrong := [token for token in tokens if not 0 <= token < MOST["vocab"]]:
            raise ArtifactError(f"{where}: conformance.{name}: {wrong[0]} is no token id; build the artifact again")
