"""Small artifacts for Qualcomm NPUs: their graphs on ONNX Runtime's CPU, and whole ones that the vendor's emulation runs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgekit.engines.onnx_format import weights
from edgekit.engines.onnx_format.proto import serialize
from edgekit.engines.qnn.layout import PROMPT, TOKEN, Pipeline, plan
from edgekit.engines.qnn.stages import PAD
from edgekit.models import Model
from edgekit.progress import silent
from edgekit.quant.scheme import QuantScheme, scheme
from edgekit.reference import reference_logits
from edgekit.target import OptionValue, Target

CHUNK = 16
OPTIONS: dict[str, OptionValue] = {"soc": "SM8750", "chunk": CHUNK, "layers": 1, "sharing": False}


def target(options: dict[str, OptionValue] | None = None, context: int = 96) -> Target:
    return Target("test", "", "qnn", "int4-g32", context, None, "compiled", {**OPTIONS, **(options or {})})


@dataclass(frozen=True)
class Graphs:
    """The graphs of a model as ONNX Runtime's CPU computes them, and the caches between two runs."""

    model: Model
    layout: Pipeline
    directory: Path
    sessions: dict[str, onnxruntime.InferenceSession]
    caches: dict[str, NDArray[np.float16]]

    def run(self, tokens: list[int], position: int, *, length: int = 0) -> NDArray[np.float32]:
        """Logits after ``tokens``, at most a chunk of them, in a sequence that will have ``length`` (LongRoPE)."""
        half, count = (TOKEN, 1) if len(tokens) == 1 else (PROMPT, self.layout.options.chunk)
        ids = np.full((1, count), PAD, np.int32)
        ids[0, : len(tokens)] = tokens
        values = {
            "input_ids": ids,
            "past_seq_len": np.array([[position + count - 1]], np.int32),
            "total_seq_len": np.array([self.layout.context], np.int32),
            "rope_length": np.array([length], np.int64),
            **self.caches,
        }
        for name in ["embeddings", *(f"part{p.part.index}_{half}" for p in self.layout.parts), "lm_head"]:
            session = self.sessions[name]
            feeds = {i.name: values[i.name] for i in session.get_inputs()}
            values |= dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
        for name in self.caches:
            self.caches[name] = values[name.replace("past_key_values", "present")]
        return np.asarray(values["logits"])[0, 0]

    def reference(self, tokens: list[int]) -> NDArray[np.float32]:
        return reference_logits(self.model.decoder, self.model.tensor, tokens, last=1)[0]


def export_graphs(model: Model, directory: Path, options: dict[str, OptionValue] | None = None, quant: QuantScheme | None = None) -> Graphs:
    """What ``export`` hands to the compiler, each part in a folder of its own."""
    layout = plan(model, quant or scheme("int4-g32"), target(options))
    weights.write(layout.cpu, model, directory, silent)
    files = {"embeddings": directory / "embeddings.onnx", "lm_head": directory / "lm_head.onnx"}
    files["embeddings"].write_bytes(serialize(layout.embeddings))
    files["lm_head"].write_bytes(serialize(layout.lm_head))
    for planned in layout.parts:
        folder = directory / f"part{planned.part.index}"
        folder.mkdir()
        weights.write(planned.part.data, model, folder, silent)
        for half, graph in planned.graphs.items():
            files[f"part{planned.part.index}_{half}"] = folder / f"{half}.onnx"
            files[f"part{planned.part.index}_{half}"].write_bytes(serialize(graph))
    sessions = {name: onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for name, path in files.items()}
    past = {i.name: i.shape for session in sessions.values() for i in session.get_inputs() if i.name.startswith("past_key")}
    return Graphs(model, layout, directory, sessions, {name: np.zeros(shape, np.float16) for name, shape in past.items()})
