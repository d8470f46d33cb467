"""What ``edge plan`` shows: one plan in full, or a table of many."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from edgekit.console import size
from edgekit.device import DeviceProfile, devices, load_device
from edgekit.errors import DoesNotFit
from edgekit.plan import Plan, Range, Refused, Subject, advice, best_scheme, everywhere, plan, refusal
from edgekit.target import Target, load_target, targets

Table = tuple[list[str], list[list[str]]]
SPARE = 0.1
"""How far from a measured peak of memory a prediction may be (bench/plan.py)."""


@dataclass(frozen=True)
class Report:
    """pairs: label and text of each line of one plan, empty where there is a table. best: of one plan, the finest scheme that fits."""

    plans: tuple[Plan | Refused, ...]
    best: str | None
    advised: tuple[str, ...]
    pairs: list[tuple[str, str]]
    problem: DoesNotFit | None

    @property
    def table(self) -> Table:
        return plan_table(self.plans)

    def as_json(self) -> dict[str, object]:
        listed = [_plan_json(found) if isinstance(found, Plan) else asdict(found) for found in self.plans]
        problem = self.problem
        error = {"kind": type(problem).__name__, "message": str(problem), "exit_code": problem.exit_code} if problem else None
        one = {"best_scheme": self.best, "would_fit": list(self.advised)} if self.pairs else {}
        return {"version": 1, **({"error": error} if error else {}), "plans": listed, **one}


def report(model: Subject, target: str | None, device: str | None, *, scheme: str | None, context: int | None) -> Report:
    """Of one target, on one device or by its own limit: in full. Else a table. Raises TargetError, UsageError, EngineMissing."""
    wanted = [load_target(target)] if target is not None else targets()
    places = [load_device(device)] if device is not None else devices()
    if target is not None and device is not None:
        return _one(model, wanted[0], places[0], scheme, context)
    found = tuple(everywhere(model, wanted, places, scheme=scheme, context=context))
    problem = None
    if not any(isinstance(each, Plan) and each.fits for each in found):
        what = f"{device}: none of its targets" if device else f"no device in `edge devices` for target {target}" if target else "no device"
        most = max((each.largest or 0 for each in found if isinstance(each, Plan)), default=0)
        would = f"--context {most}, or a smaller model" if most else "a smaller model (edge models)"
        problem = DoesNotFit(f"{what} takes {model.model.checkpoint.source.name} so. What would fit: {would}")
    return Report(found, None, (), [], problem)


def _one(model: Subject, target: Target, device: DeviceProfile, scheme: str | None, context: int | None) -> Report:
    found = plan(model, target, device, scheme=scheme, context=context)
    best = best_scheme(model, target, device, found.context)
    advised = tuple(advice(found, model, target, device)) if found.fits is False else ()
    problem = DoesNotFit(refusal(found, advised)) if found.fits is False else None
    return Report((found,), best, advised, plan_pairs(found, best), problem)


def plan_pairs(found: Plan, best: str | None) -> list[tuple[str, str]]:
    """Label and text of each line."""
    at = found.at_context
    assert at is not None
    known = "" if found.measured else "; constants carried over from another engine or unit, not measured"
    return [
        ("model", f"{found.model}, {found.parameters / 1e6:,.1f} M parameters"),
        ("target", f"{found.target} on {found.device}: {found.unit}"),
        ("scheme", f"{found.scheme}; the finest that fits: {best or 'none'}"),
        ("download", size(found.download) if found.download else "nothing: the model is here"),
        ("artifact", f"{size(found.artifact)} ({found.artifact:,} bytes)"),
        ("a token", f"keeps {size(found.cache)} of keys and values" + (f", reads {size(found.read)} of weights" if found.read else "")),
        ("memory", f"{size(at.peak)} of {size(found.limit or 0)} at {at.context:,} tokens, within {SPARE:.0%} where measured{known}"),
        *(
            ("", f"{m.context:,} tokens: load {size(m.load)}, prefill {size(m.prefill)}, decode {size(m.decode)}, cache {size(m.cache)}")
            for m in found.memory
            if m.context <= max(found.largest or 0, found.context)
        ),
        ("largest context", f"{found.largest:,} tokens" if found.largest else "none fits"),
        ("decode", f"{_speed(found.decode)}; at {found.context:,} tokens {_speed(found.decode_full)}"),
        ("prefill", _speed(found.prefill)),
        ("binds", found.binds or "not known"),
    ]


def plan_table(plans: Sequence[Plan | Refused]) -> Table:
    """A row each; what cannot be says why."""
    head = [
        "device",
        "target",
        "scheme",
        "artifact",
        "peak memory",
        "of",
        "fits",
        "largest context",
        "decode tok/s",
        "prefill tok/s",
        "binds",
    ]
    rows = []
    for found in plans:
        if isinstance(found, Refused):
            rows.append([found.device or "", found.target, "", "", "", "", "cannot", *[""] * 3, _short(found.reason)])
            continue
        at = found.at_context
        rows.append(
            [
                found.device or "",
                found.target,
                found.scheme,
                size(found.artifact),
                size(at.peak) if at else "",
                size(found.limit) if found.limit else "",
                "yes" if found.fits else "no",
                f"{found.largest:,}" if found.largest else "0",
                _bounds(found.decode),
                _bounds(found.prefill),
                found.binds or "",
            ]
        )
    return head, rows


def _short(reason: str) -> str:
    return reason if len(reason) <= 60 else reason[:57] + "..."


def _speed(found: Range | None) -> str:
    return "not known" if found is None else f"{_bounds(found)} tokens a second"


def _bounds(found: Range | None) -> str:
    return "" if found is None else f"{_three(found.low)} to {_three(found.high)}"


def _three(value: float) -> str:
    """Three digits at most: more would pretend."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _plan_json(found: Plan) -> dict[str, object]:
    return {**asdict(found), "fits": found.fits}
