"""What each hostile template of tests/hostile.py costs before it is refused: processor seconds and peak memory, in a process of its own.

python bench/hostile.py
"""

import resource
import sys
import time
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "tests")]

import hostile  # noqa: E402
from edgekit.errors import EdgekitError  # noqa: E402
from edgekit.runtime.chat import ChatTemplate  # noqa: E402


def cost(name: str) -> tuple[str, str, float, float]:
    """Name, how it ended, seconds, and MB above what the process took before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    try:
        ended = f"{len(ChatTemplate(hostile.TEMPLATES[name], {}).render([{'role': 'user', 'content': 'hi'}]))} characters"
    except EdgekitError as error:
        ended = type(error).__name__
    seconds = time.process_time() - began
    return name, ended, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000


def main() -> None:
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = list(pool.imap(cost, hostile.TEMPLATES))
    for name, ended, seconds, megabytes in sorted(rows, key=lambda row: -row[2]):
        print(f"{seconds:7.2f} s {megabytes:7.0f} MB  {name}: {ended}")
    print(f"{len(rows)} templates; longest {max(row[2] for row in rows):.2f} s, most memory {max(row[3] for row in rows):.0f} MB")


if __name__ == "__main__":
    main()
