"""Updates of an artifact: what travels when one layer changed, and kill -9 at random moments of applying it.

python bench/update.py --kills 200 --out bench/results/update.json
"""

import argparse
import collections
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "tests")]

import edgekit  # noqa: E402
from checkpoints import Variant, make_checkpoint  # noqa: E402
from edgekit.artifact import MANIFEST, check_digests, load_artifact  # noqa: E402
from edgekit.engines import ENGINES  # noqa: E402
from edgekit.updates.diff import diff  # noqa: E402
from tiny_artifact import write_target  # noqa: E402

LAYERS, LAYER = 8, 3
LARGE = Variant("llama", {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": LAYERS, "num_attention_heads": 8})


def change_layer(model: Path, changed: Path) -> None:
    """A copy of ``model`` in which one layer's weights are others; its norms stay."""
    shutil.copytree(model, changed)
    path, random = changed / "model.safetensors", np.random.default_rng(1)
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    for name, entry in json.loads(raw[8:start]).items():
        if f"layers.{LAYER}." in name and len(entry.get("shape", ())) == 2:
            begin, end = (start + offset for offset in entry["data_offsets"])
            width = (end - begin) // int(np.prod(entry["shape"]))
            values = np.frombuffer(raw, np.uint8, end - begin, begin).reshape(-1, width)
            raw[begin:end] = random.permutation(values).tobytes()
    path.write_bytes(raw)


def total(artifact: Path) -> int:
    return sum(info.bytes for info in load_artifact(artifact).manifest.files.values())


def apply(update: Path, device: Path, seconds: float | None) -> tuple[bool, float]:
    """Runs ``edge apply`` and kills it so long after it began to write; None lets it end. Whether it was killed, and how long it wrote."""
    command = [sys.executable, "-m", "edgekit.cli", "apply", str(update), str(device), "--quiet"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT / "toolkit")})
    while process.poll() is None and not any(path.name.startswith(".model.partial") for path in device.parent.iterdir()):
        time.sleep(0.0003)
    begun = time.monotonic()
    while process.poll() is None and (seconds is None or time.monotonic() - begun < seconds):
        time.sleep(0.0003)
    wrote = time.monotonic() - begun
    process.kill()
    return process.wait() == -signal.SIGKILL, wrote


def kills(old: Path, new: Path, update: Path, folder: Path, times: int, random: Random) -> dict[str, int]:
    """What was there after each kill: the old or the new artifact, whole. Raises where it is neither, or the next apply leaves anything."""
    manifests = {(old / MANIFEST).read_bytes(): "old", (new / MANIFEST).read_bytes(): "new"}
    device, found = folder / "device" / "model", collections.Counter[str]()
    shutil.copytree(old, device)
    whole = apply(update, device, None)[1]
    while found.total() < times:
        shutil.rmtree(device.parent)
        shutil.copytree(old, device)
        killed, wrote = apply(update, device, random.uniform(0, 1.1 * whole))
        check_digests(load_artifact(device))
        edgekit.load(device).close()
        there = manifests[(device / MANIFEST).read_bytes()]
        if not killed:
            assert there == "new"
            whole = (whole + wrote) / 2
            continue
        found[there] += 1
        if there == "old":
            assert not apply(update, device, None)[0]
            assert manifests[(device / MANIFEST).read_bytes()] == "new"
            left = sorted(path.name for path in device.parent.iterdir())
            assert left == ["model", "model.previous"], left
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    random, sizes = Random(args.seed), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EDGEKIT_CACHE"] = str(folder / "cache")
        make_checkpoint(folder / "model", LARGE)
        change_layer(folder / "model", folder / "changed")
        make_checkpoint(folder / "fewer", Variant("llama", {**LARGE.config, "num_hidden_layers": LAYERS - 1}))
        killed: dict[str, int] = {}
        for engine in (e for e in ENGINES if e != "null"):
            target = write_target(folder / f"{engine}.toml", engine)
            old, new, fewer = (folder / engine / name for name in ("model", "changed", "fewer"))
            for output in (old, new, fewer):
                edgekit.build(folder / output.name, target=target, output=output, verify=False)
            made = diff(old, new, folder / f"{engine}.update")
            layer = total(old) - total(fewer)
            sizes[engine] = {"artifact": made.total, "layer": layer, "update": made.bytes, "of the layer": round(made.bytes / layer, 5)}
            print(engine, sizes[engine], flush=True)
            if not killed:
                killed = kills(old, new, folder / f"{engine}.update", folder, args.kills, random)
                print(killed, flush=True)
    result = {
        "command": f"python bench/update.py --kills {args.kills} --seed {args.seed}",
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "layers": LAYERS,
        "sizes": sizes,
        "kills": args.kills,
        "found_after": killed,
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
