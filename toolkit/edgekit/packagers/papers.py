"""The papers of every package: LICENSE, NOTICE, licences/, MODEL_CARD.md, sbom.cdx.json and SHA256SUMS."""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit import __version__
from edgekit.artifact import MANIFEST, Artifact, Manifest, digests
from edgekit.console import size
from edgekit.listing import description
from edgekit.packagers.parts import Component
from edgekit.progress import Progress
from edgekit.wheels import own_license

SUMS = "SHA256SUMS"
EXPRESSION = re.compile(r"\(?[A-Za-z0-9.+-]+( (AND|OR|WITH) \(?[A-Za-z0-9.+-]+\)?)*\)?")
SPDX = re.compile(r"(Apache-2\.0|MIT|BSD-[23]-Clause|0BSD|MPL-2\.0|PSF-2\.0|Python-2\.0|Zlib|ISC|Unlicense|CC0-1\.0|LGPL-\S+|GPL-\S+)")


def write(artifact: Artifact, kind: str, folder: Path, components: Sequence[Component]) -> None:
    """All but the checksums."""
    (folder / "LICENSE").write_text(own_license(), encoding="utf-8", newline="\n")
    _text(folder / "NOTICE", notice(artifact.manifest, components))
    _text(folder / "MODEL_CARD.md", model_card(artifact.manifest))
    _text(folder / "sbom.cdx.json", json.dumps(sbom(artifact, kind, components), indent=2, ensure_ascii=False) + "\n")
    for one in components:
        for name, content in one.papers:
            place = folder / "licences" / f"{one.name.replace('/', '_')}-{one.version}" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def notice(manifest: Manifest, components: Sequence[Component]) -> str:
    """Who made what is in the package, and under which licence. It claims nothing that nobody declared."""
    model = manifest.model
    licence = model.license or "not declared by its checkpoint: ask its publisher before you pass it on"
    lines = [
        f"edgekit {__version__}: Apache-2.0 (LICENSE)",
        f"{model.name}, the model{f' (revision {model.revision})' if model.revision else ''}: {licence}",
        f"  quantized to {manifest.scheme.name} by {manifest.producer}: the weights are not those that its publisher released",
        *(f"{one.name} {one.version}: {one.license or 'licence not declared in its metadata'}" for one in components),
    ]
    return "\n".join(lines) + "\n"


def model_card(manifest: Manifest) -> str:
    """What the manifest knows; what a model is for and how it was trained is in its publisher's own card."""
    rows = [f"| {label} | {text} |" for label, text in _labelled(description(manifest, checked=True))]
    origin = f" ({manifest.model.name}, revision {manifest.model.revision})" if manifest.model.revision else f" ({manifest.model.name})"
    return "\n".join(
        [
            f"# {manifest.model.name}",
            "",
            f"Quantized by {manifest.producer}. Intended use, training data, limits and safety are described by the publisher of the "
            f"checkpoint{origin}; quantizing changes none of them, and what it cost is measured below where it says so.",
            "",
            "| | |",
            "| --- | --- |",
            *rows,
            "",
            f"In all {size(sum(info.bytes for info in manifest.files.values()))}. Every file's sha256 is in {MANIFEST}.",
            "",
        ]
    )


def _labelled(lines: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(label, text.replace("|", "\\|")) for label, text in lines]


def sbom(artifact: Artifact, kind: str, components: Sequence[Component]) -> dict[str, object]:
    """CycloneDX 1.6. It has no date and a serial number made of its content: the same package has the same bill."""
    manifest = artifact.manifest
    digest = hashlib.sha256((artifact.directory / MANIFEST).read_bytes()).hexdigest()
    model: dict[str, object] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.model.name,
        "version": manifest.model.revision or digest[:16],
        "licenses": _licenses(manifest.model.license),
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "modelCard": {"modelParameters": {"task": "text-generation", "modelArchitecture": manifest.model.architecture}},
        "components": [
            {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [{"alg": "SHA-256", "content": info.sha256}]}
            for name, info in manifest.files.items()
        ],
    }
    libraries: list[dict[str, object]] = [
        {
            "type": "library",
            "bom-ref": one.purl,
            "name": one.name,
            "version": one.version,
            "purl": one.purl,
            "licenses": _licenses(one.license),
            **({"hashes": [{"alg": "SHA-256", "content": one.sha256}]} if one.sha256 else {}),
        }
        for one in components
    ]
    main = {"type": "application", "bom-ref": "package", "name": f"{manifest.model.name} for {kind}", "version": f"{manifest.release or 0}"}
    parts = [model, *libraries]
    body: dict[str, object] = {
        "metadata": {"component": main, "tools": {"components": [{"type": "application", "name": "edgekit", "version": __version__}]}},
        "components": parts,
        "dependencies": [{"ref": "package", "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        **body,
    }


def _licenses(said: str | None) -> list[dict[str, object]]:
    """An SPDX expression where it is one, else a name as its author wrote it."""
    if said is None:
        return []
    ids = [word.strip("()") for word in said.split() if word not in ("AND", "OR", "WITH")]
    if EXPRESSION.fullmatch(said) and all(SPDX.fullmatch(word) for word in ids):
        return [{"expression": said}]
    return [{"license": {"name": said}}]


def checksums(folder: Path, more: Mapping[str, bytes], progress: Progress) -> None:
    """SHA256SUMS, for ``sha256sum -c``; ``more``: files that are written after it."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = digests({name: folder / name for name in names}, "digest of the package", progress)
    sums = {name: info.sha256 for name, info in found.items()} | {name: hashlib.sha256(text).hexdigest() for name, text in more.items()}
    _text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))
