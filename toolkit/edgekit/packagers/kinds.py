"""Which kinds of package take which artifacts, and what would do instead."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.artifact import Artifact
from edgekit.engines import ENGINES
from edgekit.errors import UsageError
from edgekit.target import Target, load_target, targets

KINDS: dict[str, str] = {
    kind: f"edgekit.packagers.{kind.replace('-', '_')}"
    for kind in ("python", "linux-service", "container", "web", "android", "ios", "windows")
}
ANY_ENGINE = ("python", "linux-service", "container")
"""Kinds that run edgekit itself, so that they take artifacts of every engine; ``ENGINES`` says which take part in the others."""
HOST = "cpu"
"""The provider of artifacts, and of targets, that name none."""


@dataclass(frozen=True)
class Runs:
    """What an artifact needs to run, as far as kinds of package tell artifacts apart. provider: of an engine that has several."""

    engine: str
    provider: str


def of_artifact(artifact: Artifact) -> Runs:
    """By its manifest."""
    engine = artifact.manifest.engine
    return Runs(engine.name, str(engine.details.get("provider") or HOST))


def of_target(target: Target) -> Runs:
    """Of the artifacts that are built for it."""
    return Runs(target.engine, str(target.options.get("provider", HOST)))


def takes(kind: str, runs: Runs) -> bool:
    """Whether packages of this kind can run such artifacts."""
    engine = ENGINES.get(runs.engine)
    if kind in ANY_ENGINE:
        return engine is None or runs.provider not in engine.windows
    providers = importlib.import_module(KINDS[kind]).PROVIDERS
    return engine is not None and kind in engine.packages and runs.provider in providers


def targets_for(kind: str) -> list[str]:
    """The targets whose artifacts such a package takes."""
    return [target.name for target in targets() if takes(kind, of_target(target))]


def kinds_for(runs: Runs) -> list[str]:
    """The kinds of package that take such an artifact."""
    return [kind for kind in KINDS if takes(kind, runs)]


def check_kind(artifact: Artifact, kind: str) -> None:
    """Raises UsageError, naming what would do: targets for this kind, and kinds for this artifact."""
    runs = of_artifact(artifact)
    if takes(kind, runs):
        return
    if kind in ANY_ENGINE:
        why = f"the provider {runs.provider}, which exists for Windows alone"
    elif runs.engine in ENGINES and kind in ENGINES[runs.engine].packages:
        taken = listed(importlib.import_module(KINDS[kind]).PROVIDERS)
        why = f"the provider {runs.provider}, and a package for {kind} takes {taken}"
    else:
        taken = listed(sorted(name for name, engine in ENGINES.items() if kind in engine.packages))
        why = f"the engine {runs.engine}, and a package for {kind} runs on {taken}"
    raise UsageError(f"{artifact.directory} is for {why}; {instead(kind, targets_for(kind), runs)}")


def instead(kind: str, fitting: Sequence[str], runs: Runs) -> str:
    """What would do: targets whose artifacts this kind takes, and other kinds that take this artifact."""
    said = [f"build the model for {listed(near(fitting, runs))} (--target)"] if fitting else []
    others = [other for other in kinds_for(runs) if other != kind]
    if others:
        said.append(f"package this artifact for {listed(others)} (--for)")
    return ", or ".join(said)


def listed(names: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def support(kind: str, target: str) -> tuple[str, ...]:
    """What such a package of this target's artifacts is refused for: the targets that would do. Empty where it is not refused."""
    runs = of_target(load_target(target))
    return () if takes(kind, runs) else tuple(near(targets_for(kind), runs))


def near(fitting: Sequence[str], runs: Runs) -> Sequence[str]:
    """Those of the artifact's own engine, where there are any: its next target is most like it."""
    return [name for name in fitting if load_target(name).engine == runs.engine] or fitting
