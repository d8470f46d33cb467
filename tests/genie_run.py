"""Genie itself, in a process of its own: the library in onnxruntime-qnn's wheel opens an artifact as it does on a device, in emulation.

tokens = genie_tokens(directory, "genie_config.json", prompt)
"""

import ctypes
import os
from pathlib import Path
from typing import cast

from edgekit import child

BEGIN_AND_END = 0
"""GENIE_DIALOG_SENTENCE_COMPLETE: the whole prompt at once."""


def genie_tokens(directory: Path, config: str, prompt: list[int]) -> list[int]:
    """What GenieDialog_tokenQuery answers to ``prompt``, greedily, up to a stop token, which it does not give."""
    answer = child.ask("genie_run", {"directory": str(directory), "config": config, "prompt": prompt}, patience=900)
    return cast(list[int], answer["tokens"])


def genie_accepts(directory: Path, config: str) -> None:
    """Its own schema; the binary is not opened. Raises EngineError."""
    child.ask("genie_run", {"directory": str(directory), "config": config, "prompt": []}, patience=300)


def main() -> None:
    child.serve(answer)


def answer(request: child.Json) -> child.Json:
    import onnxruntime_qnn

    directory, prompt = Path(str(request["directory"])), cast(list[int], request["prompt"])
    os.chdir(directory)  # the configuration names files from there
    libraries = Path(onnxruntime_qnn.LIB_DIR_FULL_PATH)
    for name in ("libQnnSystem.so", "libQnnHtp.so"):
        ctypes.CDLL(str(libraries / name), ctypes.RTLD_GLOBAL)
    genie = ctypes.CDLL(str(libraries / "libGenie.so"))
    config, dialog = ctypes.c_void_p(), ctypes.c_void_p()
    done(genie.GenieDialogConfig_createFromJson(Path(str(request["config"])).read_bytes(), ctypes.byref(config)), "configuration")
    if not prompt:
        return {}
    done(genie.GenieDialog_create(config, ctypes.byref(dialog)), "dialog")
    tokens: list[int] = []
    kind = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)
    take = kind(lambda found, count, code, user: tokens.extend(found[:count]))
    asked = (ctypes.c_uint32 * len(prompt))(*prompt)
    done(genie.GenieDialog_tokenQuery(dialog, asked, len(prompt), BEGIN_AND_END, take, None), "query")
    return {"tokens": tokens}


def done(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"Genie's {what}: status {status}")
