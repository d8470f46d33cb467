"""Coverage-guided fuzzing of everything that reads what a stranger wrote (https://github.com/google/atheris; not part of ``make test``).

    make fuzz                                            # every reader, FUZZ_SECONDS (600) each
    python tests/fuzz/fuzz.py header -max_total_time=60  # one reader; further options are libFuzzer's

A reader may raise an EdgekitError and nothing else. libFuzzer stops at the first input for which it raises another exception, takes
longer than TIMEOUT seconds or more memory than MEMORY, and keeps that input; give its path as the only further argument to see it again.
Half of the inputs are bytes as they come, half are edits of a valid document (so that what lies behind the JSON parser is reached, too).
"""

import contextlib
import copy
import json
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "toolkit")]

with atheris.instrument_imports(include=["edgekit"], enable_loader_override=False):
    from edgekit import artifact, checkpoint, confine, models, records  # noqa: F401
    from edgekit.errors import EdgekitError
    from edgekit.runtime import chat, tokenizer

from checkpoints import CHAT_TEMPLATE, VARIANTS, write_json, write_tokenizer  # noqa: E402

TIMEOUT, MEMORY = 10, 2048
"""Seconds and MB of one input."""
KEPT = 100
"""Inputs that one process for texts is given."""
SLOWEST = 600
"""Seconds on the clock for texts, whose limits are of processor time: what they are asserted to take is that (see Within)."""

WEIRD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 24, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 10**400, 0.0, -0.5, 1.5, 1e30, 1e308, 1e-320),
    *(
        float("nan"),
        float("inf"),
        "",
        "a",
        "\0",
        "../x",
        "/etc/passwd",
        "\ud800",
        "longrope",
        "llama3",
        "linear",
        "yarn",
        "F32",
        "BF16",
        "U8",
    ),
    *([], {}, [0], [0, 0], [0, 8], [8, 0], [-1, 8], [1 << 62, 1 << 62], [2, 3], [[[]]], {"": None}, {"factor": 0}, [1.0] * 16, ["a"]),
)
MANIFEST: dict[str, Any] = {
    "format": "edgekit",
    "version": 1,
    "producer": "edgekit 0.1.0",
    "model": {
        **{"name": "m", "source": "local", "revision": None, "license": None, "architecture": "phi3", "parameters": 1},
        "files": {"config.json": "0" * 64},
    },
    "target": "cpu",
    "engine": {"name": "onnx", "requires": {"onnxruntime": ">=1.23"}, "details": {"provider": "cpu", "n": 1}},
    "scheme": {
        **{"name": "int4-g32", "bits_per_weight": 4.5, "linear": {"bits": 4, "group": 32}, "embedding": {"bits": 8, "group": 32}},
        **{"lm_head": {"bits": 8, "group": 32}, "exceptions": {"norm": {"bits": 16, "group": None}}},
    },
    "context": {"length": 96, "rope_switch": 24, "sliding_window": None},
    "tokens": {"vocab_size": 320, "bos": 1, "stop": [2, 3], "add_bos": False},
    "chat_template": "chat_template.jinja",
    "conformance": {
        "encode": [{"text": "hi", "ids": [1, 2]}],
        "chat": [{"messages": [{"role": "user", "content": "hi"}], "rendered": "hi"}],
        "greedy": {"computed_by": "onnx", "vectors": [{"prompt": [1], "continuation": [2]}], "reason": None},
    },
    "files": {"chat_template.jinja": {"bytes": 2, "sha256": "0" * 64}},
}
HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
    "c": {"dtype": "F4", "shape": [0, 3], "data_offsets": [24, 24]},
}
CONFIGS = [variant.config_json() for variant in VARIANTS.values()]
PIECES = (
    *("{{ ", " }}", "{% for m in messages %}", "{% endfor %}", "{% if ", " %}", "{% endif %}", "{% set x = "),
    *("{% set ns = namespace(x=", ")", "{% macro f(a) %}", "{% endmacro %}", "f(f)", "messages", "messages[0]", ".content"),
    *("['role']", "range(9999999)", "range(9)", "'a'", "9", " * ", " ** ", " ~ ", " + ", " % ", " // ", " | ", "join"),
    *("center(999999999)", "indent(99999999)", "tojson(indent=999999)", "list", "format(1)", "'%999999999d'"),
    *("'{:>999999999}'.format(1)", ".__class__", "|attr('__init__')", "replace('a', 'aaaaaaaaaa')", "batch(3)"),
    *("map(attribute='x')", "selectattr('role')", "{% generation %}", "{% endgeneration %}", "{% break %}", "loop", "loop.index"),
    *("loop(9)", "strftime_now('%Y')", "raise_exception('x')", "{% filter upper %}", "{% endfilter %}", "{% call f() %}"),
    *("{% endcall %}", "cycler('a')", "joiner()", "dict(a=1)", "|sort", "|sum(start=[])", "|wordwrap(1)", "|groupby('role')"),
    *("|slice(99999999)", "|xmlattr", "|urlize", "|pprint", "{% set x = x ~ x %}", "{% for i in range(99) %}", " recursive %}"),
    *("{% block a %}", "{% endblock %}", "self.a()", "|truncate(9)", "|round(99)", ".split('a')", ".upper()", ".zfill(999999999)"),
    *(".ljust(99999999)", ".expandtabs(99999999)", ".join(messages)", "[::-1]", "|string", "|int", "'aaaaaaaaaa'"),
    *("|replace('a', 'aaaaaaaaaa')", "|map('upper')", "|list", "|join(',')", "1000000", "{% set ns.x = ns.x ~ ns.x %}"),
)


def edited(data: atheris.FuzzedDataProvider, document: Any) -> Any:
    """A copy of ``document`` in which some values are weird, doubled or gone."""
    root = {"": json.loads(json.dumps(document))}
    for _ in range(data.ConsumeIntInRange(1, 4)):
        here: Any = root
        key: Any = ""
        while isinstance(here[key], (dict, list)) and here[key] and data.ConsumeIntInRange(0, 5):
            here = here[key]
            key = data.PickValueInList(list(here)) if isinstance(here, dict) else data.ConsumeIntInRange(0, len(here) - 1)
        what = data.ConsumeIntInRange(0, 9)
        if what == 0 and isinstance(here, dict) and key:
            del here[key]
        elif what == 1:
            here[key] = [here[key]]
        elif what == 2 and isinstance(here, dict) and key:
            here[data.ConsumeUnicodeNoSurrogates(8)] = here[key]
        elif what == 3:
            here[key] = data.ConsumeInt(8)
        elif what == 4:
            here[key] = data.ConsumeUnicode(12)
        else:
            here[key] = copy.deepcopy(data.PickValueInList(list(WEIRD)))
    return root[""]


def text_of(data: atheris.FuzzedDataProvider, document: Any) -> bytes:
    """A document as bytes: raw, or an edit of ``document``."""
    if data.ConsumeBool():
        return bytes(data.ConsumeBytes(1 << 16))
    return json.dumps(edited(data, document)).encode()


def header(data: atheris.FuzzedDataProvider, folder: Path) -> None:
    path = folder / "model.safetensors"
    size = data.ConsumeIntInRange(0, 40)
    text = text_of(data, HEADER)
    framed = len(text).to_bytes(8, "little") + text + bytes(size) if data.ConsumeIntInRange(0, 3) else text
    path.write_bytes(framed)
    for info in checkpoint.read_header(path).values():
        assert 8 <= info.begin <= info.end <= len(framed)


def config(data: atheris.FuzzedDataProvider, folder: Path) -> None:
    (folder / "config.json").write_bytes(text_of(data, data.PickValueInList(CONFIGS)))
    read = checkpoint.read_config(folder)
    found = models.architecture(read)
    decoder = found.decoder_config(read)
    shapes = decoder.weight_shapes()
    assert set(found.weight_slices(decoder)) == set(shapes)
    decoder.rope.cos_sin(3, long=decoder.rope.is_long(min(decoder.context, 100)))


def manifest(data: atheris.FuzzedDataProvider, folder: Path) -> None:
    (folder / artifact.MANIFEST).write_bytes(text_of(data, MANIFEST))
    (folder / "chat_template.jinja").write_bytes(b"hi")
    loaded = artifact.load_artifact(folder).manifest
    assert artifact.Manifest.from_json(loaded.to_json()) == loaded


class Within:
    """Templates and tokenizers are read in a process of its own, with limits: here it is seen to that these hold for every input.

    What its cost allows for opening, trying and each request counts together; a process takes a little more until it is ended.
    """

    def __init__(self, name: str, requests: tuple[confine.Cost, ...], memory: int) -> None:
        self.name, self.memory = name, memory
        self.seconds = sum(cost.seconds for cost in requests) + 1.0
        self.runs, self.worst, self.most = 0, 0.0, 0
        self._process: confine.Confined | None = None

    @contextlib.contextmanager
    def run(self) -> Iterator[confine.Confined]:
        """A process that has had at most KEPT inputs before: starting one takes longer than most of them."""
        if self._process is None:
            self._process = confine.Confined(chat.WORK)
        before = self._spent()
        try:
            yield self._process
        finally:
            spent = self._spent() - before
            self.runs, self.worst = self.runs + 1, max(self.worst, spent)
            if self.runs % KEPT == 0 or self._process._process is None:
                self._process.close()
                self._process = None
                self.most = max(self.most, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
            if spent > self.seconds or self.most > self.memory:
                raise AssertionError(f"{spent:.1f} s, {self.most >> 20} MB: over {self.seconds:.0f} s or {self.memory >> 20} MB")
            if self.runs % 200 == 0:
                limits = f"limits {self.seconds:.0f} s and {self.memory >> 20} MB"
                print(f"{self.name}: {self.runs} runs, at most {self.worst:.2f} s and {self.most >> 20} MB; {limits}", file=sys.stderr)

    def _spent(self) -> float:
        """Processor seconds of all processes so far: those that have ended, and the one that has not."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        running = self._process._process if self._process is not None else None
        alive = 0.0
        if running is not None:
            figures = Path(f"/proc/{running._popen.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            alive = (int(figures[11]) + int(figures[12])) / os.sysconf("SC_CLK_TCK")
        return ended.ru_utime + ended.ru_stime + alive


IN_TEMPLATE = Within("template", (chat.COST, chat.COST), chat.COST.memory * 2)
TEXT = "aaaaaaaaaa<|user|> naïve 12,345  \n\u4f60\u597d " * 400
IN_TOKENIZER = Within(
    "tokenizer",
    (tokenizer.open_cost(100_000), tokenizer.PROBE, tokenizer.encode_cost(len(TEXT.encode())), tokenizer.DECODE, tokenizer.WHOLE),
    confine.MEMORY,
)


def template(data: atheris.FuzzedDataProvider, folder: Path) -> None:
    if data.ConsumeIntInRange(0, 2):
        parts = (data.PickValueInList(list(PIECES)) for _ in range(data.ConsumeIntInRange(1, 12)))
        source = "".join(part if data.ConsumeIntInRange(0, 7) else data.ConsumeUnicode(6) for part in parts)
    else:
        source = data.ConsumeUnicode(1 << 12)
    with IN_TEMPLATE.run() as process:
        compiled = chat.ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, process)
        compiled.render([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ha"}], now=chat.VECTOR_TIME)


NORMALIZERS: tuple[Any, ...] = (
    *({"type": kind} for kind in ("NFC", "NFKD", "NFKC", "Lowercase", "StripAccents", "Nmt", "ByteLevel")),
    *({"type": "Prepend", "prepend": "a" * n} for n in (1, 100, 1_000_000)),
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    *(
        {"type": "Replace", "pattern": pattern, "content": content}
        for pattern in (
            {"String": "a"},
            {"String": ""},
            {"Regex": ""},
            {"Regex": "(?=a)"},
            {"Regex": "(a+)+$"},
            {"Regex": "."},
            {"Regex": "(a|aa|)*b"},
        )
        for content in ("", "a", "aa", "a" * 10_000)
    ),
)
PRETOKENIZERS: tuple[Any, ...] = (
    *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")),
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Digits", "individual_digits": True},
    {"type": "Punctuation", "behavior": "Isolated"},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    *(
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
        for pattern in (r"(a+)+$", r"(\s*)*x", "", r"(?=(.*)*b)", r"(.|..)+$x", r"\p{L}+|\p{N}{1,3}", r"(?<=a)a{1,9999}", "(((a*)*)*)*b")
        for behavior in ("Isolated", "Removed", "MergedWithPrevious")
        for invert in (False, True)
    ),
)
MODELS: tuple[Any, ...] = (
    {
        "type": "WordPiece",
        "unk_token": "a",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 1 << 40,
        "vocab": {"a" * n: n for n in range(1, 90)},
    },
    {"type": "Unigram", "unk_id": 0, "vocab": [["<u>", 0.0], *(["a" * n, -1.0 * n] for n in range(1, 200))], "byte_fallback": False},
    {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}},
    {"type": "BPE", "vocab": {"a" * (1 << n): n for n in range(16)}, "merges": [["a" * (1 << n)] * 2 for n in range(15)]},
)


def nested(data: atheris.FuzzedDataProvider, parts: tuple[Any, ...], key: str) -> Any:
    """One of ``parts``, several, or some many times over."""
    chosen = [data.PickValueInList(list(parts)) for _ in range(data.ConsumeIntInRange(1, 6))]
    times = data.PickValueInList([1, 1, 1, 3, 40, 1000])
    return chosen[0] if len(chosen) == 1 and times == 1 else {"type": "Sequence", key: chosen * times}


def texts(data: atheris.FuzzedDataProvider, folder: Path) -> None:
    if not (folder / "good.json").is_file():
        write_json(folder / "config.json", {})
        write_tokenizer(folder)
        (folder / "tokenizer.json").rename(folder / "good.json")
    good = json.loads((folder / "good.json").read_text(encoding="utf-8"))
    kind = data.ConsumeIntInRange(0, 3)
    if kind == 0:
        content = text_of(data, good)
    else:
        if kind & 1:
            good["normalizer"] = nested(data, NORMALIZERS, "normalizers")
        if kind & 2:
            good["pre_tokenizer"] = nested(data, PRETOKENIZERS, "pretokenizers")
        if data.ConsumeIntInRange(0, 2) == 0:
            good["model"] = data.PickValueInList(list(MODELS))
        content = json.dumps(edited(data, good) if data.ConsumeIntInRange(0, 3) == 0 else good).encode()
    (folder / "tokenizer.json").write_bytes(content)
    with IN_TOKENIZER.run() as process:
        opened = tokenizer.open_tokenizer(folder, process=process)
        ids = opened.backend.encode(TEXT)
        opened.backend.decode(ids)
        opened.backend.fewest(TEXT)


READERS: dict[str, Callable[[atheris.FuzzedDataProvider, Path], None]] = {
    "header": header,
    "config": config,
    "manifest": manifest,
    "template": template,
    "tokenizer": texts,
}


def seeds(name: str) -> Iterator[bytes]:
    """Valid inputs to begin with; the fuzzer's data provider takes its choices from the end, so these are taken as raw bytes."""
    if name == "header":
        yield json.dumps(HEADER).encode() + bytes(24)
    elif name == "config":
        yield from (json.dumps(found).encode() for found in CONFIGS)
    elif name == "manifest":
        yield json.dumps(MANIFEST).encode()
    else:
        yield CHAT_TEMPLATE.encode()
        for number in range(64):  # what libFuzzer begins with is short; a tokenizer or template of many parts takes many choices
            yield random.Random(number).randbytes(200)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        raise SystemExit(f"which reader? {', '.join(READERS)}")
    name = sys.argv.pop(1)
    read = READERS[name]
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    (folder / "corpus").mkdir()
    for number, seed in enumerate(seeds(name)):
        (folder / "corpus" / str(number)).write_bytes(seed + b"\x01" * 8)

    def one(raw: bytes) -> None:
        with contextlib.suppress(EdgekitError):
            read(atheris.FuzzedDataProvider(raw), folder)

    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    corpus = [] if given else [str(folder / "corpus")]
    atheris.Setup(
        [
            sys.argv[0],
            f"-timeout={SLOWEST if name in ('template', 'tokenizer') else TIMEOUT}",
            f"-rss_limit_mb={MEMORY}",
            "-len_control=10",
            *sys.argv[1:],
            *corpus,
        ],
        one,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
