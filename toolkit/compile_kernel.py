"""Build hook: compiles what is written in C where a compiler is at hand. Without one NumPy and the engines do the same, slower,
and what is compiled for Qualcomm's NPUs does not repeat itself byte by byte."""

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The arithmetic must stay that of the source: no contraction into fused multiply-adds, no reordering.
OPTIONS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-tree-slp-vectorize")
PACKAGE = Path("toolkit") / "edgekit"
MATMUL = (PACKAGE / "cpu" / "matmul.c", PACKAGE / "cpu" / "panels.c")
QUANTIZER = PACKAGE / "quant" / "_kernel.so"
OPERATOR = PACKAGE / "engines" / "onnx" / "_operator.so"
OPERATORS = PACKAGE / "engines" / "openvino" / "_operators.so"
TURNS = PACKAGE / "engines" / "qnn" / "_turns.so"
SOURCES = {
    QUANTIZER: (PACKAGE / "quant" / "kernel.c",),
    OPERATOR: (*(PACKAGE / "engines" / "onnx" / name for name in ("operator.c", "attention.c")), *MATMUL, PACKAGE / "cpu" / "rows.c"),
    OPERATORS: (PACKAGE / "engines" / "openvino" / "operators.c", *MATMUL, PACKAGE / "cpu" / "attention.c", PACKAGE / "cpu" / "gate.c"),
    TURNS: (PACKAGE / "engines" / "qnn" / "turns.c", PACKAGE / "engines" / "qnn" / "arena.c"),
}
# C++'s exceptions pass through arena.c; and malloc cannot ask for a thread's own variable by calling malloc.
MORE = {OPERATORS: ("-pthread",), TURNS: ("-fexceptions", "-ftls-model=initial-exec", "-pthread", "-ldl")}


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        wanted = [QUANTIZER, OPERATOR, OPERATORS] if platform.machine().lower() in {"x86_64", "amd64"} else [QUANTIZER]
        if (sys.platform, platform.machine()) == ("linux", "x86_64"):
            wanted.append(TURNS)
        artifacts = build_data["artifacts"]
        assert isinstance(artifacts, list)
        for library in wanted:
            try:
                compile_library(Path(self.root), library)
            except OSError as error:
                self.app.display_warning(f"{library.name} was not compiled, what it does will be done without it: {error}")
            else:
                artifacts.append(library.as_posix())
                build_data["pure_python"] = False
                build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")


def compile_library(root: Path, library: Path) -> None:
    """Raises OSError where there is no compiler, with what it says where it fails."""
    if sys.platform == "win32":
        raise OSError("MSVC is not supported")
    partial = root / f"{library}.partial-{os.getpid()}"
    try:
        sources = [str(root / source) for source in SOURCES[library]]
        command = [*shlex.split(os.environ.get("CC", "cc")), *OPTIONS, "-o", str(partial), *sources, *MORE.get(library, ())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip()[-500:])
        partial.replace(root / library)
    finally:
        partial.unlink(missing_ok=True)
