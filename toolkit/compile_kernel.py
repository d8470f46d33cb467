"""Build hook: compiles quant/kernel.c where a C compiler is at hand. Without one edgekit quantizes with NumPy: the same bytes, slower."""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The arithmetic must stay that of the source: no contraction into fused multiply-adds, no reordering.
OPTIONS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-tree-slp-vectorize")
QUANT = Path("toolkit") / "edgekit" / "quant"
LIBRARY = QUANT / "_kernel.so"


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, object]) -> None:
        root = Path(self.root)
        compiler = shlex.split(os.environ.get("CC", "cc"))
        partial = root / f"{LIBRARY}.partial-{os.getpid()}"
        try:
            if sys.platform == "win32":
                raise OSError("MSVC is not supported")
            command = [*compiler, *OPTIONS, "-o", str(partial), str(root / QUANT / "kernel.c")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise OSError(done.stderr.strip()[-500:])
            partial.replace(root / LIBRARY)
        except OSError as error:
            self.app.display_warning(f"the quantizer's C kernel was not compiled, NumPy will do its work: {error}")
            return
        finally:
            partial.unlink(missing_ok=True)
        artifacts = build_data["artifacts"]
        assert isinstance(artifacts, list)
        artifacts.append(LIBRARY.as_posix())
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
