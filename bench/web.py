"""How far a page gets with a model: loads a package of ``edge package --for web`` in headless Chromium and asks it once.

    python bench/web.py PACKAGE [--prompt TEXT] [--tokens 4] [--out web.json]

Without a GPU, Chromium computes WebGPU on the CPU (SwiftShader): that the page works is shown, how fast it is on a GPU is not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import chromium


def ask(page: chromium.Page, prompt: str, tokens: int) -> dict[str, Any]:
    """One answer, stopped after so many tokens."""
    begun = time.monotonic()
    page.evaluate(f"document.getElementById('prompt').value = {json.dumps(prompt)}; document.getElementById('ask').requestSubmit()")
    answer = "[...document.querySelectorAll('.assistant')].at(-1)"
    page.wait(f"document.body.dataset.state !== 'answering' || {answer}.textContent")
    first = time.monotonic() - begun
    while page.evaluate("document.body.dataset.state") == "answering":
        if time.monotonic() - begun > first * (1 + tokens):
            page.evaluate("document.getElementById('stop').click()")
        time.sleep(0.5)
    return {
        "status": page.evaluate("document.getElementById('status').textContent"),
        "first_text_seconds": round(first, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "tokens": json.loads(page.evaluate(f"{answer}.dataset.tokens ?? '[]'")),
    }


def tried(package: Path, prompt: str, tokens: int) -> dict[str, Any]:
    manifest = json.loads((package / "artifact" / "edgekit.json").read_text(encoding="utf-8"))
    webgpu = manifest["engine"]["details"].get("provider") == "webgpu"
    found: dict[str, Any] = {"model": manifest["model"]["name"], "parameters": manifest["model"]["parameters"], "webgpu": webgpu}
    with (
        chromium.serving(package) as server,
        tempfile.TemporaryDirectory() as profile,
        chromium.chromium(Path(profile), webgpu=webgpu) as page,
    ):
        begun = time.monotonic()
        page.open(f"http://127.0.0.1:{server.server_port}/")
        page.wait("document.body?.dataset.state")
        found["load"] = {
            "status": page.evaluate("document.getElementById('status').textContent"),
            "seconds": round(time.monotonic() - begun, 1),
        }
        if page.evaluate("document.body.dataset.state") == "ready":
            found["answer"] = ask(page, prompt, tokens)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("package", type=Path)
    options.add_argument("--prompt", default="turn on the kitchen light")
    options.add_argument("--tokens", type=int, default=4)
    options.add_argument("--patience", type=float, default=1800.0, help="seconds that the page may take for anything")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    chromium.PATIENCE = given.patience
    browser = subprocess.run([str(chromium.program()), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    found = {"command": " ".join(sys.argv), "browser": browser, **tried(given.package, given.prompt, given.tokens)}
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
