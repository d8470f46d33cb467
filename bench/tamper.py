"""Changes signed artifacts at random, a byte or a file at a time, and looks whether opening them with the key pinned notices.

python bench/tamper.py --times 1000 --out bench/results/tamper.json
"""

import argparse
import collections
import json
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "tests")]

from edgekit.artifact import MANIFEST  # noqa: E402
from edgekit.errors import ArtifactError, SignatureError  # noqa: E402
from edgekit.signing import Trust, make_keys, open_trusted, sign  # noqa: E402


def tamper(directory: Path, random: Random) -> str:
    """Changes one thing and says what: a byte changed, added or cut off, or a file removed, added, linked or swapped with another."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    path, other = random.sample(files, 2)
    kind = random.choice(("byte", "byte", "byte", "byte", "append", "cut", "remove", "add", "link", "swap"))
    data = bytearray(path.read_bytes())
    if kind == "byte":
        at = random.randrange(len(data))
        data[at] ^= random.randrange(1, 256)
        path.write_bytes(data)
    elif kind == "append":
        path.write_bytes(data + bytes([random.randrange(256)]))
    elif kind == "cut":
        path.write_bytes(data[: random.randrange(len(data))])
    elif kind == "remove":
        path.unlink()
    elif kind == "add":
        (directory / f"added-{random.randrange(10**6)}.json").write_bytes(data)
    elif kind == "link":
        path.unlink()
        path.symlink_to(other)
    else:
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    return f"{kind} {path.name}"


def main() -> None:
    from tiny_artifact import build_tiny

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    random = Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EDGEKIT_CACHE"] = str(folder / "cache")
        private, public = make_keys(folder / "k")
        older, newer = (build_tiny(folder / engine, "onnx") for engine in ("older", "newer"))
        sign(older, private, release=1)
        sign(newer, private, release=2)
        trust = Trust((public,), release=2)
        open_trusted(newer, trust)
        caught: collections.Counter[str] = collections.Counter()
        missed = []
        for i in range(args.times):
            copy = folder / "copy"
            if i % 10 == 9:  # a whole older one, or its manifest and signature under the new files
                shutil.copytree(older if i % 20 == 9 else newer, copy)
                if i % 20 != 9:
                    for part in (MANIFEST, f"{MANIFEST}.sig"):
                        shutil.copy(older / part, copy / part)
                what = "older release"
            else:
                shutil.copytree(newer, copy)
                what = tamper(copy, random)
            try:
                open_trusted(copy, trust)
                missed.append(what)
            except (SignatureError, ArtifactError) as error:
                caught[f"{what.split()[0]}: {type(error).__name__}"] += 1
            shutil.rmtree(copy)
    result = {
        "command": f"python bench/tamper.py --times {args.times} --seed {args.seed}",
        "versions": {"python": platform.python_version(), "cryptography": version("cryptography")},
        "times": args.times,
        "missed": missed,
        "caught": dict(sorted(caught.items())),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    if missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
