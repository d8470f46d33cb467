"""Addresses: ``hf://org/name[@revision]`` and ``oci://host[:port]/path[:tag][@sha256:digest]``."""

import re
from dataclasses import dataclass

from edgekit.artifact import MANIFEST, MANIFEST_LIMIT, SIGNATURE, SIGNATURE_LENGTH, Manifest, parse_manifest
from edgekit.errors import SignatureError, UsageError
from edgekit.signing import Trust, check_release, check_signature


@dataclass(frozen=True)
class HubPlace:
    repository: str
    revision: str | None


@dataclass(frozen=True)
class RegistryPlace:
    """reference: a tag, or a digest."""

    host: str
    repository: str
    reference: str

    @property
    def plain(self) -> bool:
        """Whether it is spoken to without TLS: only on this machine, as Docker does."""
        return self.host.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]") or self.host in ("localhost", "127.0.0.1", "[::1]")

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.repository}{'@' if ':' in self.reference else ':'}{self.reference}"


_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_REGISTRY = re.compile(
    r"oci://([A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?)/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(\w[\w.-]{0,127}))?(?:@(sha256:[0-9a-f]{64}))?"
)


def parse_place(address: str) -> HubPlace | RegistryPlace:
    """Raises UsageError naming both forms."""
    if found := _HUB.fullmatch(address):
        return HubPlace(found[1], found[2])
    if found := _REGISTRY.fullmatch(address):
        return RegistryPlace(found[1], found[2], found[4] or found[3] or "latest")
    raise UsageError(f"{address!r} is no address of a store; give hf://org/name[@revision] or oci://host/path[:tag]")


def check_head(raw: bytes, signature: bytes | None, trust: Trust | None, where: str) -> Manifest:
    """The manifest that a store sent, once its signature is right. Raises SignatureError, ArtifactError."""
    if trust is not None:
        if signature is None:
            raise SignatureError(f"{where} is not signed, and a key is required")
        check_signature(raw, signature, trust, where)
    manifest = parse_manifest(raw, f"{where}: {MANIFEST}")
    if trust is not None:
        check_release(manifest, trust, where)
    return manifest


LIMITS = {MANIFEST: MANIFEST_LIMIT, SIGNATURE: SIGNATURE_LENGTH}
"""Most bytes of what is read before anything vouches for its size."""
