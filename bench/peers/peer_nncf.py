"""NNCF on the graph that optimum-intel exports: plain INT4, AWQ, scale estimation and GPTQ, with groups of 128, 64 and 32.

What AWQ moves into a node of its own before a MatMul is multiplied into the columns of its weight here: what the two compute together.
"""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
from common import F32, Job, Made, clock, fused, run
from optimum.intel import OVModelForCausalLM

AWQ_NODE = "/awq_mul"


@cache
def export(checkpoint: Path) -> ov.Model:
    return OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, load_in_8bit=False).model


def inputs(job: Job) -> list[dict[str, np.ndarray]]:
    return [
        {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        for ids in job.calibration
    ]


def constants(node: ov.Node) -> Iterator[ov.Node]:
    """All below a node, each once."""
    seen, todo = set(), [node]
    while todo:
        found = todo.pop()
        if found.get_friendly_name() in seen:
            continue
        seen.add(found.get_friendly_name())
        if found.get_type_name() == "Constant":
            yield found
        todo += [found.input_value(i).get_node() for i in range(found.get_input_size())]


def value(output: ov.Output) -> F32:
    """What a subgraph of constants gives, computed by OpenVINO."""
    compiled = ov.Core().compile_model(ov.Model([ov.opset13.result(output)], []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([])[0], np.float32)


def stored(node: ov.Node) -> float:
    """Bits of the constants below; lone numbers, such as the shape of a Reshape, aside."""
    return float(sum(c.get_element_type().bitwidth * np.prod(c.shape) for c in constants(node) if c.get_element_type() != ov.Type.i64))


def taken(job: Job, model: ov.Model, seconds: float, *, calibrated: bool) -> Made:
    original = job.weights()
    weights: dict[str, F32] = {}
    bits: dict[str, float] = {}
    for node in model.get_ordered_ops():
        names = canonical(job, node)
        if not names:
            continue
        weight = node.input_value(0 if node.get_type_name() == "Gather" else 1)
        values = value(weight)
        if node.get_type_name() == "MatMul":
            before = node.input_value(0).get_node()
            if AWQ_NODE in before.get_friendly_name():
                scale = next(v for i in range(2) for v in [before.input_value(i)] if not has_parameter(v.get_node()))
                values = values * value(scale).reshape(1, -1)
        each = stored(weight.get_node()) / values.size
        at = 0
        for name in names:
            rows = len(original[name])
            weights[name], bits[name] = values[at : at + rows], each * original[name].size
            at += rows
    missing = [name for name, w in original.items() if w.ndim == 2 and name not in weights]
    if missing:
        raise RuntimeError(f"not found in the graph: {missing}")
    return Made(weights, bits, seconds, calibrated)


def has_parameter(node: ov.Node) -> bool:
    return node.get_type_name() in ("Parameter", "ReadValue") or any(
        has_parameter(node.input_value(i).get_node()) for i in range(node.get_input_size())
    )


def canonical(job: Job, node: ov.Node) -> list[str]:
    """The canonical weights of a node, by the names that the export keeps."""
    name = node.get_friendly_name()
    if node.get_type_name() == "Gather" and "embed_tokens" in name:
        return ["embed_tokens"]
    if node.get_type_name() != "MatMul":
        return []
    if "lm_head" in name:
        return [] if job.config.get("tie_word_embeddings") else ["lm_head"]
    parts = {"o_proj": ["o_proj"], "down_proj": ["down_proj"]}
    if fused(job.config):
        parts |= {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    else:
        parts |= {kind: [kind] for kind in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")}
    for part, kinds in parts.items():
        if f".{part}/" in name:
            layer = name.split("layers.")[1].split(".")[0]
            return [f"layers.{layer}.{kind}" for kind in kinds]
    return []


def quantize(job: Job, *, group: int, awq: bool = False, estimation: bool = False, gptq: bool = False) -> Made:
    model = export(job.checkpoint).clone()
    calibrated = awq or estimation or gptq
    options = {"awq": True} if awq else {}
    options |= {"scale_estimation": True} if estimation else {}
    options |= {"gptq": True} if gptq else {}
    with clock() as seconds:
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_ASYM,
            ratio=1.0,
            group_size=group,
            dataset=nncf.Dataset(inputs(job)) if calibrated else None,
            **options,
        )
    return taken(job, model, seconds[0], calibrated=calibrated)


if __name__ == "__main__":
    run(
        {f"NNCF g{group}": partial(quantize, group=group) for group in (32, 64, 128)}
        | {"NNCF AWQ g128": partial(quantize, group=128, awq=True)}
        | {"NNCF scale estimation g128": partial(quantize, group=128, estimation=True)}
        | {"NNCF AWQ, scale estimation g128": partial(quantize, group=128, awq=True, estimation=True)}
        | {"NNCF GPTQ g128": partial(quantize, group=128, gptq=True)}
        | {"NNCF AWQ, scale estimation g32": partial(quantize, group=32, awq=True, estimation=True)}
    )
