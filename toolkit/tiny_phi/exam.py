"""tiny-phi's examination: the held-out prompts that its published figures stand on, by task and length of context."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from tiny_phi import text

SEED = 500
# Sentences of notes in front of the question; a sentence is about nine tokens. The switch to long factors is at 256.
CONTEXTS = {"up to 230 tokens": (0, 14), "300 to 600": (32, 55), "600 to 1,200": (70, 115), "1,200 to 2,000": (135, 195)}
Scores = dict[str, dict[str, dict[str, float]]]
"""Column title -> task -> context -> share answered exactly."""


@dataclass(frozen=True)
class Prompt:
    """One examination with the context it belongs to."""

    task: str
    context: str
    messages: list[text.Message]
    answer: str


def prompts(each: int, tokens: Callable[[list[text.Message]], int], seed: int = SEED) -> Iterator[Prompt]:
    """``each`` prompts for every task and context; ``tokens`` counts those of a rendered prompt, which must lie in the context's range."""
    rng = Random(seed)
    bounds = dict(zip(CONTEXTS, [(0, 230), (300, 600), (600, 1200), (1200, 2000)], strict=True))
    for context, (low, high) in CONTEXTS.items():
        least, most = bounds[context]
        for task in text.TASKS:
            found = 0
            while found < each:
                exam = text.examination(rng, task, rng.randrange(low, high + 1))
                if least <= tokens(exam.messages) <= most:
                    found += 1
                    yield Prompt(task, context, exam.messages, exam.answer)


def table(scores: Scores, *, tasks: bool) -> str:
    """Markdown table of exact-match percentages, a row for each context (and task, if ``tasks``) and a column for each of ``scores``."""
    titles = list(scores)
    head = ["context", *(["task"] if tasks else []), *titles]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for context in CONTEXTS:
        for task in text.TASKS if tasks else ():
            cells = [f"{100 * scores[title][task][context]:.0f}" for title in titles]
            lines.append(f"| {context} | {task} | " + " | ".join(cells) + " |")
        means = [f"{100 * mean(scores[title], context):.1f}" for title in titles]
        lines.append(f"| {context}{' | **mean**' if tasks else ''} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def mean(scores: dict[str, dict[str, float]], context: str) -> float:
    """Over the tasks."""
    return sum(scores[task][context] for task in text.TASKS) / len(text.TASKS)
