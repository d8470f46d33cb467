"""Small OpenVINO artifacts, and what they hold read back with OpenVINO's own reader."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from checkpoints import Variant, make_checkpoint
from edgekit.artifact import Manifest
from edgekit.checkpoint import Source, open_checkpoint
from edgekit.companions import read_companions, write_companions
from edgekit.engines.exported import Exported
from edgekit.engines.openvino.export import export
from edgekit.engines.openvino.session import OpenvinoSession, open_session
from edgekit.models import Model, open_model
from edgekit.progress import Progress, silent
from edgekit.quant.scheme import QuantScheme, scheme
from edgekit.reference import reference_logits
from edgekit.target import OptionValue, Target
from onnx_artifact import manifest

EXACT: dict[str, OptionValue] = {"precision": "float32", "dynamic_quantization": "off", "kv_cache": "float32", "tokenizer": False}
"""Float32 throughout: what remains against the reference is rounding."""
TOOLKIT = str(Path(__file__).parents[1] / "toolkit")
ROUNDING = 5e-5
"""Of logits that reach 3 to 7, float32 kernels against the numpy reference: measured at most 1.4e-5."""


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

    def open(self) -> OpenvinoSession:
        return open_session(self.directory, self.manifest)

    def read(self) -> openvino.Model:
        return openvino.Core().read_model(self.directory / "openvino_model.xml")


def target(options: dict[str, OptionValue] | None = None, context: int = 131072) -> Target:
    return Target("test", "", "openvino", "int4-g32", context, None, "executed", EXACT if options is None else options)


def open_variant(directory: Path, variant: str | Variant, *, grid: int | None = 32) -> Model:
    make_checkpoint(directory, variant, grid=grid)
    return open_model(open_checkpoint(directory, Source("test", "local", None, None)))


def build(
    folder: Path,
    variant: str | Variant,
    *,
    grid: int | None = 32,
    quant: QuantScheme | None = None,
    options: dict[str, OptionValue] | None = None,
    context: int = 131072,
    progress: Progress = silent,
) -> Built:
    """A checkpoint in ``folder / "model"`` and its OpenVINO files in ``folder / "artifact"``."""
    model = open_variant(folder / "model", variant, grid=grid)
    directory = folder / "artifact"
    directory.mkdir()
    write_companions(read_companions(model.checkpoint, model.decoder.vocab_size), model.checkpoint, directory)
    quant = quant or scheme("int4-g32")
    exported = export(model, quant, target(options, context), directory, progress)
    shutil.copy(folder / "model" / "config.json", directory)
    return Built(model, quant, directory, exported, manifest(model, exported, min(context, model.decoder.context)))


def process_with_session(built: Built, folder: Path, end: str) -> subprocess.CompletedProcess[str]:
    """A Python process that opens ``session`` and ends with this code."""
    (folder / "edgekit.json").write_text(built.manifest.to_json(), encoding="utf-8")
    code = (
        "import sys\nfrom pathlib import Path\nfrom edgekit.artifact import Manifest\n"
        "from edgekit.engines.openvino.session import open_session\n"
        "manifest = Manifest.from_json(Path(sys.argv[2]).read_text(encoding='utf-8'))\n"
        f"session = open_session(Path(sys.argv[1]), manifest)\n{end}\n"
    )
    words = [sys.executable, "-c", code, str(built.directory), str(folder / "edgekit.json")]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": TOOLKIT})
