"""What is measured: an artifact, and how many bytes one token makes a processor read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from edgekit import strict_json
from edgekit.artifact import MANIFEST, Artifact, Manifest
from edgekit.engines.observing import observer
from edgekit.files import shown
from edgekit.profile.report import Subject

TEXT = (".json", ".jinja", ".md", ".txt", ".xml")


def subject(artifact: Artifact) -> Subject:
    """Of an artifact that is complete."""
    manifest = artifact.manifest
    config = _config(artifact.directory)
    heads, layers = _number(config, "num_attention_heads", 1), _number(config, "num_hidden_layers", 0)
    head = _number(config, "head_dim", _number(config, "hidden_size", 0) // heads)
    numbers = 2 * layers * _number(config, "num_key_value_heads", heads) * head
    return Subject(
        directory=shown(artifact.directory),
        manifest_sha256=hashlib.sha256((artifact.directory / MANIFEST).read_bytes()).hexdigest(),
        model=manifest.model.name,
        parameters=manifest.model.parameters,
        target=manifest.target,
        engine=manifest.engine.name,
        scheme=manifest.scheme.name,
        bits_per_weight=manifest.scheme.bits_per_weight,
        context=manifest.context.length,
        bytes=sum(info.bytes for info in manifest.files.values()),
        weights_read=_weights_read(manifest, config),
        cache_token=numbers * observer(manifest.engine.name).cache_bytes(manifest),
        cache_window=manifest.context.sliding_window,
    )


def weight_files(artifact: Artifact) -> list[Path]:
    """All but texts and tokenizers."""
    return [artifact.directory / name for name in _weights(artifact.manifest)]


def read_for_token(of: Subject, depth: int) -> int:
    """Bytes of weights and KV cache that the token after ``depth`` others has to read."""
    return of.weights_read + of.cache_token * min(depth, of.cache_window or depth)


def _weights(manifest: Manifest) -> list[str]:
    return [name for name in manifest.files if not name.endswith(TEXT) and "tokenizer" not in name]


def _weights_read(manifest: Manifest, config: Mapping[str, object]) -> int:
    """The files of the weights, without the embedding where lm_head does not read it as well."""
    total = sum(manifest.files[name].bytes for name in _weights(manifest))
    if config.get("tie_word_embeddings", False):
        return total
    form = manifest.scheme.embedding
    bits = form.bits if form.group is None else form.bits + (16 + form.bits) / form.group
    embedding = _number(config, "vocab_size", 0) * _number(config, "hidden_size", 0) * bits / 8
    return max(0, total - round(embedding))


def _config(directory: Path) -> Mapping[str, object]:
    """The model's own config.json, which every artifact holds; empty where it does not."""
    try:
        found = strict_json.load((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(config: Mapping[str, object], key: str, default: int) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 32 else default
