"""A process that may take so much and no more, and what the program that asked for it notices."""

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from edgekit import confine
from edgekit.confine import Confined, Cost, Here, Overrun
from edgekit.errors import EngineError, TemplateError
from edgekit.runtime.chat import WORK, ChatTemplate
from edgekit.windows_job import Limits, limits

posix = pytest.mark.skipif(os.name != "posix", reason="the kernel's limits and signals of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS and Windows do not limit address space so")
LITTLE = Cost(0.3, 64 << 20)
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def process() -> Confined:
    made = Confined(WORK)
    made.open(LITTLE, "compile", "{{ text }}", {})
    made.open(LITTLE, "compile", ENDLESS, {})
    made.open(LITTLE, "compile", "{{ 'a' * 10**9 }}", {})
    return made


def shown(process: Confined | Here, text: str) -> str:
    return str(process.ask(LITTLE, "render", 0, {"text": text}, (2024, 7, 26)))


@posix
def test_after_an_overrun_all_is_open_as_before(process: Confined) -> None:
    for _ in range(2):
        with pytest.raises(Overrun, match=r"more than 0\.3 s"):
            process.ask(LITTLE, "render", 1, {}, (2024, 7, 26))
        assert shown(process, "é") == "é"


@linux
def test_memory_is_what_a_request_may_have(process: Confined) -> None:
    with pytest.raises(Overrun, match="too much memory"):
        process.ask(LITTLE, "render", 2, {}, (2024, 7, 26))
    assert shown(process, "a") == "a"


@posix
def test_a_crash_of_native_code_is_an_overrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the abort of a Rust library that gets no memory."""
    (tmp_path / "crashing.py").write_text("import os\nclass Work:\n    def abort(self): os.abort()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Overrun, match=r"makes a library fail \(SIGABRT\)"):
        Confined("crashing:Work").ask(LITTLE, "abort")


@posix
def test_a_process_that_was_ended_from_outside_is_replaced(process: Confined) -> None:
    assert process._process is not None
    os.kill(process._process._popen.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="SIGKILL"):
        shown(process, "a")
    assert shown(process, "a") == "a"


def test_interrupting_ends_what_is_under_way_and_nothing_else(process: Confined) -> None:
    process.interrupt()
    assert shown(process, "a") == "a", "there was nothing to interrupt"
    ended: list[BaseException] = []

    def endless() -> None:
        try:
            process.ask(Cost(60), "render", 1, {}, (2024, 7, 26))
        except EngineError as error:
            ended.append(error)

    thread = threading.Thread(target=endless)
    thread.start()
    while thread.is_alive():
        process.interrupt()
        time.sleep(0.01)
    assert "interrupted" in str(ended[0])
    assert shown(process, "a") == "a"


def test_other_threads_run_while_it_works(process: Confined) -> None:
    beats = 0

    def endless() -> None:
        with pytest.raises(Overrun):
            process.ask(Cost(1), "render", 1, {}, (2024, 7, 26))

    thread = threading.Thread(target=endless)
    thread.start()
    while thread.is_alive():
        beats += 1
        time.sleep(0.001)
    assert beats > 20


def test_ctrl_c_between_question_and_answer_mixes_nothing_up(process: Confined, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(confine._Process, "_read", interrupted)
        shown(process, "first")
    assert shown(process, "second") == "second"


@posix
def test_a_fork_has_a_process_of_its_own(process: Confined) -> None:
    assert process._process is not None
    first = process._process._popen.pid
    child = os.fork()
    if child == 0:
        good = shown(process, "child") == "child" and process._process is not None and process._process._popen.pid != first
        process.close()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert shown(process, "parent") == "parent"
    assert process._process._popen.pid == first


@posix
def test_it_ends_with_the_program_that_asked(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from edgekit.runtime.chat import ChatTemplate
        template = ChatTemplate("x", {})
        print(template._process._process._popen.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, env=_environment())
    pid = int(said.stdout)
    for _ in range(2000):
        if not _runs(pid):
            return
        time.sleep(0.01)
    raise AssertionError("the process outlives the program")


@posix
def test_nothing_of_the_program_gets_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret of its environment, no file that it has open, and not that it ignores a signal."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    old = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        process = Confined(WORK)
        process.open(LITTLE, "compile", ENDLESS, {})
        if sys.platform == "linux":
            assert process._process is not None
            home = Path(f"/proc/{process._process._popen.pid}")
            assert b"secret" not in (home / "environ").read_bytes()
            assert len(list((home / "fd").iterdir())) <= 6
        with pytest.raises(Overrun):
            process.ask(LITTLE, "render", 0, {}, (2024, 7, 26))
    finally:
        signal.signal(signal.SIGPROF, old)


@pytest.mark.parametrize("imported", [False, True])
def test_a_frozen_program_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, imported: bool) -> None:
    """Also where something imported multiprocessing's spawn, which takes the program itself for its Python."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    spawn = importlib.import_module("multiprocessing.spawn")
    monkeypatch.setattr(spawn, "_python_exe", os.fsencode(sys.executable) if os.name == "posix" else sys.executable)
    if not imported:
        monkeypatch.delitem(sys.modules, "multiprocessing.spawn")
    with pytest.raises(EngineError, match=r"multiprocessing\.set_executable"):
        ChatTemplate("x", {})
    assert ChatTemplate("{{ messages[0].content }}", {}, Here(WORK)).render(USER) == "hi"


def test_a_program_that_is_no_python_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys, "frozen", raising=False)
    monkeypatch.setattr(sys, "executable", "/bin/false" if os.name == "posix" else "hostname")
    monkeypatch.delitem(sys.modules, "multiprocessing.spawn", raising=False)
    with pytest.raises(EngineError, match="does not run as a Python"):
        ChatTemplate("x", {})


def test_a_file_that_changed_meanwhile_is_not_taken(tmp_path: Path) -> None:
    from checkpoints import write_json, write_tokenizer
    from edgekit.runtime.tokenizer import open_tokenizer

    write_json(tmp_path / "config.json", {})
    write_tokenizer(tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    tokenizer.backend.close()
    assert tokenizer.encode("a"), "closed, it opens again"
    tokenizer.backend.close()
    with (tmp_path / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    with pytest.raises(EngineError, match="changed since it was opened"):
        tokenizer.encode("a")


def test_errors_come_back_as_what_they_are() -> None:
    for process in (Confined(WORK), Here(WORK)):
        with pytest.raises(TemplateError, match="line 2"):
            process.open(LITTLE, "compile", "\n{% if", {})
        process.open(LITTLE, "compile", "{{ text }}", {})
        assert shown(process, "a") == "a"
        process.close()


def test_the_limits_of_windows_have_the_layout_of_its_header() -> None:
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION: 144 bytes where pointers have 8; the kernel refuses another size."""
    if ctypes.sizeof(ctypes.c_void_p) == 8:
        assert ctypes.sizeof(Limits) == 144
        assert Limits.process_memory.offset == 112
    assert limits(1 << 20).process_memory == 1 << 20


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "toolkit")}


def _runs(pid: int) -> bool:
    """Not a zombie either, where nobody collects those."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
