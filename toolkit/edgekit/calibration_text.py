"""The text that weights are fitted to where the user gives none: prose, dialogue, instructions, code, data and maths in sixteen languages.

Written for this purpose, so it is free of any licence but edgekit's own. ``calibration_passages.txt`` has the sentences; here they become
documents with names, places and numbers of their own, always the same ones: about 64 sequences of 512 tokens for a common tokenizer.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from edgekit.checkpoint import reading

T = TypeVar("T")
LENGTH = 150_000
"""Characters at least."""
NAMES = (
    "Amina",
    "Jonas",
    "Mei",
    "Carlos",
    "Ingrid",
    "Tomasz",
    "Leila",
    "Kenji",
    "Nora",
    "Pavel",
    "Zeynep",
    "Ravi",
    "Chloé",
    "Oskar",
    "Yuna",
)
CITIES = (
    "Lisbon",
    "Kraków",
    "Osaka",
    "Nairobi",
    "Bergen",
    "Izmir",
    "Lyon",
    "Quito",
    "Graz",
    "Busan",
    "Utrecht",
    "Tomsk",
    "Pune",
    "Trieste",
)
WORDS = ("total", "index", "buffer", "price", "width", "offset", "score", "count", "limit", "sample", "weight", "delay")
VERBS = ("load", "merge", "update", "filter", "encode", "split", "check", "resize", "sort", "flush")


class Choices:
    """A stream of choices that is the same on every Python (Knuth's MMIX generator, its upper half)."""

    def __init__(self) -> None:
        self._state = 20_261_121

    def number(self, least: int, most: int) -> int:
        self._state = (self._state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % (1 << 64)
        return least + (self._state >> 32) % (most - least + 1)

    def of(self, options: Sequence[T]) -> T:
        return options[self.number(0, len(options) - 1)]


def calibration_text() -> str:
    """Documents with an empty line between each two. Raises CheckpointError where the package is damaged."""
    place = Path(__file__).with_name("calibration_passages.txt")
    with reading(place):
        sections = [part.splitlines()[1:] for part in place.read_text(encoding="utf-8").split("## ")[1:]]
    choices = Choices()
    kinds: list[Callable[[Choices], str]] = [code, data, maths, table]
    documents: list[str] = []
    while sum(map(len, documents)) < LENGTH:
        for i, lines in enumerate(sections):
            documents.append(passage(lines, choices))
            if i % 2:
                documents.append(choices.of(kinds)(choices))
    return "\n\n".join(documents) + "\n"


def passage(lines: Sequence[str], choices: Choices) -> str:
    """Some sentences of a section, from anywhere in it on, about one person and one place."""
    start, count = choices.number(0, len(lines) - 1), choices.number(3, 6)
    filled = {"name": choices.of(NAMES), "city": choices.of(CITIES), "year": str(choices.number(1790, 1999))}
    picked = [lines[(start + i) % len(lines)] for i in range(min(count, len(lines)))]
    joint = "\n" if any(line.startswith(("User:", "1. ")) for line in picked) else " "
    return joint.join(
        line.format(n=choices.number(2, 60), price=f"{choices.number(3, 900)}.{choices.number(10, 99)}", **filled) for line in picked
    )


def code(choices: Choices) -> str:
    """A function or a query, in one of several languages."""
    a, b, verb, n = choices.of(WORDS), choices.of(WORDS), choices.of(VERBS), choices.number(2, 512)
    return choices.of(
        (
            f'def {verb}_{a}(items, {b}={n}):\n    """Keep items whose {a} is at least {b}."""\n'
            f'    kept = []\n    for item in items:\n        if item["{a}"] < {b}:\n            continue\n        kept.append(item)\n'
            f'    return sorted(kept, key=lambda i: i["{a}"])',
            f"static int {verb}_{a}(const int *{b}, size_t n) {{\n    int {a} = 0;\n    for (size_t i = 0; i < n; i++) {{\n"
            f"        if ({b}[i] > {n}) return -1;\n        {a} += {b}[i];\n    }}\n    return {a};\n}}",
            f"export function {verb}{a.title()}({b}: number[]): number {{\n  const {a} = {b}.filter((v) => v !== {n});\n"
            f"  return {a}.length ? Math.max(...{a}) : 0;\n}}",
            f"SELECT city, COUNT(*) AS {a}, AVG({b}) AS mean_{b}\nFROM orders\n"
            f"WHERE {b} > {n} AND day >= '2025-0{choices.number(1, 9)}-01'\n"
            f"GROUP BY city\nORDER BY mean_{b} DESC\nLIMIT {choices.number(3, 20)};",
            f"fn {verb}(xs: &[u32]) -> Option<u32> {{\n    let {a}: u32 = xs.iter().filter(|x| **x % {n} == 0).sum();\n"
            f"    if {a} == 0 {{ None }} else {{ Some({a}) }}\n}}",
            f"class {a.title()}:\n    def __init__(self, {b}: int = {n}) -> None:\n        self.{b} = {b}\n\n"
            f"    def {verb}(self, other):\n"
            f'        if other.{b} < 0:\n            raise ValueError("{b} must not be negative")\n'
            f"        self.{b} += other.{b}\n        return self",
            f'for file in *.log; do\n  {a}=$(wc -l < "$file")\n  if [ "${a}" -gt {n} ]; then\n'
            f'    gzip --keep "$file" && echo "$file: ${a}"\n  fi\ndone',
        )
    )


def data(choices: Choices) -> str:
    """JSON, as a program would write it."""
    items = [
        {
            "sku": f"{choices.of('ABCDK')}-{choices.number(100, 999)}",
            "count": choices.number(1, 9),
            "price": choices.number(100, 9999) / 100,
        }
        for _ in range(choices.number(1, 4))
    ]
    record = {
        "id": choices.number(1000, 99999),
        "customer": {"name": choices.of(NAMES), "city": choices.of(CITIES), "newsletter": choices.number(0, 1) == 1},
        "items": items,
        "paid": choices.number(0, 1) == 1,
        "note": None,
    }
    return json.dumps(record, ensure_ascii=False, indent=2 if choices.number(0, 1) else None)


def maths(choices: Choices) -> str:
    """A problem with its right answer."""
    a, b, c = choices.number(2, 99), choices.number(2, 99), choices.number(2, 20)
    name, city = choices.of(NAMES), choices.of(CITIES)
    return choices.of(
        (
            f"Question: {name} buys {c} notebooks at {a} cents each and a pen for {b} cents. How much is that in all?\n"
            f"Answer: {c} * {a} = {c * a}, and {c * a} + {b} = {c * a + b}. It is {c * a + b} cents.",
            f"Solve {c}x + {b} = {c * a + b}. Subtracting {b} gives {c}x = {c * a}, and dividing by {c} gives x = {a}.",
            f"{a} + {b} = {a + b}; {a} * {b} = {a * b}; {a * b} / {b} = {a}; {a} - {b} = {a - b}; {a}^2 = {a * a}.",
            f"A train to {city} travels at {a} km/h for {c} hours and then {b} km more. It covers {a} * {c} + {b} = {a * c + b} km.",
            f"Let f(x) = x^2 - {a + b}x + {a * b}. Since {a} + {b} = {a + b} and {a} * {b} = {a * b}, f(x) = (x - {a})(x - {b}): "
            f"the zeros are {a} and {b}.",
            f"The probability of at least one six in {c} throws of a die is 1 - (5/6)^{c} = {1 - (5 / 6) ** c:.4f}.",
        )
    )


def table(choices: Choices) -> str:
    """A table in Markdown, or lines of CSV."""
    rows = [(choices.of(CITIES), choices.number(1, 99), choices.number(100, 9999)) for _ in range(choices.number(3, 6))]
    if choices.number(0, 1):
        return "\n".join(["| city | days | sales |", "|---|---|---|", *(f"| {city} | {days} | {sales} |" for city, days, sales in rows)])
    return "\n".join(["city,days,sales", *(f"{city},{days},{sales}" for city, days, sales in rows)])
