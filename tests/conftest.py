"""For all tests: neither the user's own cache and settings (but npm's tarballs, which test_package_web takes from there) nor how the
tests were started counts, and ``--as-processor`` runs them as another processor would (processors.py)."""

import os
import shutil
import signal
import sys
import tempfile

import pytest

import processors

SETTINGS = ("EDGEKIT_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_")
"""How variables begin that change what is tested; a test sets those that it is about."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--as-processor", choices=sorted(processors.ENVIRONMENT), help="run the tests as this kind of processor would")


def pytest_configure(config: pytest.Config) -> None:
    # Here, not in a fixture: test modules copy the environment for their subprocesses as they are imported.
    for name in [name for name in os.environ if name.startswith(SETTINGS)]:
        del os.environ[name]
    os.environ["EDGEKIT_CACHE"] = tempfile.mkdtemp(prefix="edgekit-test-cache-")
    # What starts the tests may have had signals ignored (a shell's background job, nohup), which every process started by them inherits.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for other in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, other):
            signal.signal(getattr(signal, other), signal.SIG_DFL)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # tests import openvino by themselves, too
    if processor := config.getoption("--as-processor"):
        processors.become(processor)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["EDGEKIT_CACHE"], ignore_errors=True)
