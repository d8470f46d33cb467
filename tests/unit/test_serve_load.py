"""A little of ``bench/serve.py``; the whole of it: python bench/serve.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import edgekit

pytest.importorskip("openai")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_serve", Path(__file__).parents[2] / "bench" / "serve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_serve"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-phi") / "artifact"
    edgekit.build("tiny-phi", target="cpu", output=directory)
    return directory


def test_many_clients_get_their_own_answers(bench: ModuleType, artifact: Path) -> None:
    found = bench.soak(artifact, bench.questions(artifact, 8), clients=12, seconds=3, queue=4)
    assert found["answers"] >= 12


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_clients_that_leave_leave_nothing(bench: ModuleType, artifact: Path) -> None:
    assert bench.disconnects(artifact, 20)["running_after"] == 0


def test_made_up_requests_are_answered(bench: ModuleType, artifact: Path) -> None:
    pytest.importorskip("schemathesis")
    assert bench.fuzz(artifact, 24, phases="fuzzing")["cases"] >= 24
