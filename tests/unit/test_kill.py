"""A few of the kills of ``bench/kill.py``, for every engine that is installed; the whole of it: python bench/kill.py --kills 300."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgekit.engines import ENGINES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGKILL")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill", Path(__file__).parents[2] / "bench" / "kill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_build_leaves_nothing_half_and_is_resumed(bench: ModuleType, tmp_path: Path, engine: str) -> None:
    done = bench.kill(4, 7, tmp_path, [engine], "llama")
    if not done:
        pytest.skip(f"{engine} is not installed")
    assert len(done) == 4


def test_a_resumed_build_quantizes_only_what_was_not_kept(bench: ModuleType, tmp_path: Path) -> None:
    """Killed in the middle of its tensors: what is there of them is taken as it is."""
    pytest.importorskip("onnxruntime")
    case = bench.prepare("onnx", tmp_path / "onnx", "llama")[2]
    place = tmp_path / "place"
    (place / "work").mkdir(parents=True)
    code = bench.BUILD.replace(
        "def progress(stage, done, total):",
        "def progress(stage, done, total):\n    if stage == 'quantize' and done > total / 2: os.kill(os.getpid(), 9)",
    )
    bench.BUILD, whole = "import os\n" + code, bench.BUILD
    try:
        with bench.start(case, place / "work" / "out", place / "cache", force=False) as process:
            process.communicate()
    finally:
        bench.BUILD = whole
    assert process.returncode == -9
    kept = bench.blocks(place / "cache")
    bench.whole(case, place / "work" / "out", place / "cache")
    now = bench.blocks(place / "cache")
    assert 0 < len(kept) < len(now) and kept.items() <= now.items()
    bench.same(case.reference, place / "work" / "out")
