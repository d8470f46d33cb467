"""The same bytes whatever the directory, number of threads, day, user's settings and hash seed; and nothing of it touches a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from edgekit import artifact
from edgekit.engines import ENGINES
from tiny_artifact import write_target

TOOLKIT = Path(artifact.__file__).parent.parent
COMPILER = shutil.which("cc") if sys.platform == "linux" else None
BUILD = """
import sys, time
from edgekit.build import build
from edgekit.errors import EngineMissing
model, target, output, threads = sys.argv[1:]
try:
    manifest = build(model, target=target, output=output, threads=int(threads), cached=False)
    print(time.strftime("%Y"), manifest.conformance.greedy.computed_by)
except EngineMissing as error:
    print("missing", error)
"""
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
#define SHIFT (11L * 365 * 24 * 3600 + 12345)
static int (*real)(clockid_t, struct timespec *);
int clock_gettime(clockid_t id, struct timespec *at) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(id, at);
    if (!done && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += SHIFT;
    return done;
}
time_t time(time_t *out) { struct timespec at; clock_gettime(CLOCK_REALTIME, &at); if (out) *out = at.tv_sec; return at.tv_sec; }
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec at; clock_gettime(CLOCK_REALTIME, &at);
    out->tv_sec = at.tv_sec; out->tv_usec = at.tv_nsec / 1000; return 0;
}
"""
SOCKETS = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static void tell(const char *what) {
    int log = open(getenv("SOCKET_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (write(log, what, strlen(what)) < 0) _exit(99);
    close(log);
}
int socket(int domain, int type, int protocol) {
    tell(domain == AF_UNIX ? "local socket\\n" : "socket\\n");
    errno = EACCES;
    return -1;
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    tell("getaddrinfo\\n");
    return EAI_FAIL;
}
"""
RUN = """
import json, sys, time
from edgekit import cli
def edge(*arguments):
    try:
        cli.app(list(arguments), prog_name="edge")
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
model, target, folder, seconds = sys.argv[1:]
edge("build", "tiny-phi", "--target", "cpu", "--out", folder + "/phi", "--quiet")
edge("build", model, "--target", target, "--out", folder + "/local", "--quiet")
edge("run", folder + "/phi", "turn on the kitchen light")
edge("verify", folder + "/phi", "--quiet")
edge("verify", folder + "/local", folder + "/local", "--quiet")
edge("inspect", folder + "/local", "--check", "--json")
edge("profile", folder + "/phi", "--json", "--tokens", "2", "--rounds", "1", "--loads", "1", "--prompt", "8")
edge("cache", "list")
edge("doctor", "--json")
time.sleep(float(seconds))
"""
LINGER = 8
"""Seconds: ONNX Runtime 1.31 waits about as long before it reports to its maker, if it is let."""


def compiled(source: str, folder: Path) -> Path:
    """A library that is loaded before all others, so that native code meets it too; skips where that cannot be made."""
    if COMPILER is None:
        pytest.skip("needs Linux and a C compiler")
    (folder / "shim.c").write_text(source, encoding="utf-8")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", folder / "shim.so", folder / "shim.c", "-ldl"], check=True)
    return folder / "shim.so"


def run(code: str, *arguments: object, apart: tuple[str, ...] = (), **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*apart, sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(TOOLKIT), **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def held(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("engine", ENGINES)
def test_builds_are_byte_identical_across_directories_threads_and_days(tmp_path: Path, engine: str) -> None:
    places = [tmp_path / "here", tmp_path / "another place, thère"]
    later = {"LD_PRELOAD": str(compiled(CLOCK, tmp_path))} if COMPILER else {}
    settings: list[dict[str, str]] = [
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "2", "TZ": "Pacific/Apia", "LC_ALL": "C", "HOME": str(tmp_path), **later},
    ]
    for place, threads, environment in zip(places, (1, 3), settings, strict=True):
        place.mkdir()
        model = make_checkpoint(place / "model", "phi3-longrope", shards=2)
        target = write_target(place / "test.toml", engine)
        done = run(BUILD, model, target, place / "out", threads, **environment)
        assert done.returncode == 0, done.stderr
        if done.stdout.startswith("missing"):
            pytest.skip(done.stdout)
        year, tried = done.stdout.split()
        assert tried == engine
        assert (int(year) > 2030) == ("LD_PRELOAD" in environment), "the clock was set forward, for native code too"
    one, other = (held(place / "out") for place in places)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    artifact.load_artifact(places[1] / "out")


@pytest.mark.parametrize("isolated", [False, True], ids=["watched", "unshare -n"])
def test_build_run_verify_profile_and_doctor_touch_no_network(tmp_path: Path, isolated: bool) -> None:
    """Without any network, and with every attempt to open a socket, by native code too, written down."""
    pytest.importorskip("onnxruntime")
    shim = compiled(SOCKETS, tmp_path)
    apart: tuple[str, ...] = ()
    if isolated:
        apart = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--net", "--map-root-user")
        tried = subprocess.run([*apart, "true"], capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"no network name space may be made here: {tried.stderr.strip()}")
    model = make_checkpoint(tmp_path / "model", "llama")
    target = write_target(tmp_path / "test.toml", "onnx")
    log = tmp_path / "sockets"
    environment = {} if isolated else {"LD_PRELOAD": str(shim), "SOCKET_LOG": str(log)}
    done = run(RUN, model, target, tmp_path, 0 if isolated else LINGER, apart=apart, **environment)
    assert done.returncode == 0, done.stderr
    assert '"room": "kitchen"' in done.stdout
    assert not log.exists() or log.read_text(encoding="utf-8") == ""


def test_the_watch_sees_a_socket(tmp_path: Path) -> None:
    shim = compiled(SOCKETS, tmp_path)
    log = tmp_path / "sockets"
    code = "import contextlib, socket\nwith contextlib.suppress(OSError): socket.create_connection(('example.org', 80))\n"
    run(code + "with contextlib.suppress(OSError): socket.socket()", LD_PRELOAD=str(shim), SOCKET_LOG=str(log))
    assert log.read_text(encoding="utf-8").split() == ["getaddrinfo", "socket"]
