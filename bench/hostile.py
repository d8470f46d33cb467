"""What each hostile template and tokenizer of tests/hostile.py costs: processor seconds and peak memory of the process that is given it.

python bench/hostile.py           # how each ended
python bench/hostile.py --price   # what the process costs where nothing is hostile; a directory with a tokenizer.json may follow
"""

import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "tests")]

import hostile  # noqa: E402
from edgekit.errors import EdgekitError  # noqa: E402
from edgekit.runtime.chat import WORK, ChatTemplate  # noqa: E402
from edgekit.runtime.tokenizer import open_tokenizer  # noqa: E402

TEXT = 1_000_000
"""Characters of the word that a tokenizer is given."""


def template(name: str) -> str:
    rendered = ChatTemplate(hostile.TEMPLATES[name], {}).render([{"role": "user", "content": "hi"}])
    return f"{len(rendered)} characters"


def tokenizer(name: str) -> str:
    with TemporaryDirectory() as folder:
        files = hostile.tokenizers(Path(folder) / "good") | hostile.costly_tokenizers(Path(folder) / "good")
        (Path(folder) / "tokenizer.json").write_bytes(files[name])
        opened = open_tokenizer(Path(folder))
        ids = opened.encode("a" * TEXT)
        opened.backend.decode(ids)
        opened.backend.close()
    return f"{len(ids)} tokens"


def cost(task: tuple[str, str]) -> tuple[str, str, float, float]:
    """Name, how it ended, seconds and MB of the process."""
    kind, name = task
    work: Callable[[str], str] = {"template": template, "tokenizer": tokenizer}[kind]
    try:
        ended = work(name)
    except EdgekitError as error:
        ended = f"{type(error).__name__}: {str(error)[:100]}"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return f"{kind} {name!r}", ended, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


def price(directory: Path | None) -> None:
    """Seconds on the processor and the clock, and MB, of the beginning, of one decoded token, and of a long text."""
    from edgekit.confine import Confined

    began, used = time.perf_counter(), time.process_time()
    process = Confined(WORK)
    ChatTemplate("x", {}, process)
    print(f"template opened: {time.perf_counter() - began:.3f} s, {time.process_time() - used:.3f} s of them here")
    if directory is not None:
        began = time.perf_counter()
        opened = open_tokenizer(directory, process=process)
        print(f"tokenizer opened: {time.perf_counter() - began:.3f} s")
        ids = opened.encode("The quick brown fox jumps over the lazy dog.")
        for what, decode in (("asked", opened.backend.decode), ("told here", opened.decode)):
            began, used = time.perf_counter(), time.process_time()
            for _ in range(2000):
                decode(ids[:8])
            spent, mine = time.perf_counter() - began, time.process_time() - used
            print(f"8 tokens decoded, {what}: {spent / 2000 * 1e6:.0f} us, {mine / 2000 * 1e6:.0f} us of processor here")
        for text in ("The quick brown fox jumps over the lazy dog. " * 20_000, "a" * TEXT):
            began = time.perf_counter()
            count = len(opened.encode(text))
            print(f"{len(text):,} characters, {count:,} tokens: {time.perf_counter() - began:.2f} s")
    process.close()
    used_there = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"the process: {used_there.ru_utime + used_there.ru_stime:.2f} s, at most {used_there.ru_maxrss / 1000:.0f} MB")


def main() -> None:
    if sys.argv[1:2] == ["--price"]:
        price(Path(sys.argv[2]) if len(sys.argv) > 2 else None)
        return
    with TemporaryDirectory() as folder:
        names = [*hostile.tokenizers(Path(folder)), *hostile.costly_tokenizers(Path(folder))]
    tasks = [*(("template", name) for name in hostile.TEMPLATES), *(("tokenizer", name) for name in names)]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = []
        for row in pool.imap(cost, tasks):
            rows.append(row)
            name, ended, seconds, megabytes = row
            print(f"{seconds:7.2f} s {megabytes:7.0f} MB  {name}: {ended}", flush=True)
    for kind in ("template", "tokenizer"):
        found = [row for row in rows if row[0].startswith(kind)]
        print(f"{len(found)} {kind}s; longest {max(row[2] for row in found):.2f} s, most memory {max(row[3] for row in found):.0f} MB")


if __name__ == "__main__":
    main()
