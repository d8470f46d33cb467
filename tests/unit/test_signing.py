"""Signatures: made and checked by ourselves, checked and made by OpenSSL, and what happens when anything was changed."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import edgekit
from command import Edge
from edgekit.artifact import MANIFEST, SIGNATURE, load_artifact
from edgekit.errors import ArtifactError, OutputError, SignatureError, UsageError
from edgekit.signing import Trust, make_keys, open_trusted, sign
from tiny_artifact import build_tiny


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    artifact = build_tiny(tmp_path_factory.mktemp("signed"), "null")
    sign(artifact, keys[0], release=7)
    return artifact


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "copy"))


def test_a_signed_artifact_opens_for_whoever_trusts_the_key(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_keys(tmp_path / "other")[1]
    assert open_trusted(signed, Trust((other, keys[1]), release=7)).manifest == load_artifact(signed).manifest
    with edgekit.load(signed, trust=Trust((keys[1],))) as runtime:
        assert runtime.manifest.release == 7


def test_the_engine_is_not_asked_before_the_signature(copy: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / SIGNATURE).write_bytes(bytes(64))
    monkeypatch.setattr("edgekit.runtime.open_session", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(SignatureError, match="none of the trusted keys"):
        edgekit.load(copy, trust=Trust((keys[1],)))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length(copy: Path, keys: tuple[Path, Path], length: int) -> None:
    (copy / SIGNATURE).write_bytes(bytes(length))
    with pytest.raises(SignatureError, match="64 bytes"):
        open_trusted(copy, Trust((keys[1],)))


def test_not_signed_or_by_another_key(copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "other")
    with pytest.raises(SignatureError, match="none of the trusted keys"):
        open_trusted(copy, Trust((public,)))
    sign(copy, private)
    with pytest.raises(SignatureError, match="none of the trusted keys"):
        open_trusted(copy, Trust((keys[1],)))
    (copy / SIGNATURE).unlink()
    with pytest.raises(SignatureError, match=r"not signed.*edge sign"):
        open_trusted(copy, Trust((keys[1],)))


def test_an_older_release_is_refused(copy: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(SignatureError, match="release 7 is older than 8"):
        open_trusted(copy, Trust((keys[1],), release=8))
    assert sign(copy, keys[0]).release == 7
    assert sign(copy, keys[0], release=8).release == 8
    assert open_trusted(copy, Trust((keys[1],), release=8)).manifest.release == 8


def test_a_file_that_nobody_signed(copy: Path, keys: tuple[Path, Path]) -> None:
    (copy / "extra.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"extra\.json is no part"):
        open_trusted(copy, Trust((keys[1],)))
    with pytest.raises(ArtifactError, match=r"extra\.json is no part"):
        sign(copy, keys[0])


def test_random_tampering_is_caught(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """bench/tamper.py does a thousand."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
    try:
        from tamper import tamper
    finally:
        del sys.path[0]
    random, trust = Random(1), Trust((keys[1],), release=7)
    for i in range(60):
        copy = Path(shutil.copytree(signed, tmp_path / str(i)))
        what = tamper(copy, random)
        with pytest.raises((SignatureError, ArtifactError)):
            open_trusted(copy, trust)
            pytest.fail(what)
        shutil.rmtree(copy)


def test_a_changed_file_cannot_be_signed(copy: Path, keys: tuple[Path, Path]) -> None:
    path = copy / "tokenizer.json"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: its content, the tokenizer, is not what was built"):
        sign(copy, keys[0])


def test_openssl_agrees(signed: Path, keys: tuple[Path, Path], copy: Path, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    verify = [
        openssl,
        "pkeyutl",
        "-verify",
        "-rawin",
        "-pubin",
        "-inkey",
        keys[1],
        "-in",
        signed / MANIFEST,
        "-sigfile",
        signed / SIGNATURE,
    ]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    theirs, public = tmp_path / "theirs.key", tmp_path / "theirs.pub"
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", theirs], check=True)
    subprocess.run([openssl, "pkey", "-in", theirs, "-pubout", "-out", public], check=True)
    subprocess.run([openssl, "pkeyutl", "-sign", "-rawin", "-inkey", theirs, "-in", copy / MANIFEST, "-out", copy / SIGNATURE], check=True)
    open_trusted(copy, Trust((public,)))


def test_keys(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "k", "secret")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600 or sys.platform == "win32"
    assert b"ENCRYPTED" in private.read_bytes() and b"PUBLIC" in public.read_bytes()
    with pytest.raises(OutputError, match="never overwritten"):
        make_keys(tmp_path / "k")
    private.unlink()
    with pytest.raises(OutputError, match=r"k\.pub exists"):
        make_keys(tmp_path / "k")
    assert not private.exists()


def test_wrong_keys(copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    encrypted = make_keys(tmp_path / "k", "secret")[0]
    with pytest.raises(UsageError, match="is encrypted; give its passphrase"):
        sign(copy, encrypted)
    with pytest.raises(UsageError, match="EDGEKIT_KEY_PASSPHRASE is wrong"):
        sign(copy, encrypted, passphrase="other")
    with pytest.raises(UsageError, match="is not encrypted"):
        sign(copy, keys[0], passphrase="secret")
    sign(copy, encrypted, passphrase="secret")
    with pytest.raises(UsageError, match="no private key"):
        sign(copy, keys[1])
    with pytest.raises(UsageError, match="no public key"):
        open_trusted(copy, Trust((encrypted,)))
    with pytest.raises(UsageError, match="cannot be read"):
        open_trusted(copy, Trust((tmp_path / "none",)))


def test_a_release_is_not_set_over_keys_that_are_not_understood(copy: Path, keys: tuple[Path, Path]) -> None:
    text = (copy / MANIFEST).read_text(encoding="utf-8")
    (copy / MANIFEST).write_text(text.replace('{\n  "format"', '{\n  "later": 1,\n  "format"', 1), encoding="utf-8")
    sign(copy, keys[0])
    with pytest.raises(UsageError, match="keys that this edgekit does not know"):
        sign(copy, keys[0], release=9)


def test_commands(edge: Edge, tmp_path: Path, copy: Path) -> None:
    assert edge("keygen", str(tmp_path / "mine")).code == 0
    private, public = str(tmp_path / "mine.key"), str(tmp_path / "mine.pub")
    ended = edge("sign", str(copy), "--key", private, "--release", "9", "--quiet")
    assert ended.code == 0, ended.err
    assert "signed by a trusted key" in edge("verify", str(copy), "--trusted-key", public, "--min-release", "9").out
    assert "--trusted-key" in edge("verify", str(copy)).out
    assert edge("run", str(copy), "hello", "--max-tokens", "2", "--trusted-key", public).code == 0
    older = edge("verify", str(copy), "--trusted-key", public, "--min-release", "10")
    assert older.code == SignatureError.exit_code and "release 9 is older than 10" in older.err
    assert edge("verify", str(copy), "--min-release", "1").code == UsageError.exit_code
    (copy / SIGNATURE).unlink()
    unsigned = edge("run", str(copy), "hello", "--trusted-key", public)
    assert unsigned.code == SignatureError.exit_code and "is not signed" in unsigned.err
