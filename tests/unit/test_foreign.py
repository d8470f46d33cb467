"""What lies where a checkpoint should be: pointers, web pages, pickles, adapters, artifacts, quantized weights; and what to do next."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from checkpoints import make_checkpoint, write_json, write_raw_safetensors
from edgekit.catalog import resolve
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.errors import CheckpointError, ConfigError, ModelError, ModelNotFound
from edgekit.models import open_model
from edgekit.progress import silent
from edgekit.reference import reference_logits_many

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 988097824\n"
HERE = Source("test", "local", None, None)
INDEX = "model.safetensors.index.json"


def opened(directory: Path):
    return open_model(open_checkpoint(directory, HERE))


def said(directory: Path) -> str:
    with pytest.raises(ModelError) as raised:
        opened(directory)
    return str(raised.value)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "m", "llama")


SMALL = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "added_tokens.json"]


@pytest.mark.parametrize("name", [*SMALL, "model.safetensors"])
def test_a_pointer_of_git_lfs_in_any_file(whole: Path, name: str) -> None:
    (whole / name).write_bytes(POINTER)
    message = said(whole)
    assert f"{whole / name} is a Git LFS pointer that stands for 988,097,824 bytes" in message
    assert f"git -C {whole} lfs pull" in message and "hf download" in message


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", INDEX, "additional_chat_templates/tool_use.jinja"])
def test_a_pointer_among_several(tmp_path: Path, name: str) -> None:
    directory = make_checkpoint(tmp_path / "m", "llama", shards=3)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_bytes(POINTER)
    assert f"{directory / name} is a Git LFS pointer" in said(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"/annex/objects/SHA256E-s988097824--abc.safetensors\n", "a pointer of git-annex, not the file itself"),
        (b"../../.git/annex/objects/XX/YY/SHA256E-s9--abc/SHA256E-s9--abc", "a pointer of git-annex, not the file itself"),
        (b"<!DOCTYPE html><html><head><title>Sign in</title>", "is a web page"),
        (b"\n <HTML>404</HTML>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page (or XML)"),
        (b"", "is empty"),
        (bytes(4096), "zeros only"),
        (b"PK\x03\x04rest of a zip", "a zip archive, as PyTorch's pickles are"),
        (b"\x80\x02}q\x00", "is a pickle"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    ],
)
def test_other_things_under_its_name(whole: Path, name: str, content: bytes, what: str) -> None:
    (whole / name).write_bytes(content)
    message = said(whole)
    assert str(whole / name) in message and what in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_link_that_leads_nowhere(whole: Path, name: str) -> None:
    (whole / name).unlink()
    (whole / name).symlink_to("../.git/annex/objects/ab/cd/SHA256E-s9--x")
    assert f"{whole / name} is a link to ../.git/annex/objects/ab/cd/SHA256E-s9--x, which is not there: run `git -C" in said(whole)
    (whole / name).unlink()
    (whole / name).symlink_to("../../blobs/abc")
    assert "which is not there: download it again" in said(whole)


def test_an_answer_of_the_hub_saved_as_config(whole: Path) -> None:
    (whole / "config.json").write_text('{"error": "Entry not found"}', encoding="utf-8")
    assert "holds an error that answered its download, 'Entry not found'" in said(whole)
    (whole / "config.json").write_text("Entry not found", encoding="utf-8")
    assert "It begins with b'Entry not found': download it again" in said(whole)


# Weights of another kind


def with_tensors(directory: Path, added: dict[str, tuple[str, list[int]]], removed: str) -> Path:
    """The checkpoint with the headers of some tensors changed; bytes do not matter."""
    bits = {"I32": 32, "F16": 16, "U8": 8, "U32": 32, "F32": 32, "F8_E4M3": 8, "BF16": 16, "I8": 8}
    entries = {n: (i.dtype, list(i.shape)) for n, i in open_checkpoint(directory, HERE).tensors.items() if n != removed}
    header: dict[str, object] = {}
    at = 0
    for name, (dtype, shape) in {**entries, **added}.items():
        size = int(np.prod(shape)) * bits[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    write_raw_safetensors(directory / "model.safetensors", header, [bytes(at)])
    return directory


Q = "model.layers.0.self_attn.q_proj"
GPTQ = {f"{Q}.qweight": ("I32", [16, 128]), f"{Q}.qzeros": ("I32", [1, 16]), f"{Q}.scales": ("F16", [1, 128])}
AWQ = {f"{Q}.qweight": ("I32", [128, 16]), f"{Q}.qzeros": ("I32", [1, 16]), f"{Q}.scales": ("F16", [1, 128])}
W = f"{Q}.weight"


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("GPTQ", GPTQ),
        ("GPTQ", {**GPTQ, f"{Q}.g_idx": ("I32", [128])}),
        ("AWQ", AWQ),
        ("bitsandbytes", {W: ("U8", [8192, 1]), f"{W}.absmax": ("F32", [256]), f"{W}.quant_map": ("F32", [16])}),
        ("bitsandbytes", {W: ("I8", [128, 128]), f"{Q}.SCB": ("F32", [128])}),
        ("FP8", {W: ("F8_E4M3", [128, 128]), f"{Q}.weight_scale_inv": ("F32", [1, 1])}),
        ("FP8", {W: ("F8_E4M3", [128, 128]), f"{Q}.weight_scale": ("F32", [1])}),
        ("FP8", {W: ("F8_E4M3", [128, 128])}),
        ("compressed-tensors", {f"{W}_packed": ("I32", [128, 16]), f"{W}_scale": ("BF16", [128, 1]), f"{W}_shape": ("I32", [2])}),
        ("INT8", {W: ("I8", [128, 128]), f"{W}_scale": ("BF16", [128, 1])}),
        ("MLX", {W: ("U32", [128, 16]), f"{Q}.scales": ("F16", [128, 2]), f"{Q}.biases": ("F16", [128, 2])}),
        ("HQQ", {f"{Q}.W_q": ("U8", [128, 64])}),
    ],
)
def test_quantized_weights_by_their_tensors(whole: Path, kind: str, tensors: dict[str, tuple[str, list[int]]]) -> None:
    (whole / "README.md").write_text("---\nlicense: mit\nbase_model:\n- org/original\n---\n", encoding="utf-8")
    message = said(with_tensors(whole, tensors, W))
    assert f"already quantized ({kind}, by t" in message
    assert "take the model's original bf16 or float16 checkpoint: org/original, its card says" in message


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"bits": 4, "group_size": 64}, "unknown method, 4 bits"),
        ([4], "quantization_config is"),
    ],
)
def test_quantized_weights_by_config(whole: Path, value: object, what: str) -> None:
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    write_json(whole / "config.json", config | {"quantization_config": value})
    message = said(whole)
    assert f"already quantized ({'quantization_config: ' if isinstance(value, dict) else ''}{what}" in message
    assert "remove quantization_config from config.json" in message


@pytest.mark.parametrize(
    "value", [{}, None, {"load_in_4bit": False, "load_in_8bit": False}, {"quant_method": None}, {"quant_method": "bitsandbytes"}]
)
def test_a_quantization_that_asks_for_nothing(whole: Path, value: object) -> None:
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    write_json(whole / "config.json", config | {"quantization_config": value})
    opened(whole)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00002.bin", "model.pth"])
def test_pickles_are_converted_elsewhere(whole: Path, name: str) -> None:
    (whole / "model.safetensors").rename(whole / name)
    message = said(whole)
    assert f"AutoModelForCausalLM as M; M.from_pretrained({str(whole)!r}, dtype='auto').save_pretrained('NEW'" in message


def test_a_makers_own_layout(whole: Path) -> None:
    (whole / "model.safetensors").rename(whole / "consolidated.safetensors")
    assert "Mistral's own layout" in said(whole) and "model*.safetensors" in said(whole)
    (whole / "config.json").rename(whole / "params.json")
    assert "the maker's own layout (params.json, consolidated.*)" in said(whole)


def test_it_is_no_harm_beside_the_usual_layout(whole: Path) -> None:
    (whole / "consolidated.safetensors").write_bytes(POINTER)
    opened(whole)


# Adapters


def adapter(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    write_json(directory / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    write_raw_safetensors(directory / "adapter_model.safetensors", {}, [])


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_merged_first(tmp_path: Path, with_config: bool) -> None:
    adapter(tmp_path / "a")
    if with_config:
        write_json(tmp_path / "a" / "config.json", {"model_type": "llama"})
    message = said(tmp_path / "a")
    assert "a PEFT adapter ('LORA') of 'org/base'" in message
    assert f"AutoPeftModelForCausalLM as M; M.from_pretrained({str(tmp_path / 'a')!r}, dtype='auto').merge_and_unload()" in message
    assert "T.from_pretrained('org/base').save_pretrained('MERGED')" in message


def test_tensors_of_an_adapter_that_was_not_merged(whole: Path) -> None:
    tensors = {f"{Q}.base_layer.weight": ("BF16", [128, 128]), f"{Q}.lora_A.default.weight": ("BF16", [8, 128])}
    assert "merge_and_unload" in said(with_tensors(whole, tensors, W))
    assert "merge_and_unload" in said(with_tensors(make_checkpoint(whole, "llama"), {f"{Q}.lora_A.weight": ("BF16", [8, 128])}, ""))


def test_an_adapter_beside_a_whole_model_is_told(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(whole)
    assert not caplog.records
    adapter(whole)
    opened(whole)
    assert f"{whole / 'adapter_model.safetensors'} is an adapter that is NOT applied" in caplog.text


# What is given


def given(model: Path | str) -> str:
    with pytest.raises(ModelError) as raised:
        resolve(str(model), progress=silent)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("Phi-3.5-mini-instruct-Q4_K_M.gguf", "a GGUF file, already quantized, which edgekit does not read"),
        ("Phi-3.5-mini-instruct-Q4_K_M.gguf", "may be of phi3.5-mini, which the catalogue knows: `edge build phi3.5-mini"),
        ("model.safetensors", "is a file; give its directory: "),
        ("model-00001-of-00003.safetensors", "is a file; give its directory: "),
        ("config.json", "is a file; give its directory: "),
        ("model.onnx", "is an ONNX graph, exported already"),
        ("openvino_model.xml", "is an OpenVINO graph, exported already"),
        ("pytorch_model.bin", "PyTorch pickles"),
        ("model.tar.gz", "is an archive: unpack it"),
        ("adapter_model.safetensors", "merge_and_unload"),
        ("notes.txt", "is a file; give its directory: "),
    ],
)
def test_a_file_is_given(whole: Path, name: str, what: str) -> None:
    if not (whole / name).exists():
        (whole / name).write_bytes(b"x")
    assert what in given(whole / name)


@pytest.mark.parametrize("name", ["nothing.gguf", "org/nothing.gguf", "org/model.safetensors", "./model.onnx", "dir/model.onnx", "M.PT"])
def test_a_file_that_is_not_there_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert given(name).startswith(f"no such file: {Path(name)}")


def test_an_artifact_is_given(tmp_path: Path, whole: Path) -> None:
    for config in (False, True):
        directory = tmp_path / f"artifact-{config}"
        directory.mkdir()
        write_json(directory / "edgekit.json", {"model": {"name": "org/name"}} if config else {})
        (directory / "model.onnx").write_bytes(b"x")
        if config:  # as MLX's are
            write_json(directory / "config.json", {"model_type": "llama", "quantization_config": {"bits": 4}})
            (directory / "model.safetensors").write_bytes(b"x")
        assert "It is an edgekit artifact, built already: `edge chat" in given(directory)
        assert ("made of, org/name, to build for another target" if config else "`edge inspect") in given(directory)
        assert "is a file of an edgekit artifact" in given(directory / "model.onnx")
    (whole / "model.safetensors").rename(whole / "model.onnx")
    assert "a model exported for ONNX already" in given(whole)


def test_the_directory_above_is_given(tmp_path: Path) -> None:
    inner = make_checkpoint(tmp_path / "parent" / "one", "llama")
    assert f"{inner} is one: give that directory" in given(inner.parent)
    other = make_checkpoint(tmp_path / "parent" / "two", "llama")
    assert f"give one of {inner}, {other}" in given(inner.parent)


def test_a_folder_of_the_hubs_cache_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name"
    snapshot = make_checkpoint(folder / "snapshots" / ("a" * 40), "llama")
    message = given(folder)
    assert f"its snapshot, {snapshot}, or the model's name on the hub, org/name" in message
    assert f"{snapshot} is one" in given(folder / "snapshots")


def test_a_directory_by_nearly_its_name(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "models" / "my-phi", "llama")
    assert f"no such directory: {directory}i; did you mean {directory}?" in given(f"{directory}i")


# Tied weights under the name of lm_head, and tensors without "model."


def head_only(name: str) -> str:
    return "lm_head.weight" if name == "model.embed_tokens.weight" else name


def bare(name: str) -> str:
    return name.removeprefix("model.")


@pytest.mark.parametrize("rename", [head_only, bare])
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_under_other_names_are_the_same_model(tmp_path: Path, rename: Callable[[str], str], shards: int) -> None:
    """transformers reads both (tests/oracle/test_ignored_transformers.py)."""
    directory = make_checkpoint(tmp_path / "m", "llama3", shards=shards)
    model = opened(directory)
    before = reference_logits_many(model.decoder, model.tensor, [[1, 2, 3]])[0]
    files = sorted(directory.glob("*.safetensors"))
    for path in files:
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        write_raw_safetensors(path, {rename(name): value for name, value in header.items()}, [raw[8 + length :]])
    if shards > 1:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = {rename(name): file for name, file in index["weight_map"].items()}
        write_json(directory / INDEX, index)
    renamed = opened(directory)
    np.testing.assert_array_equal(reference_logits_many(renamed.decoder, renamed.tensor, [[1, 2, 3]])[0], before)
    # Engines that keep a checkpoint's names keep the usual ones.
    assert renamed.slices == model.slices and set(renamed.checkpoint.tensors) == set(model.checkpoint.tensors)


def test_what_is_tied_must_be_somewhere(tmp_path: Path) -> None:
    directory = with_tensors(make_checkpoint(tmp_path / "m", "llama3"), {}, "model.embed_tokens.weight")
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.embed_tokens\.weight'"):
        opened(directory)
    untied = make_checkpoint(tmp_path / "u", "llama")
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.embed_tokens\.weight'"):
        opened(with_tensors(untied, {}, "model.embed_tokens.weight"))


def test_errors_are_of_their_kind(whole: Path, tmp_path: Path) -> None:
    (whole / "config.json").unlink()
    with pytest.raises(ConfigError, match="hf download"):
        opened(whole)
    with pytest.raises(ModelNotFound):
        resolve(str(tmp_path / "nothing.gguf"), progress=silent)
