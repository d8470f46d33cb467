"""Windows' way to limit what a process may take: a job object, which also ends it with the program that made it."""

import ctypes
import functools
import subprocess
from collections.abc import Callable
from ctypes import wintypes
from typing import Any, cast

from edgekit.errors import EngineError

_EXTENDED = 9
_ONE_PROCESS, _PROCESS_MEMORY, _DIE, _KILL_ON_CLOSE = 0x8, 0x100, 0x400, 0x2000


class _Basic(ctypes.Structure):
    _fields_ = (
        ("process_time", ctypes.c_int64),
        ("job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("least_working_set", ctypes.c_size_t),
        ("most_working_set", ctypes.c_size_t),
        ("processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32),
    )


class Limits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION of winnt.h."""

    _fields_ = (
        ("basic", _Basic),
        ("io", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


def limits(memory: int) -> Limits:
    """One process of at most ``memory`` bytes, without dialogues about its end, that ends when the job's handle is closed."""
    made = Limits()
    made.basic.flags = _ONE_PROCESS | _PROCESS_MEMORY | _DIE | _KILL_ON_CLOSE
    made.basic.processes = 1
    made.process_memory = memory
    return made


def confine(process: "subprocess.Popen[bytes]", memory: int) -> Callable[[], object]:
    """Puts ``process`` into a job with ``limits``. Returns what closes the job. Raises EngineError."""
    kernel = cast(Any, ctypes).WinDLL("kernel32", use_last_error=True)
    kernel.CreateJobObjectW.restype = wintypes.HANDLE
    kernel.CreateJobObjectW.argtypes = (ctypes.c_void_p, wintypes.LPCWSTR)
    kernel.SetInformationJobObject.argtypes = (wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD)
    kernel.AssignProcessToJobObject.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
    job = kernel.CreateJobObjectW(None, None)
    wanted = limits(memory)
    if not (
        job
        and kernel.SetInformationJobObject(job, _EXTENDED, ctypes.byref(wanted), ctypes.sizeof(wanted))
        and kernel.AssignProcessToJobObject(job, int(cast(Any, process)._handle))
    ):
        process.kill()
        raise EngineError(f"Windows does not limit a process for work on texts (error {cast(Any, ctypes).get_last_error()})")
    kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
    return functools.partial(kernel.CloseHandle, job)
