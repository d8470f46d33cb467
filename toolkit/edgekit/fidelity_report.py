"""What ``edge verify --against`` found, as a table and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit import page
from edgekit.artifact import Manifest
from edgekit.divergence import Estimate, Figures, mean
from edgekit.fidelity import Fidelity, Greedy

HEAD = ["", "short context", "beyond the LongRoPE switch"]
SHOWN = 24
"""Matrices that the page lists by name, the worst first; the plot shows all."""


def rows(fidelity: Fidelity) -> list[list[str]]:
    """Name and value of every figure, a column for each part."""
    found = [part.figures for part in fidelity.parts]
    lines = [
        ["positions scored", *(str(f.positions) for f in found)],
        ["tokens before them, at most", *(str(part.context) for part in fidelity.parts)],
        ["mean KL divergence, nats", *(_estimate(f.mean_kl) for f in found)],
        ["its median, 99 %, 99.9 %, greatest", *(_quantiles(f) for f in found)],
        ["same likeliest token", *(_estimate(f.same_top, percent=True) for f in found)],
        ["RMS difference of the right token's probability", *(_estimate(f.rms_delta_p, percent=True) for f in found)],
        ["perplexity of the checkpoint", *(_estimate(f.reference_perplexity) for f in found)],
        ["perplexity of the artifact", *(_estimate(f.perplexity) for f in found)],
        ["their ratio", *(_estimate(f.perplexity_ratio) for f in found)],
    ]
    if any(part.greedy for part in fidelity.parts):
        lines.append(["greedy tokens agreed", *(_agreed(part.greedy) for part in fidelity.parts)])
    return lines


def head(fidelity: Fidelity) -> list[str]:
    return HEAD[: 1 + len(fidelity.parts)]


@dataclass(frozen=True)
class Refused:
    """Why a build was. missed: of each limit the figure, the part, what was found and how far beyond it lies. advice: what to do."""

    missed: Sequence[Sequence[str]]
    advice: str


def html(manifest: Manifest, fidelity: Fidelity, errors: Mapping[str, float] | None, refused: Refused | None = None) -> str:
    """The page: figures, KL divergence by position, error by matrix, and the positions that differ most; of a build that was refused
    first why."""
    source = manifest.model.name + (f" at revision {manifest.model.revision}" if manifest.model.revision else "")
    columns = range(1, 1 + len(fidelity.parts))
    body = []
    if refused is not None:
        body += [page.heading("This build was refused: it is beyond its limits, and nothing was written but this report")]
        body += [page.table(["figure", "where", "found", "by how much"], refused.missed)]
        body += [page.paragraph(f"What to do: {refused.advice}.")]
    body += [
        page.paragraph(
            f"Target {manifest.target}, engine {manifest.engine.name}, scheme {manifest.scheme.name} "
            f"({manifest.scheme.bits_per_weight:.2f} bits a weight); built by {manifest.producer} from {source}"
        ),
        page.paragraph(
            "Compared with the checkpoint it was built from, unquantized."
            if fidelity.same_source
            else "Compared with another checkpoint than the one it was built from: their digests differ."
        ),
        page.table(head(fidelity), rows(fidelity), numbers=columns),
        page.paragraph(f"Each ± is one standard error. Text: sha256 {fidelity.text_sha256}."),
    ]
    for part in fidelity.parts:
        body += [page.heading(f"KL divergence by position, {part.name} context")]
        body += [page.points("nats; the line is a mean over neighbours", fidelity.kl[part.name], "scored position")]
    if errors:
        worst = sorted(errors.items(), key=lambda item: -item[1])
        body += [page.heading("Error of each matrix"), page.bars("|W - Q| / |W|", list(errors.items()), "matrices, first layer to last")]
        body += [page.table(["matrix", "relative error"], [[name, f"{error:.4f}"] for name, error in worst[:SHOWN]], numbers=[1])]
    body += [page.heading("Where they differ most")]
    listed = [[f"{w.kl:.3g}", w.part, w.before, w.token, w.reference, w.found] for w in fidelity.worst]
    body += [page.table(["KL", "context", "text before", "came", "checkpoint's choice", "artifact's choice"], listed, numbers=[0])]
    return page.page(f"Fidelity of {manifest.model.name} for {manifest.target}", body)


def _estimate(e: Estimate, *, percent: bool = False) -> str:
    unit = 100 if percent else 1
    sign = " %" if percent else ""
    return f"{e.value * unit:.4g} ± {e.error * unit:.2g}{sign}"


def _agreed(greedy: Sequence[Greedy]) -> str:
    """The mean over several continuations, with its standard error."""
    if len(greedy) < 2:
        return "".join(f"{one.agreed} of {one.length}" for one in greedy)
    agreed = mean(np.array([one.agreed for one in greedy], np.float64))
    length = np.mean([one.length for one in greedy])
    return f"{_estimate(agreed)} of {length:.3g}, {len(greedy)} times"


def _quantiles(f: Figures) -> str:
    return ", ".join(f"{v:.3g}" for v in (f.kl_median, f.kl_p99, f.kl_p999, f.kl_max))
