"""MLX artifacts of small checkpoints, and what they should compute."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from checkpoints import Variant
from edgekit.artifact import Manifest
from edgekit.companions import read_companions, write_companions
from edgekit.engines.exported import Exported
from edgekit.engines.mlx.export import export
from edgekit.models import Model
from edgekit.progress import Progress, silent
from edgekit.quant.scheme import QuantScheme, scheme
from edgekit.reference import reference_logits
from edgekit.target import OptionValue, Target
from onnx_artifact import manifest, open_variant

FLOAT32: dict[str, OptionValue] = {"precision": "float32"}
ROUNDING = 5e-5
"""Of logits that reach 3 to 7, MLX's float32 kernels against the numpy reference: measured at most 2.4e-5."""
REFUSED = ("phi3-ragged", "llama-ragged")
"""Their matrices have 80 and 144 inputs, which fill no group."""


@dataclass(frozen=True)
class Built:
    model: Model
    scheme: QuantScheme
    directory: Path
    exported: Exported
    manifest: Manifest

    @property
    def config(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        return found

    def reference(self, tokens: list[int]) -> NDArray[np.float32]:
        """Logits after the last token, from the checkpoint's own weights: on a grid they are the quantized ones."""
        return reference_logits(self.model.decoder, self.model.tensor, tokens, last=1)[0]


def target(options: dict[str, OptionValue] | None = None, context: int = 131072) -> Target:
    return Target("test", "", "mlx", "int4-g32", context, None, "executed", options or {})


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
    """A checkpoint in ``folder / "model"`` and its MLX files, with the tokenizer, in ``folder / "artifact"``."""
    model = open_variant(folder / "model", variant, grid=grid, stop=stop)
    directory = folder / "artifact"
    directory.mkdir()
    quant = quant or scheme("int4-g32")
    write_companions(read_companions(model.checkpoint, model.decoder.vocab_size), model.checkpoint, directory)
    exported = export(model, quant, target(options, context), directory, progress)
    made = manifest(model, exported, min(context, model.decoder.context))
    engine = replace(made.engine, name="mlx")
    return Built(model, quant, directory, exported, replace(made, engine=engine))


def copy_of(built: Built, directory: Path) -> Built:
    """To damage."""
    return replace(built, directory=Path(shutil.copytree(built.directory, directory)))
