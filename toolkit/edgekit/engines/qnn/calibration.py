"""The ranges of a model's values, for an NPU that computes with integers: the float graphs run on the CPU, one part in memory at a time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.companions import Companions
from edgekit.conformance import CHATS, TEXTS
from edgekit.engines.onnx_format import weights
from edgekit.engines.onnx_format.proto import Graph, serialize
from edgekit.engines.qnn.integers import MASKED, Ranges, join_moved, observed, step, with_integers
from edgekit.engines.qnn.layout import PART_DATA, PROMPT, Pipeline, PlannedPart
from edgekit.engines.qnn.stages import PAD, Form, build_stages
from edgekit.models import Model
from edgekit.progress import Progress, silent
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import Quantizer
from edgekit.runtime.chat import VECTOR_TIME

if TYPE_CHECKING:
    import onnxruntime

CHUNKS = 4
"""Of sample text, as many as the context holds."""
Arrays = dict[str, NDArray[np.generic]]


def sample(companions: Companions, count: int) -> list[int]:
    """Tokens of texts and chats that are far from each other, over and over."""
    texts = list(TEXTS)
    if companions.chat is not None:
        texts += [companions.chat.render([{"role": "user", "content": chat[0][1]}], now=VECTOR_TIME) for chat in CHATS[:2]]
    tokens = [token for text in texts for token in companions.tokenizer.encode(text)]
    return (tokens * (count // len(tokens) + 1))[:count]


def calibrate(
    layout: Pipeline, model: Model, scheme: QuantScheme, companions: Companions, directory: Path, progress: Progress, quantizer: Quantizer
) -> Pipeline:
    """The same layout in integers. ``directory`` gets one part's weights at a time, and nothing of it stays."""
    plain, ranges = replace(quantizer, ledger=None), Ranges()  # these INT4 weights are not what is shipped
    join_moved((graph for planned in layout.parts for graph in planned.graphs.values()), ranges)
    chunk = layout.options.chunk
    tokens = sample(companions, min(CHUNKS * chunk, layout.context))
    embeddings, _, data = build_stages(model.decoder, scheme, layout.context, len(layout.parts), Form(MASKED))
    weights.write(data, model, directory, silent, plain)
    given = [_embedded(embeddings, directory, layout, tokens[at : at + chunk], at) for at in range(0, len(tokens), chunk)]
    (directory / data.name).unlink()
    names = {"hidden.0", "rope.cos", "rope.sin"}
    for arrays in given:
        _note(ranges, {name: value for name, value in arrays.items() if name in names or name.startswith("mask")})
    for done, planned in enumerate(layout.parts):
        progress("calibrate", done, len(layout.parts))
        given = _run_part(planned, model, directory, given, ranges, plain)
    progress("calibrate", len(layout.parts), len(layout.parts))
    return _in_integers(layout, model, scheme, ranges)


def _embedded(graph: Graph, directory: Path, layout: Pipeline, tokens: Sequence[int], position: int) -> Arrays:
    """What the first part is given for a chunk of a sequence."""
    chunk = layout.options.chunk
    ids = np.full((1, chunk), PAD, np.int32)
    ids[0, : len(tokens)] = tokens
    feeds: Arrays = {
        "input_ids": ids,
        "past_seq_len": np.array([[position + chunk - 1]], np.int32),
        "total_seq_len": np.array([layout.context], np.int32),
        "rope_length": np.zeros(1, np.int64),
    }
    return _compute(graph, directory, [value.name for value in graph.outputs], [feeds])[0]


def _run_part(
    planned: PlannedPart, model: Model, directory: Path, given: Sequence[Arrays], ranges: Ranges, quantizer: Quantizer
) -> list[Arrays]:
    """Runs one part over the chunks of the sequence; what the next one is given."""
    weights.write(planned.part.data, model, directory, silent, quantizer)
    graph, names = observed(planned.graphs[PROMPT])
    past = [v for v in graph.inputs if v.name.startswith("past_key_values")]
    caches: Arrays = {v.name: np.zeros([int(size) for size in v.shape], np.float16) for v in past}
    session = _open(graph, directory)
    following = []
    for arrays in given:
        feeds = {**arrays, **caches}
        values = dict(zip(names, session.run(names, {i.name: feeds[i.name] for i in session.get_inputs()}), strict=True))
        _note(ranges, values)
        caches = {name: values[name.replace("past_key_values", "present")] for name in caches}
        hidden = f"hidden.{planned.part.index + 1}"
        following.append({**arrays, hidden: values[hidden]})
    (directory / PART_DATA).unlink()
    return following


def _compute(graph: Graph, directory: Path, names: Sequence[str], feeds: Sequence[Arrays]) -> list[Arrays]:
    session = _open(graph, directory)
    read = [i.name for i in session.get_inputs()]
    return [dict(zip(names, session.run(list(names), {name: given[name] for name in read}), strict=True)) for given in feeds]


def _open(graph: Graph, directory: Path) -> "onnxruntime.InferenceSession":
    """On the CPU, every value as the graph names it."""
    import onnxruntime

    path = directory / "observed.onnx"
    path.write_bytes(serialize(graph))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # it warns of outputs whose shape is not given
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    finally:
        path.unlink()


def _note(ranges: Ranges, values: Arrays) -> None:
    for name, value in values.items():
        if value.dtype.kind == "f":
            ranges.note(name, float(value.min()), float(value.max()))


def _in_integers(layout: Pipeline, model: Model, scheme: QuantScheme, ranges: Ranges) -> Pipeline:
    count = len(layout.parts)
    handed = ["hidden.0", f"hidden.{count}", "rope.cos", "rope.sin"]
    handed += [value.name for planned in layout.parts for value in planned.graphs[PROMPT].inputs if value.name.startswith("mask")]
    form = Form(MASKED, {name: step(ranges.of(name)) for name in handed})
    embeddings, lm_head, cpu = build_stages(model.decoder, scheme, layout.context, count, form)
    parts = tuple(
        replace(planned, graphs={half: with_integers(graph, ranges, model.tensor) for half, graph in planned.graphs.items()})
        for planned in layout.parts
    )
    return replace(layout, embeddings=embeddings, lm_head=lm_head, cpu=cpu, parts=parts)
