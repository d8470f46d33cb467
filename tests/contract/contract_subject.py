"""What the contract suite runs on: the kinds of model, how exact each engine is, and one built artifact with its expected logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Manifest
from edgekit.runtime.session import Session, open_session

Logits = NDArray[np.float32]
VARIANTS = ("phi3-longrope", "phi3-longrope-partial-tied", "mistral-window", "llama3", "qwen2")


@dataclass(frozen=True)
class EngineCase:
    """options: of the target, such that the engine computes as exactly as it can. tolerance: of logits that reach about 7.

    marked: with this the suite is run only when asked for. by_variant: more options for a kind of model. engine: where it is not the
    case's name. environment: what has to be set.
    """

    tolerance: float
    options: str = ""
    marked: str | None = None
    by_variant: Mapping[str, str] = field(default_factory=dict)
    engine: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def options_for(self, variant: str) -> str:
        return f"{self.options}\n{self.by_variant.get(variant, '')}"


CASES = {
    "null": EngineCase(0.0),
    # float32 kernels against the numpy reference; measured at most 1.8e-5.
    "onnx": EngineCase(5e-5, "accuracy_level = 0"),
    # The same, on a CPU; measured at most 2.4e-5.
    "mlx": EngineCase(5e-5, 'precision = "float32"'),
    # float32 kernels, cache and activations against the numpy reference; measured at most 1.4e-5.
    "openvino": EngineCase(5e-5, 'precision = "float32"\ndynamic_quantization = "off"\nkv_cache = "float32"'),
    # As shipped, with edgekit's own products and attention: inputs rounded to int8; measured at most 0.23.
    "openvino-own": EngineCase(0.35, "tokenizer = false", engine="openvino", environment={"EDGEKIT_OPENVINO_PRODUCTS": "edgekit"}),
    # float16 on an NPU, in its vendor's emulation: for each model an HTP of another generation (v73, v75, v79, v81, v69).
    "qnn": EngineCase(
        0.15,
        "sharing = false\nchunk = 32",
        marked="emulated",
        by_variant=dict(zip(VARIANTS, [f'soc = "{soc}"' for soc in ("SM8550", "SM8650", "SM8750", "SC8480XP", "SM8450")], strict=True)),
    ),
}
"""An engine that is in ENGINES and not here fails the suite: it has to pass it too."""


@dataclass(frozen=True)
class Subject:
    """An artifact under test. expected: logits after tokens computed in one piece, by the reference decoder on the same weights."""

    engine: str
    variant: str
    directory: Path
    manifest: Manifest
    tolerance: float
    expected: Callable[[Sequence[int]], Logits]

    def open(self) -> Session:
        return open_session(self.directory, self.manifest)

    def same(self, got: Logits, wanted: Logits) -> None:
        """Equal within the engine's tolerance, and with the same most likely token (where the two best are not a tie)."""
        np.testing.assert_allclose(got, wanted, atol=self.tolerance, rtol=0)
        best, second = np.sort(wanted)[[-1, -2]]
        assert best - second <= 2 * self.tolerance or got.argmax() == wanted.argmax()
