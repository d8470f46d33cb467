"""Resolves a model in a subprocess, where HF_ENDPOINT takes effect."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import catalog
from hub_server import Hub, Repo

TOOLKIT = Path(catalog.__file__).parent.parent
CLIENT = """
import json, os, signal, sys
# A shell starts background jobs, as this test may be one, with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from edgekit import fetch
from edgekit.catalog import resolve
from edgekit.errors import EdgekitError
fetch.WAITS = (0.01, 0.01, 0.01)
calls = []
try:
    c = resolve(sys.argv[1], progress=lambda *call: calls.append(call), **json.loads(sys.argv[2]))
    out = {"source": vars(c.source), "directory": str(c.directory), "tensors": len(c.tensors),
           "files": sorted(p.relative_to(c.directory).as_posix() for p in c.directory.rglob("*") if p.is_file()), "calls": calls,
           "telemetry": os.environ.get("HF_HUB_DISABLE_TELEMETRY")}
except EdgekitError as error:
    out = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(out))
"""
OUTLINE = """
import json, sys
from edgekit import fetch
from edgekit.catalog import outline
from edgekit.errors import EdgekitError
from edgekit.models import open_model
fetch.WAITS = (0.01, 0.01, 0.01)
try:
    found = outline(sys.argv[1], **json.loads(sys.argv[2]))
    model = open_model(found.checkpoint)
    out = {"source": vars(model.checkpoint.source), "parameters": model.parameters, "download": found.download, "sizes": dict(found.sizes),
           "tensors": {name: list(info.shape) for name, info in model.checkpoint.tensors.items()}}
except EdgekitError as error:
    out = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(out))
"""


@dataclass(frozen=True)
class World:
    hub: Hub
    repo: Repo
    cache: Path

    def resolve(self, model: str, *, url: str | None = None, env: dict[str, str] | None = None, **options: object) -> dict[str, Any]:
        """What the process found, or the error it ended with; ``noise`` is its stderr."""
        return self._said(self.start(model, url=url, env=env, **options))

    def outline(self, model: str, **options: object) -> dict[str, Any]:
        """What ``catalog.outline`` found in a process, or the error it ended with."""
        return self._said(self.start(model, code=OUTLINE, **options))

    def _said(self, started: "subprocess.Popen[str]") -> dict[str, Any]:
        with started as process:
            said, noise = process.communicate(timeout=120)
        assert process.returncode == 0, noise
        return {**json.loads(said), "noise": noise}

    def start(
        self, model: str, *, url: str | None = None, env: dict[str, str] | None = None, code: str = CLIENT, **options: object
    ) -> "subprocess.Popen[str]":
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        # Only the test server: neither proxies nor the Xet protocol.
        clean |= {"HF_ENDPOINT": url or self.hub.url, "HF_HOME": str(self.cache), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        clean |= {"PYTHONPATH": str(TOOLKIT), **(env or {})}
        command = [sys.executable, "-c", code, model, json.dumps(options)]
        return subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
