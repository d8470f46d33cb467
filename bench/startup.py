"""How long it takes until `edge` does something: interleaved medians, so that a busy moment hits all alike.

python bench/startup.py --runs 31 --out bench/results/startup.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import edgekit'": [sys.executable, "-c", "import edgekit"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "edge --help": [sys.executable, "-m", "edgekit.cli", "--help"],
    "edge targets": [sys.executable, "-m", "edgekit.cli", "targets"],
}


def milliseconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "toolkit")}
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():  # fills the page cache and writes the .pyc files
        milliseconds(command, environment)
    for _ in range(arguments.runs):
        for name, command in COMMANDS.items():
            times[name].append(milliseconds(command, environment))
    result = {
        "command": f"python bench/startup.py --runs {arguments.runs}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "typer": version("typer")},
        "median_ms": {name: round(statistics.median(values), 1) for name, values in times.items()},
        "best_ms": {name: round(min(values), 1) for name, values in times.items()},
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
