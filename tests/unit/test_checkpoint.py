"""Opening checkpoints: what is read, and what hostile, broken or foreign input is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from checkpoints import make_checkpoint, stored, write_json, write_raw_safetensors, write_safetensors
from edgekit.checkpoint import Source, declared_license, open_checkpoint, parse_object, read_header
from edgekit.errors import CheckpointError, ConfigError, ModelNotFound

HERE = Source("test", "local", None, None)
VALUES = np.array([[1.0, -2.5, 3e-5], [65504.0, 0.1, -0.0]], dtype=np.float32)


def opened(directory: Path):
    return open_checkpoint(directory, HERE)


def one_tensor(directory: Path, dtype: str = "F32") -> Path:
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", {"model_type": "llama"})
    write_safetensors(directory / "model.safetensors", {"w": VALUES}, dtype)
    return directory


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_values_are_read_exactly(dtype: str, tmp_path: Path) -> None:
    rows = opened(one_tensor(tmp_path / "m", dtype)).rows("w")
    expected = {"F32": VALUES, "F16": VALUES.astype(np.float16).astype(np.float32)}.get(dtype)
    if expected is None:
        expected = (np.frombuffer(stored(VALUES, "BF16"), dtype="<u2").astype(np.uint32) << 16).view(np.float32).reshape(VALUES.shape)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)


def test_the_safetensors_library_reads_the_same(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    directory = make_checkpoint(tmp_path / "m", "qwen2", grid=32)
    checkpoint = opened(directory)
    theirs = safetensors.load_file(directory / "model.safetensors")
    assert set(theirs) == set(checkpoint.tensors)
    for name, value in theirs.items():
        np.testing.assert_array_equal(checkpoint.rows(name), value.astype(np.float32))


def test_rows_reads_a_part(tmp_path: Path) -> None:
    checkpoint = opened(make_checkpoint(tmp_path / "m", "phi3"))
    name = "model.layers.1.self_attn.qkv_proj.weight"
    np.testing.assert_array_equal(checkpoint.rows(name, 100, 120), checkpoint.rows(name)[100:120])
    assert checkpoint.rows(name, 5, 5).shape == (0, 128)
    with pytest.raises(ValueError, match="rows 0:9999"):
        checkpoint.rows(name, 0, 9999)
    with pytest.raises(CheckpointError, match="no tensor 'nothing'"):
        checkpoint.rows("nothing")


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    whole = opened(make_checkpoint(tmp_path / "one", "llama3"))
    parts = opened(make_checkpoint(tmp_path / "three", "llama3", shards=3))
    assert set(whole.tensors) == set(parts.tensors)
    assert len({t.file for t in parts.tensors.values()}) == 3
    for name in whole.tensors:
        np.testing.assert_array_equal(whole.rows(name), parts.rows(name))


def test_a_scalar_and_an_empty_tensor(tmp_path: Path) -> None:
    directory = one_tensor(tmp_path / "m")
    write_safetensors(directory / "model.safetensors", {"s": np.array(2.0, np.float32), "e": np.zeros((0, 4), np.float32)})
    checkpoint = opened(directory)
    assert checkpoint.rows("s") == np.float32(2.0)
    assert checkpoint.rows("e").shape == (0, 4)


# Directories that are no checkpoint


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such directory"):
        opened(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ([], ConfigError, "no config.json"),
        (["adapter_config.json"], ConfigError, "LoRA adapter"),
        (["config.json"], CheckpointError, "neither model.safetensors nor"),
        (["config.json", "pytorch_model.bin"], CheckpointError, "safe_serialization=True"),
        (["config.json", "model-Q4_K_M.gguf"], CheckpointError, "GGUF"),
        (["config.json", "other.safetensors"], CheckpointError, "other.safetensors"),
    ],
)
def test_not_a_checkpoint(files: list[str], error: type[Exception], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(error, match=message):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "object is needed, not list"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"x": {"b": 1, "b": 1}}', "'b' is given twice"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"quantization_config": {"quant_method": "fp8"}}', "already quantized .*fp8"),
    ],
)
def test_bad_config(text: bytes, message: str, tmp_path: Path) -> None:
    directory = one_tensor(tmp_path / "m")
    (directory / "config.json").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        opened(directory)


def test_huge_integers_in_json_are_an_error_not_a_crash() -> None:
    with pytest.raises(ValueError):
        parse_object(b'{"a": ' + b"9" * 10_000 + b"}")


# Broken and hostile safetensors


def header(**tensors: object) -> dict[str, object]:
    return dict(tensors)


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("head", "data", "message"),
    [
        (b"not json", b"", "does not begin with"),
        (b"{bad", b"", "not valid JSON"),
        (b'{"w": {"dtype": "F32", "dtype": "F32"}}', b"", "given twice"),
        (header(w=entry(dtype="F99")), bytes(8), "unknown dtype 'F99'"),
        (header(w=entry(dtype=["F32"])), bytes(8), "unknown dtype"),
        (header(w=entry(shape=[-2])), bytes(8), "bad shape"),
        (header(w=entry(shape=[True, 2])), bytes(8), "bad shape"),
        (header(w=entry(shape=[2.0])), bytes(8), "bad shape"),
        (header(w=entry(shape=[1] * 40 + [2])), bytes(8), "bad shape"),
        (header(w=entry(shape=[2**62, 4])), bytes(8), "needs .* bytes"),
        (header(w=entry(shape=[3])), bytes(8), "needs 12 bytes, data_offsets give 8"),
        (header(w=entry(offsets=[8, 0])), bytes(8), "bad data_offsets"),
        (header(w=entry(offsets=[-8, 0])), bytes(8), "bad data_offsets"),
        (header(w=entry(offsets=[0, 8, 16])), bytes(8), "bad data_offsets"),
        (header(w={"dtype": "F32"}), bytes(8), "exactly dtype, shape and data_offsets"),
        (header(w=[1]), bytes(8), "exactly dtype"),
        (header(w=entry(), __metadata__={"a": 1}), bytes(8), "__metadata__"),
        (header(a=entry(), b=entry()), bytes(8), "overlaps"),
        (header(a=entry(), b=entry(offsets=[12, 20])), bytes(20), "hole of 4 bytes"),
        (header(w=entry(offsets=[4, 12])), bytes(12), "hole of 4 bytes"),
        (header(w=entry()), bytes(7), "truncated: .*promises .*'w' is cut"),
        (header(w=entry()), bytes(9), "1 bytes after the last tensor"),
    ],
)
def test_bad_safetensors(head: object, data: bytes, message: str, tmp_path: Path) -> None:
    directory = one_tensor(tmp_path / "m")
    write_raw_safetensors(directory / "model.safetensors", head, [data])
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(directory)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "truncated: 0 bytes"),
        (b"\x01\x02", "truncated"),
        ((1 << 40).to_bytes(8, "little"), "at most 100000000"),
        ((5000).to_bytes(8, "little") + b"{}", "truncated: 10 bytes, its header alone needs 5008"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a safetensors file"),
    ],
)
def test_no_safetensors_at_all(raw: bytes, message: str, tmp_path: Path) -> None:
    directory = one_tensor(tmp_path / "m")
    (directory / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        opened(directory)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = (one_tensor(tmp_path / "m") / "model.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_header(path)


def test_a_file_cut_after_opening(tmp_path: Path) -> None:
    checkpoint = opened(one_tensor(tmp_path / "m"))
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="ends inside tensor 'w'"):
        checkpoint.rows("w")


def test_unreadable_dtype_is_refused_when_used(tmp_path: Path) -> None:
    directory = one_tensor(tmp_path / "m")
    write_raw_safetensors(directory / "model.safetensors", {"w": entry("F8_E4M3", [8])}, [bytes(8)])
    with pytest.raises(CheckpointError, match=r"'w' .*F8_E4M3; edgekit reads BF16, F16, F32"):
        opened(directory).rows("w")


# The index of shards


def sharded(tmp_path: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    directory = make_checkpoint(tmp_path / "m", "llama", shards=3)
    return directory, json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory, _ = sharded(tmp_path)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is missing \(1 of 3"):
        opened(directory)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    directory, _ = sharded(tmp_path)
    path = directory / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model-00003-of-00003\.safetensors is truncated"):
        opened(directory)


def test_a_tensor_not_where_the_index_says(tmp_path: Path) -> None:
    directory, index = sharded(tmp_path)
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00003.safetensors"
    write_json(directory / "model.safetensors.index.json", index)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00003\.safetensors holds tensor 'lm_head.weight', but it does not"):
        opened(directory)


@pytest.mark.parametrize(
    "name", ["../m/x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "C:x.safetensors", "..\\x.safetensors", "x.bin", 5, None]
)
def test_the_index_cannot_lead_elsewhere(name: object, tmp_path: Path) -> None:
    directory, index = sharded(tmp_path)
    shutil.copy(directory / "model-00001-of-00003.safetensors", directory / "x.safetensors")
    write_json(directory / "model.safetensors.index.json", {"weight_map": {**index["weight_map"], "lm_head.weight": name}})
    with pytest.raises(CheckpointError, match="no safetensors file name"):
        opened(directory)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": "b", "a": "c"}}'])
def test_a_bad_index(text: str, tmp_path: Path) -> None:
    directory, _ = sharded(tmp_path)
    (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        opened(directory)


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ('---\ntags:\n- x\nlicense: "mit"\n---\nlicense: gpl\n', "mit"),
        ("# Model\nlicense: mit\n", None),
        ("---\ntags: []\n---\nlicense: mit\n", None),
    ],
)
def test_declared_license(card: str, license: str | None, tmp_path: Path) -> None:
    assert declared_license(tmp_path) is None
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert declared_license(tmp_path) == license


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make_checkpoint(tmp_path / "model", "llama")
    opened = Path.open

    def refuse(path: Path, *args: str, **kwargs: str) -> object:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path, "rb").read())  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: Permission denied; check its permissions"):
        open_checkpoint(tmp_path / "model", Source("model", "local", None, None))
