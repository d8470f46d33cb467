"""Without an extra a command that needs it ends with 5 and names it, in JSON too; never in a traceback, nor as if the user had erred."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import edgekit
from edgekit.errors import EngineMissing
from edgekit.signing import make_keys, sign
from tiny_artifact import build_tiny

BARE = """
    import sys

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in GONE:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    GONE = set(sys.argv.pop(1).split(","))
    sys.meta_path.insert(0, Missing())
    from edgekit.cli import main
    main()
"""
EXTRAS = (
    "cryptography,starlette,uvicorn,prometheus_client,oras,requests,huggingface_hub,onnxruntime,openvino,mlx,mlx_lm,llguidance,onnx,qai_hub,"
    "onnxruntime_genai,onnxruntime_qnn,httpx"
)
"""Modules that extras bring."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extras")
    for engine in ("onnx", "openvino", "null"):
        build_tiny(folder / engine, engine).rename(folder / f"{engine}-artifact")
    make_keys(folder / "k")
    sign(Path(shutil.copytree(folder / "null-artifact", folder / "signed-artifact")), folder / "k.key")
    (folder / "schema.json").write_text('{"type": "object"}', encoding="utf-8")
    return folder


def bare(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(edgekit.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(BARE), EXTRAS, *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


COMMANDS = {
    "serve": (["serve", "null-artifact"], "serve"),
    "keygen": (["keygen", "other"], "sign"),
    "sign": (["sign", "null-artifact", "--key", "k.key"], "sign"),
    "trusted key": (["inspect", "signed-artifact", "--trusted-key", "k.pub"], "sign"),
    "pull from a registry": (["pull", "oci://localhost:1/x", "--out", "out"], "oci"),
    "push to a registry": (["push", "null-artifact", "oci://localhost:1/x"], "oci"),
    "pull from the hub": (["pull", "hf://org/name", "--out", "out"], "build"),
    "push to the hub": (["push", "null-artifact", "hf://org/name"], "build"),
    "build of a hub model": (["build", "org/name", "--target", "cpu", "--out", "out"], "build"),
    "run on onnx": (["run", "onnx-artifact", "hi"], "onnx"),
    "run on openvino": (["run", "openvino-artifact", "hi"], "openvino"),
    "a schema": (["run", "null-artifact", "hi", "--json-schema", "schema.json"], "grammar"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_missing_extras(place: Path, what: str) -> None:
    arguments, extra = COMMANDS[what]
    done = bare(place, *arguments, *(["--json"] if arguments[0] != "serve" else []))
    assert done.returncode == EngineMissing.exit_code, (done.stdout, done.stderr)
    assert f"edgekit[{extra}" in done.stderr and "Traceback" not in done.stderr
    if arguments[0] != "serve":
        error = json.loads(done.stdout)["error"]
        assert error["kind"] == "EngineMissing" and error["exit_code"] == EngineMissing.exit_code


def test_what_needs_no_extra(place: Path) -> None:
    for arguments in (
        ["models"],
        ["inspect", "onnx-artifact"],
        ["run", "null-artifact", "hi"],
        ["verify", "onnx-artifact", "--no-run"],
        ["cache", "list"],
    ):
        done = bare(place, *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
