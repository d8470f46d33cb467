"""``edge plan`` and ``edge build --device``: sizes against what is written, what fits, what binds, a hub that sends no weight."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checkpoints import ARCHITECTURE, BASE, longrope, make_checkpoint
from command import Edge
from edgekit.build import build
from edgekit.checkpoint import Checkpoint, Source
from edgekit.device import DeviceProfile, Figure, Unit, device_names, devices, load_device
from edgekit.errors import DoesNotFit, TargetError, UsageError
from edgekit.listing import stored_bytes
from edgekit.models import Model, phi3
from edgekit.plan import Plan, Refused, Subject, best_scheme, check_fits, everywhere, find, plan
from edgekit.target import load_target, targets
from hub_client import World
from hub_server import Fault, Repo, serve

SHARDS = 3


def figure(value: float, basis: Any = "specification") -> Figure:
    return Figure(value, basis, "https://example.org", "for the test")


def device(megabytes: float, *, runs: tuple[str, ...] = ("cpu",), bandwidth: Figure | None = None, **limits: Figure) -> DeviceProfile:
    kind: Any = "npu" if "intel-npu" in runs else "cpu"
    unit = Unit(kind, "u", runs, compute=figure(100), **limits)
    memory = figure(megabytes)
    return DeviceProfile("mine", "d", "c", "board", memory, memory, bandwidth or figure(10), (unit,), ())


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return find("tiny-phi")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plan") / "model", "llama", shards=SHARDS)


@pytest.mark.parametrize("target", ["cpu", "intel-cpu", "apple-m", "cuda", "webgpu"])
def test_the_artifact_is_as_large_as_planned(tiny: Subject, target: str, tmp_path: Path) -> None:
    if target == "intel-cpu":
        pytest.importorskip("openvino_tokenizers")
    said = plan(tiny, load_target(target), None)
    written = stored_bytes(build("tiny-phi", target=target, output=tmp_path / "a", verify=False, cached=False))
    assert abs(said.artifact - written) / written < 0.01


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g64"])
def test_other_schemes_too(tiny: Subject, scheme: str, tmp_path: Path) -> None:
    said = plan(tiny, load_target("cpu"), None, scheme=scheme)
    written = stored_bytes(build("tiny-phi", target="cpu", output=tmp_path / "a", scheme=scheme, verify=False, cached=False))
    assert abs(said.artifact - written) / written < 0.01


def test_memory_grows_with_the_context_by_the_cache_alone(tiny: Subject) -> None:
    found = plan(tiny, load_target("cpu"), None, context=1024)
    # 4 layers, 4 key-value heads of 32 dimensions, keys and values in float32
    assert found.cache == 2 * 4 * 4 * 4 * 32
    by_context = {memory.context: memory for memory in found.memory}
    assert by_context[1024].decode - by_context[512].decode == 512 * found.cache
    assert by_context[1024].load == by_context[512].load
    assert by_context[1024].peak >= by_context[1024].prefill > by_context[1024].decode


def test_the_largest_context_fits_and_one_more_does_not(tiny: Subject) -> None:
    roomy = plan(tiny, load_target("cpu"), None, context=1000).at_context
    assert roomy is not None
    found = plan(tiny, load_target("cpu"), device(roomy.peak / 1e6), context=1000)
    assert found.fits is True
    assert found.largest is not None and 1000 <= found.largest < 1010
    assert plan(tiny, load_target("cpu"), device(roomy.peak / 1e6), context=found.largest + 1).fits is False


def test_what_does_not_fit_says_what_would(tiny: Subject) -> None:
    roomy = plan(tiny, load_target("cpu"), None, context=1000).at_context
    assert roomy is not None
    with pytest.raises(DoesNotFit, match=r"tiny-phi as int4-g128 with 2,048 .* mine \(cpu\) has .* What would fit: --context 1\d{3}"):
        check_fits(tiny, load_target("cpu"), device(roomy.peak / 1e6), context=2048)
    with pytest.raises(DoesNotFit, match="a smaller model"):
        check_fits(tiny, load_target("cpu"), device(50))
    assert check_fits(tiny, load_target("cpu"), device(200)).fits


def test_the_finest_scheme_that_fits(tiny: Subject) -> None:
    assert best_scheme(tiny, load_target("cpu"), device(200), 512) == "int4-g32"
    assert best_scheme(tiny, load_target("cpu"), device(50), 512) is None
    assert best_scheme(tiny, load_target("intel-npu"), device(400, runs=("intel-npu",)), 256) == "int4-sym-g128"


def test_a_limit_of_the_npu_binds(tiny: Subject) -> None:
    cramped = device(1000, runs=("intel-npu",), context=figure(128))
    found = plan(tiny, load_target("intel-npu"), cramped, context=256)
    assert (found.fits, found.binds, found.largest) == (False, "NPU limit", 128)
    small = plan(tiny, load_target("intel-npu"), device(1000, runs=("intel-npu",), memory=figure(50)), context=256)
    assert (small.fits, small.binds) == (False, "NPU limit")


def test_a_longrope_model_ends_at_its_switch_on_an_npu(tiny: Subject) -> None:
    found = plan(tiny, load_target("intel-npu"), device(1000, runs=("intel-npu",)), context=256)
    assert (found.fits, found.largest) == (True, 256), "the model itself has 2,048"


def test_twice_the_bandwidth_is_up_to_twice_the_speed(tiny: Subject) -> None:
    slow, fast = (
        plan(tiny, load_target("cpu"), device(500, bandwidth=figure(gigabytes)), context=512).decode for gigabytes in (0.01, 0.02)
    )
    assert slow is not None and fast is not None
    assert 0 < slow.low < slow.high
    assert 1.8 < fast.low / slow.low <= 2
    assert plan(tiny, load_target("cpu"), device(500, bandwidth=figure(0.01)), context=512).binds == "bandwidth"


def test_a_measured_bandwidth_is_taken_as_reached(tiny: Subject) -> None:
    peak, measured = (
        plan(tiny, load_target("cpu"), device(500, bandwidth=figure(0.01, basis)), context=512).decode
        for basis in ("specification", "measured")
    )
    assert peak is not None and measured is not None
    assert measured.low > peak.low and measured.high > peak.high


def test_decoding_slows_with_the_context(tiny: Subject) -> None:
    found = plan(tiny, load_target("cpu"), device(500, bandwidth=figure(0.01)), context=2048)
    assert found.decode is not None and found.decode_full is not None
    assert found.decode_full.high < found.decode.high


def test_a_target_that_does_not_run_there(tiny: Subject) -> None:
    with pytest.raises(TargetError, match="target cuda does not run on mine; what does: cpu"):
        plan(tiny, load_target("cuda"), device(500))


def test_a_target_of_ones_own_runs_where_its_engine_does(tiny: Subject, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('description = "d"\nengine = "onnx"\nscheme = "int4-g32"\ncontext = 64\nverified = "executed"\nmemory_mb = 60\n')
    assert plan(tiny, load_target(path), device(500)).unit == "u"
    alone = plan(tiny, load_target(path), None)
    assert (alone.limit, alone.fits) == (60_000_000, False), "without a device the target's own limit counts"


def test_more_context_than_the_model_has(tiny: Subject) -> None:
    with pytest.raises(UsageError, match="context 4096 is not between 1 and the 2048"):
        plan(tiny, load_target("cpu"), None, context=4096)


def test_everything_on_every_device(tiny: Subject) -> None:
    known = [load_device(name) for name in device_names()]
    found = list(everywhere(tiny, targets(), known))
    assert {each.device for each in found} == set(device_names())
    assert all(isinstance(each, Plan) and each.fits for each in found if not isinstance(each, Refused))
    assert all("LongRoPE" in each.reason for each in found if isinstance(each, Refused))


def test_an_engine_that_says_nothing_of_running(tiny: Subject, tmp_path: Path) -> None:
    path = tmp_path / "null.toml"
    path.write_text('description = "d"\nengine = "null"\nscheme = "int4-g32"\ncontext = 64\nverified = "executed"\n')
    found = plan(tiny, load_target(path), None)
    assert (found.cache, found.read, found.decode, found.measured) == (0, None, None, False)


def profile(tmp_path: Path, megabytes: int) -> str:
    one = f'{{ value = {megabytes}, basis = "specification", source = "https://example.org" }}'
    path = tmp_path / "small.toml"
    path.write_text(
        f'description = "d"\nchip = "c"\nkind = "board"\nmemory = {one}\napp_memory = {one}\nbandwidth = {one}\n'
        '[[units]]\nkind = "cpu"\nname = "u"\ntargets = ["cpu"]\n'
    )
    return str(path)


def test_the_command_in_full_as_a_table_and_as_json(edge: Edge, tmp_path: Path) -> None:
    ended = edge("plan", "tiny-phi", "--target", "cpu", "--device", "raspberry-pi-5-8gb")
    assert ended.code == 0
    assert "largest context  2,048 tokens" in ended.out and "the finest that fits: int4-g32" in ended.out
    table = edge("plan", "tiny-phi", "--target", "cpu")
    assert table.code == 0 and "generic-8gb" in table.out
    said = json.loads(edge("plan", "tiny-phi", "--device", profile(tmp_path, 400), "--json").out)
    assert (said["version"], [each["target"] for each in said["plans"]]) == (1, ["cpu"])


def test_the_command_exits_with_a_code_of_its_own(edge: Edge, tmp_path: Path) -> None:
    small = profile(tmp_path, 60)
    for arguments in (["--target", "cpu"], []):
        ended = edge("plan", "tiny-phi", "--device", small, *arguments)
        assert ended.code == DoesNotFit.exit_code
        assert "edge: error: " in ended.err
    said = json.loads(edge("plan", "tiny-phi", "--device", small, "--target", "cpu", "--json").out)
    assert said["error"]["kind"] == "DoesNotFit" and said["plans"][0]["fits"] is False


def test_a_build_is_refused_before_anything_is_written(edge: Edge, tmp_path: Path) -> None:
    ended = edge("build", "tiny-phi", "--target", "cpu", "--out", str(tmp_path / "a"), "--device", profile(tmp_path, 60))
    assert ended.code == DoesNotFit.exit_code
    assert "small (cpu) has 60 MB for it" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.toml"]
    assert (
        edge("build", "tiny-phi", "--target", "cpu", "--out", str(tmp_path / "a"), "--device", profile(tmp_path, 400), "--no-verify").code
        == 0
    )


def test_of_a_hub_model_no_weight_is_fetched_and_nothing_kept(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", minversion="1.0")
    local = find(str(checkpoint))
    with serve({"org/m": Repo(checkpoint)}) as hub:
        found = World(hub, Repo(checkpoint), tmp_path / "cache").outline("org/m")
        assert "error" not in found, found
        got = [line for line in hub.log if line.startswith("GET /org") and "safetensors" in line]
    assert len(got) == SHARDS and all(line.endswith("bytes=0-262143") for line in got)
    assert found["tensors"] == {name: list(info.shape) for name, info in local.model.checkpoint.tensors.items()}
    assert found["parameters"] == local.model.parameters
    assert found["download"] == sum(path.stat().st_size for path in checkpoint.iterdir())
    assert found["sizes"]["tokenizer.json"] == (checkpoint / "tokenizer.json").stat().st_size
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_hub_that_knows_no_ranges_or_sends_nonsense(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", minversion="1.0")
    name = f"model-00001-of-0000{SHARDS}.safetensors"
    with serve({"org/m": Repo(checkpoint, faults={name: [Fault(no_range=True)]})}) as hub:
        assert World(hub, Repo(checkpoint), tmp_path / "a").outline("org/m")["parameters"] > 0
    with serve({"org/m": Repo(checkpoint, faults={name: [Fault(flip=0)]})}) as hub:
        found = World(hub, Repo(checkpoint), tmp_path / "b").outline("org/m")
        assert found["error"] == "CheckpointError" and name in found["message"]


def test_figures_of_phi_at_full_size_from_shapes_alone(tiny: Subject) -> None:
    """The checkpoint of bench/results/decode.json: 2.20 GB, resident 2.51 GB at 64 tokens and 3.47 GB at 1,024."""
    sizes = {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 131072}
    rope = {"original_max_position_embeddings": 4096, "rope_scaling": longrope(48)}
    config = {**BASE, **ARCHITECTURE["phi3"], **sizes, **heads, **rope}
    decoder = phi3.decoder_config(config)
    model = Model(Checkpoint(Path("phi"), Source("phi", "local", None, None), config, {}), decoder, phi3.weight_slices(decoder))
    subject = replace(tiny, model=model, footprints={})
    found = {tokens: plan(subject, load_target("cpu"), None, context=tokens) for tokens in (96, 1056)}
    assert abs(plan(subject, load_target("cpu"), None).artifact / 1e9 - 2.20) < 0.01
    for tokens, gigabytes in ((96, 2.51), (1056, 3.47)):
        at = found[tokens].at_context
        assert at is not None and abs(at.peak / 1e9 / gigabytes - 1) < 0.1


def test_every_npu_of_qualcomm_has_its_target(tiny: Subject) -> None:
    found = {p.name: unit.targets for p in devices() for unit in p.units if unit.name == "Hexagon"}
    assert len(found) >= 6
    for name, runs in found.items():
        (target,) = map(load_target, runs)
        planned = plan(tiny, target, load_device(name), context=512)
        assert (planned.unit, planned.fits, planned.measured) == ("Hexagon", True, False)
        assert planned.decode is not None and planned.decode.low < planned.decode.high
        assert planned.at_context is not None and planned.at_context.load > planned.artifact
