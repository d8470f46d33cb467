"""Every example runs as a user would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_artifact import build_tiny

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("examples"), "null")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example: Path, artifact: Path) -> None:
    command = [sys.executable, str(example), str(artifact), "What is 12 plus 30?"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "toolkit"), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if example.name == "numbers_only.py":
        assert done.stdout.strip().isdecimal()
