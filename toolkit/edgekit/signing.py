"""Signatures: who made an artifact, and that not a byte of it was changed since.

The signature is plain Ed25519 (RFC 8032) over the bytes of ``edgekit.json``, 64 bytes in ``edgekit.json.sig``. The manifest holds the
sha256 of every other file, so it covers them all; ``openssl pkeyutl -verify -rawin`` checks it too (docs/signing.md).

A release number in the manifest lets a device that has seen one refuse an older one, which would be as validly signed.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgekit import strict_json
from edgekit.artifact import (
    MANIFEST,
    SIGNATURE,
    SIGNATURE_LENGTH,
    Artifact,
    Manifest,
    check_digests,
    check_files,
    read_artifact,
    read_manifest,
)
from edgekit.errors import EngineMissing, OutputError, SignatureError, UsageError
from edgekit.files import replace_file
from edgekit.progress import Progress, silent

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PASSPHRASE = "EDGEKIT_KEY_PASSPHRASE"
PINNED = "EDGEKIT_TRUSTED_KEY"
KEY_LIMIT = 1 << 16
"""Bytes; a larger file is no key."""


@dataclass(frozen=True)
class Trust:
    """Whose artifacts are opened. keys: files of public keys, of which one must have signed. release: the lowest that will do."""

    keys: tuple[Path, ...]
    release: int = 0


def pinned(release: int = 0) -> Trust | None:
    """The keys that this process may trust, from EDGEKIT_TRUSTED_KEY: files, separated as in PATH. None where it is not set, or empty.

    Raises UsageError where it is set and names none: that would open every door.
    """
    value = os.environ.get(PINNED, "")
    if not value:
        return None
    names = [name for name in value.split(os.pathsep) if name.strip()]
    if not names:
        raise UsageError(f"{PINNED}={value!r} names no file of a public key; name one, or unset it")
    return Trust(tuple(map(Path, names)), release)


def make_keys(name: Path, passphrase: str | None = None) -> tuple[Path, Path]:
    """Writes ``name``.key (private, PKCS 8 PEM, for its owner alone) and ``name``.pub (PEM). passphrase: encrypts the private one.

    Raises OutputError where one of them is there already: a key is never overwritten.
    """
    serialization = _cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    hidden = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    private, public = name.with_name(name.name + ".key"), name.with_name(name.name + ".pub")
    pem = serialization.Encoding.PEM
    _write_new(private, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden), 0o600)
    try:
        _write_new(public, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo), 0o644)
    except OutputError:
        private.unlink()
        raise
    return private, public


def sign(directory: Path, key: Path, *, release: int | None = None, passphrase: str | None = None, progress: Progress = silent) -> Manifest:
    """Signs an artifact after comparing every digest. release: written into the manifest first; None leaves what is there.

    Asks for no signature by a pinned key: this is where it comes from.

    Killed in between, the artifact opens without trust as before, and as trusted not at all.
    Raises ArtifactError (also for a file that the manifest does not list), UsageError (the key), OutputError.
    """
    private = _private(key, passphrase)
    artifact = read_artifact(directory)
    check_files(artifact)
    check_digests(artifact, progress)
    raw, manifest = read_manifest(directory), artifact.manifest
    if release is not None and release != manifest.release:
        if json.loads(manifest.to_json()) != strict_json.load(raw):
            raise UsageError(
                f"{directory / MANIFEST} holds keys that this edgekit does not know; set its release with the edgekit that made it"
            )
        manifest = replace(manifest, release=release)
        raw = manifest.to_json().encode()
        _replace(directory / MANIFEST, raw)
    _replace(directory / SIGNATURE, private.sign(raw))
    return manifest


def open_trusted(directory: Path | str, trust: Trust, progress: Progress = silent) -> Artifact:
    """``artifact.load_artifact`` with ``trust``: one of the keys must have signed it, nothing is parsed before, every digest is compared.

    Raises SignatureError: not signed, signed by somebody else, of an older release; ArtifactError: another file is there too, a
    file was changed or is missing; UsageError: a key cannot be read; EngineMissing: no cryptography here.
    """
    directory = Path(directory)
    raw = read_manifest(directory)
    check_signature(raw, _signature(directory), trust, str(directory))
    artifact = read_artifact(directory, raw=raw)
    check_release(artifact.manifest, trust, str(directory))
    check_files(artifact)
    check_digests(artifact, progress)
    return artifact


def check_signature(raw: bytes, signature: bytes, trust: Trust, where: str) -> None:
    """raw: the bytes of the manifest. Raises SignatureError where none of the keys has signed them."""
    _cryptography()
    from cryptography.exceptions import InvalidSignature

    for path in trust.keys:
        try:
            _public(path).verify(signature, raw)
            return
        except InvalidSignature:
            continue
    keys = ", ".join(map(str, trust.keys))
    raise SignatureError(
        f"{where}: its signature was made by none of the trusted keys ({keys}), or the manifest was changed; do not use it"
    )


def check_release(manifest: Manifest, trust: Trust, where: str) -> None:
    """Raises SignatureError for a release below the lowest trusted one."""
    if (manifest.release or 0) < trust.release:
        raise SignatureError(
            f"{where}: release {manifest.release or 'without a number'} is older than {trust.release}, the lowest to be accepted"
        )


def _signature(directory: Path) -> bytes:
    path = directory / SIGNATURE
    try:
        with path.open("rb") as file:
            signature = file.read(SIGNATURE_LENGTH + 1)
    except FileNotFoundError:
        raise SignatureError(f"{directory} is not signed, and a key is required; sign it: edge sign {directory} --key FILE") from None
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(signature) != SIGNATURE_LENGTH:
        raise SignatureError(f"{path}: no Ed25519 signature, which has {SIGNATURE_LENGTH} bytes; do not use the artifact")
    return signature


def _private(path: Path, passphrase: str | None) -> "Ed25519PrivateKey":
    serialization = _cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(_key_file(path), passphrase.encode() if passphrase else None)
    except TypeError:
        what = (
            "is encrypted; give its passphrase in the environment" if not passphrase else "is not encrypted, yet there is a passphrase in"
        )
        raise UsageError(f"{path} {what}: {PASSPHRASE}") from None
    except ValueError:
        raise UsageError(f"{path} is no private key in PEM, or {PASSPHRASE} is wrong; make one: edge keygen NAME") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds a key of another kind than Ed25519; make one: edge keygen NAME")
    return key


def _public(path: Path) -> "Ed25519PublicKey":
    serialization = _cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(_key_file(path))
    except ValueError:
        raise UsageError(f"{path} is no public key in PEM; `edge keygen` writes one as NAME.pub") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} holds a key of another kind than Ed25519; `edge keygen` writes one as NAME.pub")
    return key


def _key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(KEY_LIMIT)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror or error}") from None


def _cryptography() -> ModuleType:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise EngineMissing('signatures need the package cryptography: pip install "edgekit[sign]"') from None
    return serialization


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    except FileExistsError:
        raise OutputError(f"{path} exists, and a key is never overwritten; choose another name") from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _replace(path: Path, content: bytes) -> None:
    try:
        replace_file(path, content)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
