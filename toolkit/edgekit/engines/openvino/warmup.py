"""OpenVINO's first inference lays every weight out anew for the CPU's kernels: seconds, and each process for itself (docs/openvino.md).

It begins when the model is opened, so that it goes on while a user writes, and lets go of the mapped file as it is read: otherwise both
forms of every weight would count as this process's memory.
"""

import contextlib
import ctypes
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import openvino

WAKE = 50
"""Milliseconds between two looks."""
MADV_DONTNEED = 4


class WarmUp:
    """A first inference in the background, whose token is forgotten. Whatever it fails of, the caller's own inference fails of as well."""

    def __init__(self, request: "openvino.InferRequest", inputs: Mapping[str, NDArray[np.generic]], path: Path) -> None:
        self._request = request
        request.start_async(dict(inputs))
        self._thread = threading.Thread(target=watch, args=(request, path.with_suffix(".bin")), daemon=True)
        self._thread.start()
        # A thread that is inside OpenVINO when Python ends aborts the process: so this one is ended before, or when nobody wants it.
        self._abandon = weakref.finalize(self, abandon, request, self._thread)

    def end(self) -> None:
        """Waits for it and leaves the request as new."""
        self._thread.join()
        self._abandon.detach()
        with contextlib.suppress(RuntimeError):
            self._request.wait()
        self._request.reset_state()

    def cancel(self) -> None:
        """Ends it; the request is of no more use."""
        self._abandon()


def watch(request: "openvino.InferRequest", file: Path) -> None:
    with contextlib.suppress(RuntimeError):
        while not request.wait_for(WAKE):
            let_go(file)
    let_go(file)


def abandon(request: "openvino.InferRequest", thread: threading.Thread) -> None:
    request.cancel()
    thread.join()


def let_go(file: Path) -> None:
    """The pages of a mapped file need not stay in this process: who reads one again finds it in the system's cache. Linux only."""
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    name = str(file.resolve())
    with Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            if line.rstrip("\n").endswith(name):
                begin, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
                madvise(begin, end - begin, MADV_DONTNEED)
