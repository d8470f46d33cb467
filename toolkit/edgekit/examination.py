"""All that ``edge verify`` asks: is each artifact what was built, do several say the same, how faithful are they to their model?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edgekit import fidelity_report, parity, verify
from edgekit.artifact import Manifest, load_artifact
from edgekit.cache import open_cache
from edgekit.catalog import resolve
from edgekit.console import table_lines
from edgekit.errors import EdgekitError, FidelityError, UsageError
from edgekit.fidelity import Fidelity, default_text, measure, same_source, source_digests
from edgekit.fidelity_advice import LAST, advice
from edgekit.fidelity_gate import Limits, check
from edgekit.fitting import METHODS
from edgekit.models import Model, open_model
from edgekit.origin import Origin, check_origin
from edgekit.progress import Progress
from edgekit.quant.scheme import SCHEMES
from edgekit.quantized import other_formats
from edgekit.resources import read_text
from edgekit.signing import Trust
from edgekit.windows import FULL, QUICK


@dataclass(frozen=True)
class Wishes:
    """run: let the engines work. against: a model (as for ``edge build``) to measure fidelity to, on ``text`` or edgekit's own; ``html``:
    where the page goes; ``max_kl`` and ``min_top1``: what must be kept. prompts, tokens, margin: of the comparison of several artifacts.
    trust: whose signature each must bear.
    """

    run: bool = True
    against: str | None = None
    text: Path | None = None
    full: bool = False
    html: Path | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    prompts: tuple[str, ...] = ()
    tokens: int = parity.TOKENS
    margin: float = parity.MARGIN
    threads: int | None = None
    trust: Trust | None = None


@dataclass(frozen=True)
class Problem:
    """directory: of the artifact that has it; None where it lies between several."""

    directory: str | None
    kind: str
    message: str
    exit_code: int


@dataclass(frozen=True)
class Measured:
    """fidelity: None of an artifact whose files are not those that were built: it is not run. advice: where it is not faithful enough."""

    directory: str
    origin: Origin
    fidelity: Fidelity | None
    advice: str = LAST


@dataclass(frozen=True)
class Examined:
    """What was found; ``problems`` in the order in which they were met."""

    intact: tuple[verify.Report, ...]
    compared: parity.Report | None
    measured: tuple[Measured, ...]
    problems: tuple[Problem, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "artifacts": [verify.as_json(report) for report in self.intact],
            "parity": None if self.compared is None else self.compared.as_json(),
            "fidelity": [{key: value for key, value in asdict(one).items() if key != "advice"} for one in self.measured],
            "problems": [asdict(problem) for problem in self.problems],
        }

    def as_lines(self) -> list[str]:
        """For people; the problems are not among them."""
        lines = [line for report in self.intact for line in verify.as_lines(report)]
        if self.compared is not None:
            lines += self.compared.as_lines()
        for one in self.measured:
            if one.origin.problems:
                lines.append(f"{one.directory}: NOT what its model makes of it, see below")
            else:
                lines.append(f"{one.directory}: rope factors, chat template and stop ids are its model's; weights: {one.origin.weights}")
            if one.fidelity is None:
                continue
            source = "" if one.fidelity.same_source else " (NOT the checkpoint that it was built from)"
            lines += [f"{one.directory}: fidelity to its model{source}"]
            lines += [f"  {line}" for line in table_lines(fidelity_report.head(one.fidelity), fidelity_report.rows(one.fidelity))]
        return lines


def examine(directories: Sequence[Path], wishes: Wishes, progress: Progress) -> Examined:
    """Does all that is wished; an artifact that is damaged is compared with nothing. Raises UsageError for wishes that do not fit."""
    _check(directories, wishes)
    intact, measured, problems = [], [], []
    compared: parity.Report | None = None
    for directory in directories:
        try:
            intact.append(verify.verify(directory, run=wishes.run, threads=wishes.threads, trust=wishes.trust, progress=progress))
        except EdgekitError as error:
            problems.append(_problem(error, directory))
    if len(directories) > 1 and not problems:
        try:
            compared = parity.verify(
                directories,
                trust=wishes.trust,
                prompts=wishes.prompts,
                tokens=wishes.tokens,
                margin=wishes.margin,
                threads=wishes.threads,
                weights_only=not wishes.run,
            )
            problems += [_disagreement(c, compared.reference) for c in compared.compared if not c.agrees]
        except EdgekitError as error:
            problems.append(_problem(error, None))
    broken = {problem.directory for problem in problems}
    for directory in directories if wishes.against is not None else ():
        try:
            measured.append(_compared(directory, wishes, progress, run=str(directory) not in broken))
            problems += [Problem(str(directory), "FidelityError", text, FidelityError.exit_code) for text in measured[-1].origin.problems]
            found = measured[-1].fidelity
            if found is not None:
                check(found, Limits(wishes.max_kl, wishes.min_top1), str(directory), measured[-1].advice)
        except EdgekitError as error:
            if str(directory) not in broken:  # else said already
                problems.append(_problem(error, directory))
    return Examined(tuple(intact), compared, tuple(measured), tuple(problems))


def _check(directories: Sequence[Path], wishes: Wishes) -> None:
    if wishes.against is None and (wishes.text or wishes.full or wishes.html or wishes.max_kl is not None or wishes.min_top1 is not None):
        raise UsageError("--text, --full, --html, --max-kl and --min-top1 belong to --against MODEL")
    if wishes.against is not None and not wishes.run:
        raise UsageError("--against runs the artifact, --no-run forbids it; give one of them")
    if wishes.html is not None and len(directories) > 1:
        raise UsageError("--html holds the report of one artifact; give one DIR")
    if wishes.prompts and len(directories) < 2:
        raise UsageError("--prompt is for comparing: give at least two artifacts of one model")


def _compared(directory: Path, wishes: Wishes, progress: Progress, *, run: bool) -> Measured:
    """run: measure its predictions, too."""
    model = open_model(resolve(str(wishes.against), progress=progress))
    text = read_text(wishes.text) if wishes.text is not None else default_text(model)
    artifact, cache, threads = load_artifact(directory, trust=wishes.trust), open_cache(), wishes.threads
    sources = source_digests(model, cache, progress, threads)
    origin = check_origin(artifact, model, same_source=same_source(artifact.manifest, sources), progress=progress, threads=threads)
    if not run:
        return Measured(str(directory), origin, None)
    found = measure(artifact, model, text, FULL if wishes.full else QUICK, cache=cache, progress=progress, threads=threads)
    if wishes.html is not None:
        wishes.html.write_text(fidelity_report.html(artifact.manifest, found, origin.errors), encoding="utf-8", newline="\n")
    return Measured(str(directory), origin, found, _advice(artifact.manifest, model))


def _advice(manifest: Manifest, model: Model) -> str:
    """By what the manifest says was done: of a scheme and a method that this edgekit does not know, only what holds of all."""
    held = manifest.scheme
    method = next((known for known in METHODS if known == held.method), None)
    if held.name not in SCHEMES or method is None:
        return LAST
    by_rule = {name: (form.bits, form.group) for name, form in other_formats(model, SCHEMES[held.name]).items()}
    mixed = {name: (form.bits, form.group) for name, form in held.exceptions.items()} != by_rule
    return advice(model, SCHEMES[held.name], method, held.bits_per_weight if mixed else None)


def _problem(error: EdgekitError, directory: Path | None) -> Problem:
    return Problem(None if directory is None else str(directory), type(error).__name__, str(error), error.exit_code)


def _disagreement(c: parity.Comparison, reference: str) -> Problem:
    what = "holds other weights than" if c.weights == "different" else "does not agree with"
    return Problem(c.directory, "Disagreement", f"{c.directory} {what} {reference}", FidelityError.exit_code)
