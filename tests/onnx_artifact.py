"""ONNX artifacts of small checkpoints, without the rest of a build."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from checkpoints import Variant, make_checkpoint
from edgekit.artifact import Conformance, ContextInfo, EngineInfo, Greedy, Manifest, ModelInfo, SchemeInfo, TensorFormat, TokenInfo
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.engines.exported import Exported
from edgekit.engines.onnx.export import export
from edgekit.models import Model, open_model
from edgekit.progress import Progress, silent
from edgekit.quant.scheme import QuantScheme, scheme
from edgekit.reference import reference_logits
from edgekit.resources import release
from edgekit.target import OptionValue, Target

FLOAT32: dict[str, OptionValue] = {"accuracy_level": 0}
"""Products in float32: what remains against the reference is rounding."""
ROUNDING = 5e-5
"""Of logits that reach 3 to 7, float32 kernels against the numpy reference: measured at most 1.8e-5."""


@dataclass(frozen=True)
class Built:
    model: Model
    scheme: QuantScheme
    directory: Path
    exported: Exported
    manifest: Manifest

    def reference(self, tokens: list[int]) -> NDArray[np.float32]:
        """Logits after the last token, from the checkpoint's own weights: on a grid they are the quantized ones."""
        return reference_logits(self.model.decoder, self.model.tensor, tokens, last=1)[0]


def target(options: dict[str, OptionValue] | None = None, context: int = 131072) -> Target:
    return Target("test", "", "onnx", "int4-g32", context, None, "executed", options or {})


def open_variant(directory: Path, variant: str | Variant, *, grid: int | None = 32, stop: list[int] | None = None) -> Model:
    make_checkpoint(directory, variant, grid=grid)
    if stop is not None:
        (directory / "generation_config.json").write_text(f'{{"eos_token_id": {stop}}}', encoding="utf-8")
        (directory / "tokenizer_config.json").write_text("{}", encoding="utf-8")
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": stop}), encoding="utf-8")
    return open_model(open_checkpoint(directory, Source("test", "local", None, None)))


def build(
    folder: Path,
    variant: str | Variant,
    *,
    grid: int | None = 32,
    quant: QuantScheme | None = None,
    options: dict[str, OptionValue] | None = None,
    context: int = 131072,
    stop: list[int] | None = None,
    progress: Progress = silent,
) -> Built:
    """A checkpoint in ``folder / "model"`` and its ONNX files in ``folder / "artifact"``."""
    model = open_variant(folder / "model", variant, grid=grid, stop=stop)
    directory = folder / "artifact"
    directory.mkdir()
    quant = quant or scheme("int4-g32")
    wanted = target(FLOAT32 if options is None else options, context)
    exported = export(model, quant, wanted, directory, progress)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(folder / "model" / name, directory)
    return Built(model, quant, directory, exported, manifest(model, exported, min(context, model.decoder.context)))


def manifest(model: Model, exported: Exported, context: int) -> Manifest:
    """With what a session reads of it; the rest is filler."""
    fmt = TensorFormat(4, 32)
    decoder = model.decoder
    return Manifest(
        format="edgekit",
        version=1,
        producer="test",
        model=ModelInfo("test", "local", None, None, decoder.model_type, model.parameters, {}),
        target="test",
        engine=EngineInfo("onnx", exported.engine_requires, exported.details),
        scheme=SchemeInfo("int4-g32", exported.bits_per_weight, fmt, fmt, fmt, {}),
        context=ContextInfo(context, decoder.rope.switch, None),
        tokens=TokenInfo(decoder.vocab_size, None, (0,), False),
        chat_template=None,
        conformance=Conformance((), (), Greedy(None, (), "test")),
        files={},
    )


def skip_unless_runnable(built: Built) -> None:
    """Python 3.10 has no ONNX Runtime that computes a sliding window as Hugging Face does, nor one with an INT8 cache."""
    skip_below(built.exported.engine_requires["onnxruntime"])


def skip_below(needed: str) -> None:
    if release(onnxruntime.__version__) < release(needed):
        pytest.skip(f"needs onnxruntime {needed}, installed is {onnxruntime.__version__}")


def random_tokens(count: int, seed: int = 1) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, 300, count)]
