"""What an import loads, each in a fresh interpreter: the device side carries nothing of the build side, and nothing phones home."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from tiny_artifact import build_tiny

ROOT = Path(__file__).parents[2]
BUILD_ONLY = {
    "torch", "transformers", "onnx", "onnx_ir", "safetensors", "huggingface_hub", "ml_dtypes", "requests", "httpx",
    "edgekit.build", "edgekit.cache", "edgekit.catalog", "edgekit.checkpoint", "edgekit.companions", "edgekit.conformance",
    "edgekit.doctor", "edgekit.drivers", "edgekit.fetch",
    "edgekit.greedy", "edgekit.hub", "edgekit.lock", "edgekit.models", "edgekit.output", "edgekit.packagers",
    "edgekit.plan",
    "edgekit.plan_report", "edgekit.quant", "edgekit.quantized",
    "edgekit.reference", "edgekit.target", "edgekit.wheels",
}  # fmt: skip


def modules_after(code: str, *arguments: str, environment: dict[str, str] | None = None) -> set[str]:
    """Names in ``sys.modules`` of a new interpreter after ``code``."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "toolkit"), **(environment or {})}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=env, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_edgekit_loads_nothing_else() -> None:
    loaded = modules_after("before = set(sys.modules)\nimport edgekit\nassert edgekit.__version__\nfor m in before: del sys.modules[m]")
    assert {name for name in loaded if name.split(".")[0] in {"edgekit", "numpy", "tokenizers", "jinja2", "typer"}} == {"edgekit"}


@pytest.mark.parametrize("engine", ["null", "onnx", "mlx", "openvino"])
def test_running_an_artifact_loads_nothing_of_the_build_side(engine: str, tmp_path: Path) -> None:
    for module in {"onnx": ["onnxruntime"], "mlx": ["mlx", "mlx_lm"], "openvino": ["openvino"]}.get(engine, []):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    artifact = build_tiny(tmp_path, engine)
    code = (
        "import edgekit\n"
        "warm = edgekit.Sampling(temperature=1, top_p=0.9)\n"
        "with edgekit.load(sys.argv[1]) as runtime:\n"
        "    answer = runtime.complete([{'role': 'user', 'content': 'hello'}], max_tokens=3, sampling=warm)\n"
        "    assert answer.tokens"
    )
    loaded = modules_after(code, str(artifact))
    assert f"edgekit.engines.{engine}.session" in loaded
    assert not {name for name in loaded if name in BUILD_ONLY or name.split(".")[0] in BUILD_ONLY}
    assert f"edgekit.engines.{engine}.export" not in loaded


def test_no_telemetry_unless_the_user_asks() -> None:
    check = "import edgekit, os\nassert os.environ['HF_HUB_DISABLE_TELEMETRY'] == {!r}"
    modules_after("import os\nos.environ.pop('HF_HUB_DISABLE_TELEMETRY', None)\n" + check.format("1"))
    modules_after(check.format("0"), environment={"HF_HUB_DISABLE_TELEMETRY": "0"})


def test_the_hub_library_obeys() -> None:
    pytest.importorskip("huggingface_hub")
    modules_after("import edgekit, huggingface_hub.constants as c\nassert c.HF_HUB_DISABLE_TELEMETRY is True")


def test_public_names_are_at_most_ten_and_all_there() -> None:
    assert len(edgekit.__all__) <= 10
    for name in edgekit.__all__:
        assert getattr(edgekit, name) is not None
        assert name in dir(edgekit)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgekit.nothing  # type: ignore[attr-defined]


def test_the_function_build_stays_one_when_its_file_is_imported() -> None:
    modules_after(
        "import edgekit.build\nfrom edgekit.build import outputs\nimport edgekit\n"
        "assert callable(edgekit.build) and edgekit.build.__name__ == 'build' and edgekit.build is sys.modules['edgekit.build'].build"
    )


def test_version_is_that_of_the_project() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    assert edgekit.__version__ == found[1]


def test_the_engines_own_process_loads_nothing_of_the_build_side() -> None:
    """Beside what it runs, its memory is the model's."""
    loaded = modules_after("import edgekit.greedy, edgekit.parity")
    assert not {name for name in loaded if name in BUILD_ONLY or name.split(".")[0] in BUILD_ONLY} - {"edgekit.greedy"}


def test_measuring_loads_nothing_of_the_build_side() -> None:
    """`edge profile` runs where the runtime alone is installed, and what it measures is the engine's memory."""
    loaded = modules_after("from edgekit.profile import judging, run, saving, trace, worker\nimport edgekit.commands.measure, edgekit.cli")
    assert not {name for name in loaded if name in BUILD_ONLY or name.split(".")[0] in BUILD_ONLY}


def test_the_server_loads_nothing_of_the_build_side() -> None:
    pytest.importorskip("uvicorn")
    loaded = modules_after("import edgekit.server.run")
    assert "starlette" in loaded
    assert not {name for name in loaded if name in BUILD_ONLY or name.split(".")[0] in BUILD_ONLY}


def test_onnx_runtime_is_told_before_it_starts() -> None:
    """``disable_telemetry_events`` would come after its first report."""
    pytest.importorskip("onnxruntime")
    check = (
        "import os, sys, edgekit.engines.onnx.session\nassert 'onnxruntime' not in sys.modules\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == {!r}"
    )
    modules_after("import os\nos.environ.pop('ORT_DISABLE_TELEMETRY', None)\n" + check.format("1"))
    modules_after(check.format("0"), environment={"ORT_DISABLE_TELEMETRY": "0"})


def test_what_was_compiled_can_be_loaded() -> None:
    """Or whatever it is for would be done without it, and its tests skipped."""
    for library in sorted(Path(edgekit.__file__).parent.rglob("_*.so")):
        modules_after(f"import ctypes\nctypes.CDLL({str(library)!r})")
