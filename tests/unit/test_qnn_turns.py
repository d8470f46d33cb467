"""turns.c in processes of its own: threads that race come out the same each time, whatever the machine and the environment are like; and
so do the addresses that a library of the compiler's gets."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import child
from edgekit.engines.qnn import compiler
from edgekit.errors import EngineError

pytestmark = pytest.mark.skipif(compiler.turns() is None, reason="turns.c is compiled on x86-64 Linux where a C compiler is")

RACE = r"""
import hashlib, queue, random, threading, time
said, work, ready, go = [], queue.Queue(), threading.Condition(), threading.Semaphore(0)
def worker(name):
    go.acquire()
    while (item := work.get()) is not None:
        with ready:
            said.append((name, item, time.monotonic_ns(), time.process_time_ns()))
            ready.notify_all()
        if item % 7 == 0:
            time.sleep(random.Random(item).random())
        time.sleep(0)
threads = [threading.Thread(target=worker, args=(i,)) for i in range(6)]
for t in threads: t.start()
for _ in threads: go.release()
for item in range(300): work.put(item)
with ready:
    assert ready.wait_for(lambda: len(said) == 300)
    assert not ready.wait_for(lambda: False, timeout=3600)
assert not go.acquire(timeout=3600)
for _ in threads: work.put(None)
for t in threads: t.join()
print(len({name for name, *_ in said}), hashlib.sha256(repr(said).encode()).hexdigest())
"""
# Random requests of all kinds; every block is filled, and read before it is given up. The name makes the library one of the compiler's.
REQUESTS = r"""
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
void *_Znwm(size_t), *_ZnamSt11align_val_t(size_t, size_t);
static uint64_t state = 1;
static size_t next(size_t below) { state = state * 6364136223846793005u + 1442695040888963407u; return (state >> 33) % below; }
static struct { unsigned char *at, mark; size_t size; } held[500];
uint64_t requests(int count)
{
    uint64_t seen = 0;
    for (int i = 0; i < count; i++) {
        int slot = next(500);
        unsigned char *p = held[slot].at, mark = held[slot].mark;
        size_t had = held[slot].size, size = next(100) ? next(next(10) ? 300 : 70000) : next(5000000), to = (size_t)1 << (4 + next(10));
        for (size_t j = 0; j < had; j += had > 70000 ? 997 : 1)
            if (p[j] != mark) return 0;
        int kind = next(7);
        if (p && kind == 6) {
            if (!(p = realloc(p, size + 1))) return 0;
            for (size_t j = 0; j < had && j < size; j++)
                if (p[j] != mark) return 0;
        } else {
            free(p);
            void *q = 0;
            if (kind == 5 && posix_memalign(&q, to, size)) return 0;
            p = kind == 0 ? malloc(size) : kind == 1 ? calloc(3, size) : kind == 2 ? aligned_alloc(to, size) : kind == 3 ? _Znwm(size)
                : kind == 4 ? _ZnamSt11align_val_t(size, to) : kind == 5 ? q : malloc(size);
            if (!p || ((kind == 2 || kind == 4 || kind == 5) && (uintptr_t)p % to)) return 0;
            for (size_t j = 0; kind == 1 && j < 3 * size; j++)
                if (p[j]) return 0;
        }
        if ((uintptr_t)p >> 40 != 0x20 || (uintptr_t)p % 16 || malloc_usable_size(p) < size) return 0;
        held[slot].at = p, held[slot].size = size, held[slot].mark = i;
        memset(p, i, size);
        seen = seen * 31 + (uintptr_t)p;
    }
    for (int i = 0; i < 500; i++) free(held[i].at);
    return malloc((size_t)1 << 50) ? 0 : seen;
}
"""
ASK = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).requests; f.restype = ctypes.c_uint64; print(f(50000))"
STUCK = "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()"


def process(code: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "LD_PRELOAD": str(compiler.turns()), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_threads_take_turns_in_one_order() -> None:
    """Six that share work, wait for each other and sleep, an hour too: nobody waits for a clock."""
    done = [process(RACE, PYTHONHASHSEED=str(i), LONGER="x" * 1000 * i) for i in range(3)]
    assert [d.returncode for d in done] == [0, 0, 0], done[0].stderr
    assert len({d.stdout for d in done}) == 1
    assert int(done[0].stdout.split()[0]) > 1, "more than one of them worked"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_compilers_memory_lies_in_the_same_places(tmp_path: Path) -> None:
    """Whatever else asked for memory before."""
    (tmp_path / "requests.c").write_text(REQUESTS)
    library = tmp_path / "libQnnRequests.so"
    subprocess.run(["cc", "-O1", "-w", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "requests.c")], check=True)
    done = [process(before + ASK, str(library), LONGER="x" * 5000 * i) for i, before in enumerate(("", "import decimal, json; "))]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    assert done[0].stdout == done[1].stdout != "0\n"


def test_threads_that_wait_for_each_other_end_the_process() -> None:
    done = process(STUCK)
    assert done.returncode < 0 and "all threads wait for each other" in done.stderr


def test_programs_that_such_a_process_starts_are_as_ever() -> None:
    done = process("import os, subprocess; print(subprocess.run(['env'], capture_output=True, text=True).stdout)")
    assert done.returncode == 0 and "LD_PRELOAD" not in done.stdout


def test_a_process_without_it_is_noticed(tmp_path: Path) -> None:
    assert not compiler.in_turns()
    request: child.Json = {"folder": str(tmp_path), "graphs": {}, "memory": 8_000_000_000, "turns": True}
    with pytest.raises(EngineError, match="reproducible = false"):
        child.ask("edgekit.engines.qnn.compiler", request)
    environment = {**os.environ, "LD_PRELOAD": str(compiler.turns())}
    with child.asking("edgekit.engines.qnn.compiler", request, environment=environment) as answer:
        assert answer() == {}


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "TURNS_VERSION", "edgekit turns 0")
    assert compiler.turns.__wrapped__() is None
