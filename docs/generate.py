"""Writes everything in the documentation that code already knows: docs/cli.md, and what stands between

    <!-- generated: NAME -->
    <!-- end -->

in README.md and other pages. ``python docs/generate.py`` writes, ``--check`` only says what is out of date (a test runs it).
"""

import dataclasses
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "docs")]

import typer  # noqa: E402
from measured import (  # noqa: E402
    against_report,
    build_table,
    calibrate_report,
    decode_table,
    divergence_table,
    gate_table,
    kill_report,
    lookup_table,
    loop_report,
    matmul_table,
    methods_table,
    plan_table,
    profile_bench,
    qnn_report,
    quantizer_tables,
    same_table,
    serve_report,
    session_table,
    startup_table,
    table,
    tamper_report,
    tiny_phi_card,
    tiny_phi_table,
    update_report,
)

import edgekit  # noqa: E402
from edgekit import cli, errors, listing  # noqa: E402
from edgekit.catalog import catalogue  # noqa: E402
from edgekit.device import devices  # noqa: E402
from edgekit.fidelity_gate import DEFAULT, GUESSING  # noqa: E402
from edgekit.packagers.kinds import KINDS, support  # noqa: E402
from edgekit.profile import figures, report  # noqa: E402
from edgekit.quant.scheme import SCHEMES  # noqa: E402
from edgekit.target import targets  # noqa: E402

PAGES = (
    "README.md",
    "docs/artifact.md",
    "docs/cli.md",
    "docs/package.md",
    "docs/performance.md",
    "docs/profile.md",
    "docs/profile.schema.json",
    "docs/security.md",
    "docs/serve.md",
    "docs/signing.md",
    "docs/updates.md",
    "docs/plan.md",
    "docs/qnn.md",
    "docs/quantization.md",
    "docs/fidelity.md",
    "toolkit/edgekit/tiny_phi/README.md",
)
BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def target_table() -> str:
    return table(*listing.target_table(targets()))


def package_table() -> str:
    """Every kind with every target."""
    rows = [[f"`{t.name}`", *(_supported(support(kind, t.name)) for kind in KINDS)] for t in targets()]
    return table(["target", *(f"`{kind}`" for kind in KINDS)], rows)


def _supported(others: Sequence[str]) -> str:
    return f"no: {', '.join(others)}" if others else "works"


def device_table() -> str:
    return table(*listing.device_table(devices()))


def model_table() -> str:
    return table(*listing.model_table(catalogue()))


def scheme_table() -> str:
    rows = [
        [
            f"`{s.name}`",
            str(s.linear.group),
            f"{s.linear.bits_per_weight:.3f}",
            # ONNX Runtime's kernels take scales of 32 bits
            f"{s.linear.bits_per_weight + 16 / s.linear.group:.3f}",
            # MLX has a float16 bias where others have a zero point
            f"{s.linear.bits + 32 / s.linear.group:.3f}",
            f"{s.lm_head.bits} bits, {s.lm_head.bits_per_weight:.3f}",
        ]
        for s in SCHEMES.values()
    ]
    return table(["scheme", "group", "bits a weight", "in an ONNX artifact", "in an MLX artifact", "embedding and lm_head"], rows)


def limit_table() -> str:
    rows = [["every scheme", f"{DEFAULT.max_kl:g}", f"{DEFAULT.min_top1:.0%}"]]
    rows.append(["any, of a model that only guesses", f"{GUESSING.max_kl:g}", f"{GUESSING.min_top1:.0%}"])
    return table(["scheme", "mean KL divergence at most, nats", "same likeliest token at least"], rows)


def exit_codes() -> str:
    """Read off the classes, in the order of their codes; what each means stands in errors.py's own docstring."""
    meaning = dict(re.findall(r"(?m)^ [├└]─ (\w+) +\d+ +(.+)$", errors.__doc__ or ""))
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and "exit_code" in vars(k) and k.__name__ in meaning]
    rows = [[str(k.exit_code), f"`{k.__name__}`", meaning[k.__name__]] for k in sorted(kinds, key=lambda k: k.exit_code)]
    return table(["code", "kind", "meaning"], [["0", "", "done"], ["1", "", "anything else"], *rows, ["130", "", "ended by Ctrl-C"]])


def profile_records() -> str:
    """Every object of a profile with its keys, from the dataclasses and what they say of themselves."""
    parts = []
    for record in records(report.Report, []):
        fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(record))
        about = " ".join((record.__doc__ or "").split()).replace("``", "`")
        parts.append(f"- **{record.__name__}** ({fields}): {about}")
    return "\n".join(parts)


def profile_figures() -> str:
    """What --fail-if knows."""
    return ", ".join(f"`{name}`" for name in figures.NAMES)


def profile_schema() -> str:
    """JSON Schema of ``edge profile --json``."""
    found: list[Any] = []
    definitions = {record.__name__: record_schema(record) for record in records(report.Report, found)}
    root = definitions.pop("Report")
    root["properties"] |= {
        "comparison": {"type": "array"},
        "method": {"type": "string"},
        "broken": {"type": "array", "items": {"type": "string"}},
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "edge profile --json", **root, "$defs": definitions}
    return json.dumps(head, indent=1) + "\n"


def records(record: Any, found: list[Any]) -> list[Any]:
    """The dataclass and those that its fields hold, each once, in the order they are met."""
    if dataclasses.is_dataclass(record) and record not in found:
        found.append(record)
        for hint in typing.get_type_hints(record).values():
            records(hint, found)
    for part in typing.get_args(record):
        records(part, found)
    return found


def record_schema(record: Any) -> dict[str, Any]:
    """An object with every key; more keys may come with a later edgekit of the same version."""
    hints = typing.get_type_hints(record)
    properties = {name: value_schema(hint) for name, hint in hints.items()} | (
        {"version": {"const": report.VERSION}} if record is report.Report else {}
    )
    return {"type": "object", "required": list(hints), "properties": properties}


def value_schema(hint: Any) -> dict[str, Any]:
    """Of the types that profile/report.py uses."""
    origin, given = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": list(given)}
    if origin is tuple:
        return {"type": "array", "items": value_schema(given[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": value_schema(given[1])}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [value_schema(arm) for arm in given]}
    if dataclasses.is_dataclass(hint):
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {"type": {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}[hint]}


def api() -> str:
    """The example of the package's docstring, and the first sentence of every public name."""
    about = edgekit.__doc__ or ""
    example = textwrap.dedent("\n".join(line for line in about.splitlines() if line.startswith("    ") or not line)).strip()
    rows = [[f"`edgekit.{name}`", first_sentence(getattr(edgekit, name).__doc__ or "")] for name in sorted(edgekit.__all__)]
    return f"```python\n{example}\n```\n\n{table(['name', 'what it is'], rows)}"


def first_sentence(text: str) -> str:
    words = text.split()
    end = next((i for i, word in enumerate(words) if word.endswith(".") and word not in ("e.g.", "etc.")), len(words) - 1)
    return " ".join([*words[:end], words[end].rstrip(".")] if words else []).replace("``", "`")


def cli_page() -> str:
    """Every command with its arguments and options, taken from the command objects, not from a rendering that changes with Typer."""
    group = typer.main.get_command(cli.app)
    commands = dict(leaves(group))
    parts = [
        "# The `edge` command\n\nGenerated from the help texts by `make docs`; do not edit.",
        group.help or "",
        "\n".join(f"- [`edge {name}`](#edge-{name.replace(' ', '-')}): {command.help}" for name, command in commands.items()),
        "With `--json` stdout holds exactly one JSON document, also when the command fails:\n"
        '`{"error": {"kind": "TargetError", "message": "...", "exit_code": 4}}`. Progress and messages go to stderr.\n'
        'A build for several targets that fails in one of them adds `"written"`, the list of those that are complete.\n'
        "What goes into a pipe or file is UTF-8 on every platform, unless `PYTHONIOENCODING` asks for something else.\n"
        "What the option parser itself refuses (an unknown option, a missing argument) is exit code 2; its text stands on stderr as well.\n"
        "`edge --install-completion` sets up shell completion, `edge --version` shows the version.",
        *(command_section(name, command) for name, command in commands.items()),
        "## Exit codes\n\n" + exit_codes(),
        "## How quick it starts\n\n" + startup_table(),
    ]
    return "\n\n".join(parts) + "\n"


def leaves(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its full name, such as ``cache list``."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def command_section(name: str, command: Any) -> str:
    shown = [p for p in command.params if p.name != "help"]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    usage = " ".join([*(p.metavar if p.required else f"[{p.metavar}]" for p in arguments), "[OPTIONS]"])
    rows = [[f"`{p.metavar}`", p.help or "", "" if p.required else "optional"] for p in arguments]
    rows += [[", ".join(f"`{o}`" for o in p.opts), p.help or "", default(p)] for p in shown if p not in arguments]
    return f"## edge {name}\n\n{command.help}\n\n    edge {name} {usage}\n\n{table(['', 'meaning', 'default'], rows)}"


def default(option: Any) -> str:
    if option.required:
        return "required"
    return "" if option.default is None or option.default is False or option.default == () else str(option.default)


GENERATED = {
    "serve": serve_report,
    "qnn": qnn_report,
    "qnn-two": lambda: qnn_report("qnn_two"),
    "methods": methods_table,
    "methods-real": lambda: methods_table("methods_smollm2"),
    "calibrate": calibrate_report,
    "matmul": matmul_table,
    "against": against_report,
    "loop": loop_report,
    "tamper": tamper_report,
    "update": update_report,
    "kill": kill_report,
    "api": api,
    "targets": target_table,
    "packages": package_table,
    "models": model_table,
    "schemes": scheme_table,
    "limits": limit_table,
    "gate": gate_table,
    "errors": exit_codes,
    "tiny-phi": tiny_phi_table,
    "tiny-phi-card": tiny_phi_card,
    "divergence": divergence_table,
    "quantizers": quantizer_tables,
    "build": build_table,
    "build-cpu": lambda: build_table("build_cpu"),
    "build-intel": lambda: build_table("build_intel"),
    "decode": decode_table,
    "decode-openvino": lambda: decode_table("decode_openvino"),
    "same": same_table,
    "session": session_table,
    "plan": plan_table,
    "devices": device_table,
    "startup": startup_table,
    "lookup": lookup_table,
    "profile-records": profile_records,
    "profile-figures": profile_figures,
    "profile-bench": profile_bench,
}
WHOLE = {"docs/cli.md": cli_page, "docs/profile.schema.json": profile_schema}
"""Pages of which every word is made."""


def fill(text: str, page: str) -> str:
    """``text`` with every generated block made anew."""

    def block(found: re.Match[str]) -> str:
        if found[2] not in GENERATED:
            raise SystemExit(f"{page}: nothing generates {found[2]!r}; known: {', '.join(GENERATED)}")
        return f"{found[1]}{GENERATED[found[2]]()}\n{found[3]}"

    return BLOCK.sub(block, text)


def stale() -> Iterator[tuple[Path, str]]:
    """Every page that is not what the code says, with what it should be."""
    for page in PAGES:
        path = ROOT / page
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        new = WHOLE[page]() if page in WHOLE else fill(old, page)
        if new != old:
            yield path, new


def main() -> None:
    check = "--check" in sys.argv[1:]
    for path, text in (found := list(stale())):
        print(f"{path.relative_to(ROOT).as_posix()} {'is out of date; run: make docs' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8", newline="\n")
    raise SystemExit(1 if check and found else 0)


if __name__ == "__main__":
    main()
