"""The contract suite's subjects, built for the devices that are here: python -m pytest -m device tests/device"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from contract_subject import VARIANTS, Logits, Subject

import edgekit
from edgekit.artifact import load_artifact
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.errors import EngineMissing, TargetError
from edgekit.models import open_model
from edgekit.reference import reference_logits
from edgekit.runtime.session import Session
from tiny_artifact import build_tiny

HALF = 0.06
"""Float16 on a device, of logits that reach 7: measured at most 0.03 with WebGPU on Mesa's lavapipe."""


DEVICES = {
    **{p: ("onnx", f'provider = "{p}"\nprecision = "float16"\naccuracy_level = 0') for p in ("cuda", "dml", "webgpu")},
    "intel-gpu": ("openvino", 'device = "GPU"\nprecision = "float16"'),
}
"""Name -> engine and its options."""


@pytest.fixture(scope="session", params=[(d, v) for d in DEVICES for v in VARIANTS], ids="-".join)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    device, variant = request.param
    folder = tmp_path_factory.mktemp(f"{device}-{variant}")
    engine, options = DEVICES[device]
    try:
        directory = build_tiny(folder, engine, variant, grid=32, options=options)
        edgekit.load(directory).close()
    except (EngineMissing, TargetError) as error:
        pytest.skip(str(error))
    model = open_model(open_checkpoint(folder / "model", Source("test", "local", None, None)))

    def expected(tokens: Sequence[int]) -> Logits:
        return reference_logits(model.decoder, model.tensor, tokens, last=1)[0]

    return Subject(device, variant, directory, load_artifact(directory).manifest, HALF, expected)


@pytest.fixture
def session(subject: Subject) -> Iterator[Session]:
    opened = subject.open()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def tokens() -> list[int]:
    return [int(t) for t in np.random.default_rng(5).integers(0, 300, 40)]
