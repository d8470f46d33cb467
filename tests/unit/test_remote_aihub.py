"""``edge profile --on aihub:``: the real qai-hub client against a server of the test's own. Nothing here has run in Qualcomm's cloud."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from command import Edge
from edgekit import artifact as artifacts
from edgekit.artifact import Artifact, load_artifact
from edgekit.errors import ArtifactError, DeviceUnfit, LinkBroken, Untrusted, UsageError
from edgekit.remote import aihub, device, hub_graphs, hub_jobs
from tiny_artifact import build_tiny

pytestmark = pytest.mark.skipif(importlib.util.find_spec("qai_hub") is None, reason="qai-hub is not installed")

if importlib.util.find_spec("qai_hub") is not None:
    import onnx
    from onnx import TensorProto, helper

    import aihub_server
    from aihub_server import Hub

DEVICE = "Snapdragon 8 Elite QRD"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Hub]":
    from qai_hub.util import session

    with aihub_server.serve() as served:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(served.write_ini(tmp_path)))
        monkeypatch.setattr(hub_jobs, "POLL", 0.01)
        monkeypatch.setattr(device, "PAUSES", (0.01,))
        monkeypatch.setattr(session, "BACKOFF_FACTOR", 0.0)
        yield served


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return load_artifact(build_tiny(tmp_path / "made", "null"))


def with_files(made: Artifact, files: dict[str, bytes]) -> Artifact:
    """The artifact with more files."""
    for name, data in files.items():
        (made.directory / name).write_bytes(data)
    listed = artifacts.list_files(made.directory, lambda *_: None)
    manifest = replace(made.manifest, files=listed)
    (made.directory / artifacts.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return load_artifact(made.directory)


def compiled(name: str, binary: str, **values: int | str) -> bytes:
    """As ONNX Runtime's QNN provider writes it."""
    node = helper.make_node("EPContext", ["x"], ["y"], name=name, ep_cache_context=binary, main_context=1, **{"embed_mode": 0, **values})
    return model(node)


def model(node: "onnx.NodeProto", *tensors: "onnx.TensorProto", shape: tuple[int | str, ...] = (1, 4)) -> bytes:
    ports = [helper.make_tensor_value_info(port, TensorProto.FLOAT, shape) for port in ("x", "y")]
    return bytes(helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:], list(tensors))).SerializeToString())


def weights(location: str) -> "onnx.TensorProto":
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.fixture
def phone(made: Artifact) -> Artifact:
    """As the NPU engine makes them: two parts, each a binary with a graph for prompts and one for tokens; the CPU's share beside them."""
    halves = [(part, half) for part in (0, 1) for half in ("prompt", "token")]
    steps = [{f"{half}_{part}": {"filename": f"part{part}_{half}.onnx", f"run_on_{OTHER[half]}": False}} for part, half in halves]
    config = {"model": {"decoder": {"pipeline": [{"embeddings": {"filename": "embeddings.onnx"}}, *steps]}}}
    graphs = {f"part{part}_{half}.onnx": compiled(f"QNN_{part}_{half}", f"part{part}_qnn.bin") for part, half in halves}
    binaries = {f"part{part}_qnn.bin": bytes([part]) * 1000 for part in (0, 1)}
    plain = {"embeddings.onnx": model(helper.make_node("Relu", ["x"], ["y"])), "genai_config.json": json.dumps(config).encode()}
    return with_files(made, {**graphs, **binaries, **plain})


OTHER = {"prompt": "token_gen", "token": "prompt"}


def profile(artifact: Artifact, journal: Path, said: list[str] | None = None, patience: float = 5.0) -> aihub.HubReport:
    heard = said if said is not None else []
    return aihub.profile_in_hub(DEVICE, "", artifact, journal, "test", heard.append, patience)


def test_compiled_parts_are_profiled_as_they_are(hub: "Hub", phone: Artifact, edge: Edge) -> None:
    done = edge("profile", str(phone.directory), "--on", f"aihub:{DEVICE}", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["format"] == "edgekit-aihub-profile" and found["complete"] and found["system"] == "15"
    assert [graph["graph"] for graph in found["graphs"]] == ["QNN_0_prompt", "QNN_0_token", "QNN_1_prompt", "QNN_1_token"]
    assert found["prompt_seconds"] == found["token_seconds"] == pytest.approx(2 * 0.0025)
    first = found["graphs"][0]
    assert first["samples"] == pytest.approx([0.0024, 0.0025, 0.0029]) and first["units"] == {"NPU": 2, "CPU": 1}
    assert (first["load_cold"], first["load_warm"], first["peak"]) == (0.8, 0.3, 700_000_000)
    assert sorted(hub.files.values()) == [b"\0" * 1000, b"\1" * 1000]
    assert {model.model_type for model in hub.models.values()} == {aihub_server.pb.MODEL_TYPE_QNN_CONTEXT_BINARY}
    assert [job.options for job in hub.made("inference_job")] == [
        f"--compute_unit npu --qnn_options context_enable_graphs={graph['graph']}" for graph in found["graphs"]
    ]
    assert all(job.is_profiling_on for job in hub.made("inference_job")) and not hub.made("compile_job")
    assert aihub_server.TOKEN not in done.out + done.err


def test_table(hub: "Hub", phone: Artifact, edge: Edge) -> None:
    done = edge("profile", str(phone.directory), "--on", f"aihub:{DEVICE}", "--quiet")
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].split() == ["part0_prompt.onnx", "QNN_0_prompt", "2.50", "0.80", "700", "2", "NPU,", "1", "CPU", "j0"]


def test_plain_onnx_is_compiled_and_what_shares_weights_is_linked(hub: "Hub", made: Artifact, tmp_path: Path) -> None:
    halves = {f"part_{half}.onnx": model(helper.make_node("Add", ["x", "w"], ["y"]), weights("part.data")) for half in OTHER}
    alone = {"other.onnx": model(helper.make_node("Relu", ["x"], ["y"]))}
    found = profile(with_files(made, {**halves, **alone, "part.data": b"\0" * 16}), tmp_path / "journal")
    assert [graph.graph for graph in found.graphs] == ["other", "part_prompt", "part_token"]
    compiles, links = hub.made("compile_job"), hub.made("link_job")
    names = ["other", "part_prompt", "part_token"]
    assert [job.options for job in compiles] == [f"--target_runtime qnn_dlc --qnn_graph_name {name}" for name in names]
    assert [len(job.models.models) for job in links] == [1, 2]
    held = hub.unzipped(compiles[1].model.model_id)
    assert sorted(held) == ["part_prompt.onnx/part.data", "part_prompt.onnx/part_prompt.onnx"]
    assert held["part_prompt.onnx/part.data"] == b"\0" * 16
    linked = [job.target_model.model_id for job in links]
    assert [job.model.model_id for job in hub.made("inference_job")] == [linked[0], linked[1], linked[1]]


def test_a_run_that_was_broken_off_goes_on_with_its_jobs(hub: "Hub", phone: Artifact, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    hub.vanish = 14
    with pytest.raises(LinkBroken, match=r"Could not connect.*the jobs are noted in .*journal, the same command goes on with them"):
        profile(phone, journal, patience=0.0)
    models, jobs = len(hub.models), len(hub.jobs)
    assert models == 2 or jobs > 0
    hub.vanish = None
    assert profile(phone, journal).complete
    assert len(hub.models) == 2 and len(hub.jobs) == 4
    before = len(hub.log)
    assert profile(phone, journal).complete, "and once more: everything is known"
    assert not [line for line in hub.log[before:] if line.startswith(("POST", "PUT"))]


def test_an_answer_of_503_is_asked_for_again(hub: "Hub", phone: Artifact, tmp_path: Path) -> None:
    hub.busy = 3
    assert profile(phone, tmp_path / "journal").complete


def test_a_job_that_fails_is_said_and_the_others_count(hub: "Hub", phone: Artifact, tmp_path: Path) -> None:
    hub.fail = ("edgekit QNN_0_token",)
    found = profile(phone, tmp_path / "journal")
    assert not found.complete and found.token_seconds is None and len(found.graphs) == 3
    assert "job j1 failed: the converter does not know MatMulNBits; see http" in found.missing[0].reason
    hub.fail = ()
    assert profile(phone, tmp_path / "journal").complete and len(hub.jobs) == 5


def test_all_jobs_fail(hub: "Hub", phone: Artifact, tmp_path: Path) -> None:
    hub.fail = tuple(f"edgekit QNN_{part}_{half}" for part in (0, 1) for half in OTHER)
    with pytest.raises(DeviceUnfit, match="the converter does not know"):
        profile(phone, tmp_path / "journal")


def test_wrong_token(hub: "Hub", phone: Artifact, tmp_path: Path) -> None:
    hub.write_ini(tmp_path, "another-secret")
    with pytest.raises(Untrusted, match="qai-hub configure") as caught:
        profile(phone, tmp_path / "journal")
    assert "another-secret" not in str(caught.value)


def test_no_token(phone: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "none.ini"))
    with pytest.raises(Untrusted, match="qai-hub configure"):
        profile(phone, tmp_path / "journal")


def test_unknown_device(hub: "Hub", phone: Artifact, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnfit, match="qai-hub list-devices"):
        aihub.profile_in_hub("Nokia 3310", "", phone, tmp_path / "journal", "test", lambda _: None)


def test_what_no_npu_takes(made: Artifact) -> None:
    with pytest.raises(DeviceUnfit, match="has no ONNX file"):
        hub_graphs.graphs(made)
    free = with_files(made, {"model.onnx": model(helper.make_node("Relu", ["x"], ["y"]), shape=(1, "length"))})
    with pytest.raises(DeviceUnfit, match=r"the input 'x' has no fixed shape \(length\)"):
        hub_graphs.graphs(free)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "none.bin"])
def test_a_file_that_leads_out_of_the_artifact(made: Artifact, name: str) -> None:
    bad = with_files(made, {"part.onnx": compiled("g", name)})
    with pytest.raises(ArtifactError, match=r"names .*, which is not there"):
        hub_graphs.graphs(bad)


def test_a_journal_of_something_else(hub: "Hub", phone: Artifact, tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("hello\n")
    with pytest.raises(UsageError, match="is no journal of a run in AI Hub"):
        profile(phone, tmp_path / "journal")
    assert (tmp_path / "journal").read_text() == "hello\n"
