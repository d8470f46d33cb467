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
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "toolkit")]

with atheris.instrument_imports(include=["edgekit", "jinja2"], enable_loader_override=False):
    from edgekit import artifact, checkpoint, models, records  # noqa: F401
    from edgekit.errors import EdgekitError
    from edgekit.runtime import chat

from checkpoints import CHAT_TEMPLATE, VARIANTS  # noqa: E402

TIMEOUT, MEMORY = 10, 2048
"""Seconds and MB of one input."""

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


def template(data: atheris.FuzzedDataProvider, folder: Path) -> None:
    if data.ConsumeIntInRange(0, 2):
        parts = (data.PickValueInList(list(PIECES)) for _ in range(data.ConsumeIntInRange(1, 12)))
        source = "".join(part if data.ConsumeIntInRange(0, 7) else data.ConsumeUnicode(6) for part in parts)
    else:
        source = data.ConsumeUnicode(1 << 12)
    compiled = chat.ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    compiled.render([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ha"}], now=chat.VECTOR_TIME)


READERS: dict[str, Callable[[atheris.FuzzedDataProvider, Path], None]] = {
    "header": header,
    "config": config,
    "manifest": manifest,
    "template": template,
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
    atheris.Setup([sys.argv[0], f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", "-len_control=10", *sys.argv[1:], *corpus], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
