"""For all tests: the user's own cache is neither read nor written (but npm's tarballs, which test_package_web takes from there), nor do
the user's settings count."""

import os
import shutil
import sys
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Here, not in a fixture: test modules copy the environment for their subprocesses as they are imported.
    os.environ["EDGEKIT_CACHE"] = tempfile.mkdtemp(prefix="edgekit-test-cache-")
    os.environ.pop("EDGEKIT_CACHE_LIMIT", None)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # tests import openvino by themselves, too


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["EDGEKIT_CACHE"], ignore_errors=True)
