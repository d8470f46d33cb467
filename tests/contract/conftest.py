"""One built artifact for each engine and kind of model, with what its logits should be."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from contract_subject import CASES, VARIANTS, EngineCase, Logits, Subject

import edgekit
from edgekit.artifact import load_artifact
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.engines import ENGINES
from edgekit.engines.null.session import open_session as open_null
from edgekit.errors import EngineMissing
from edgekit.models import open_model
from edgekit.reference import reference_logits
from edgekit.runtime import Runtime
from edgekit.runtime.session import Session
from tiny_artifact import build_tiny


def cases() -> Iterator[object]:
    for name in dict.fromkeys([*ENGINES, *CASES]):
        marked = CASES[name].marked
        marks = () if marked is None else (getattr(pytest.mark, marked),)
        for variant in VARIANTS:
            yield pytest.param((name, variant), id=f"{name}-{variant}", marks=marks)


@pytest.fixture(scope="session", params=cases())
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    name, variant = request.param
    with pytest.MonkeyPatch.context() as patched:
        for key, value in CASES[name].environment.items():
            patched.setenv(key, value)
        yield made(CASES[name], CASES[name].engine or name, variant, tmp_path_factory.mktemp(f"{name}-{variant}"))


def made(case: EngineCase, engine: str, variant: str, folder: Path) -> Subject:
    try:
        directory = build_tiny(folder, engine, variant, grid=32, options=case.options_for(variant))
        edgekit.load(directory).close()
    except EngineMissing as error:
        pytest.skip(str(error))
    manifest = load_artifact(directory).manifest
    if engine == "null":
        return Subject(engine, variant, directory, manifest, case.tolerance, lambda tokens: open_null(directory, manifest).forward(tokens))
    model = open_model(open_checkpoint(folder / "model", Source("test", "local", None, None)))

    def expected(tokens: Sequence[int]) -> Logits:
        return reference_logits(model.decoder, model.tensor, tokens, last=1)[0]

    return Subject(engine, variant, directory, manifest, case.tolerance, expected)


@pytest.fixture
def session(subject: Subject) -> Iterator[Session]:
    opened = subject.open()
    yield opened
    opened.close()


@pytest.fixture
def runtime(subject: Subject) -> Iterator[Runtime]:
    with edgekit.load(subject.directory) as opened:
        yield opened


@pytest.fixture(scope="session")
def tokens() -> list[int]:
    """More than the LongRoPE switch (24) and the window (12) of the variants, less than their context (96)."""
    return [int(t) for t in np.random.default_rng(5).integers(0, 300, 40)]
