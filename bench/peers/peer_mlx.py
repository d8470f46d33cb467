"""mlx_lm on the CPU: its affine quantization (mlx_lm.convert), GPTQ, AWQ and DWQ.

Its models are its own: for Phi-3 they rotate with the long factors only, for Mistral they ignore the window; GPTQ, AWQ and DWQ see what
they compute. DWQ trains scales and biases; optimizer, learning rate and number of rounds are the command's defaults, the samples are the
calibration text.
"""

import copy
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from common import F32, Job, Made, clock, fused, run
from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.quant.gptq import gptq_quantize
from mlx_lm.utils import load_model, quantize_model

BITS = 4
EMBEDDING = {"awq": (32, 4), "gptq": (64, 6)}
"""Group and bits of embedding and lm_head: the defaults of the commands."""


def parts(job: Job) -> dict[str, list[str]]:
    """The canonical matrices in each matrix of mlx_lm's model, by its path."""
    found = {"model.embed_tokens": ["embed_tokens"]}
    for i in range(job.integer("num_hidden_layers")):
        kinds = {"self_attn.o_proj": ["o_proj"], "mlp.down_proj": ["down_proj"]}
        if fused(job.config):
            kinds |= {"self_attn.qkv_proj": ["q_proj", "k_proj", "v_proj"], "mlp.gate_up_proj": ["gate_proj", "up_proj"]}
        else:
            kinds |= {f"self_attn.{kind}": [kind] for kind in ("q_proj", "k_proj", "v_proj")}
            kinds |= {f"mlp.{kind}": [kind] for kind in ("gate_proj", "up_proj")}
        found |= {f"model.layers.{i}.{path}": [f"layers.{i}.{name}" for name in names] for path, names in kinds.items()}
    return found if job.config.get("tie_word_embeddings") else found | {"lm_head": ["lm_head"]}


def taken(job: Job, model: nn.Module, seconds: float, *, calibrated: bool) -> Made:
    """The weights that a quantized model of mlx_lm computes with."""
    modules = dict(model.named_modules())
    original = job.weights()
    weights: dict[str, F32] = {}
    bits: dict[str, float] = {}
    for path, names in parts(job).items():
        m: Any = modules[path]
        values = np.array(mx.dequantize(m.weight, m.scales.astype(mx.float32), m.biases.astype(mx.float32), m.group_size, m.bits))
        each = m.bits + 8 * (m.scales.itemsize + m.biases.itemsize) / m.group_size
        at = 0
        for name in names:
            rows = len(original[name])
            weights[name], bits[name] = values[at : at + rows], each * original[name].size
            at += rows
    for i in range(job.integer("num_hidden_layers")):
        for name, path in (("input_norm", "input_layernorm"), ("post_attention_norm", "post_attention_layernorm")):
            weights[f"layers.{i}.{name}"] = np.array(modules[f"model.layers.{i}.{path}"].weight.astype(mx.float32))
    weights["norm"] = np.array(modules["model.norm"].weight.astype(mx.float32))
    return Made(weights, bits, seconds, calibrated)


def tokens(job: Job) -> mx.array:
    """mlx_lm takes sequences of one length: the shortest one's."""
    length = min(map(len, job.calibration))
    return mx.array([piece for s in job.calibration for at in range(0, len(s) - length + 1, length) for piece in [s[at : at + length]]])


def affine(job: Job, *, group: int) -> Made:
    model, config = load_model(job.checkpoint)
    with clock() as seconds:
        model, _ = quantize_model(model, config, group, BITS)
        mx.eval(model.parameters())
    return taken(job, model, seconds[0], calibrated=False)


def gptq(job: Job, *, group: int) -> Made:
    model, _ = load_model(job.checkpoint)
    fallback_group, fallback_bits = EMBEDDING["gptq"]
    with clock() as seconds:
        model, _ = gptq_quantize(model, tokens(job), BITS, group, fallback_bits, fallback_group)
        mx.eval(model.parameters())
    return taken(job, model, seconds[0], calibrated=True)


def awq(job: Job, *, group: int) -> Made:
    model, _ = load_model(job.checkpoint)
    kind = str(job.config["model_type"])
    if kind not in AWQ_MODEL_CONFIGS:
        raise NotImplementedError(f"mlx_lm's AWQ knows no {kind}")
    embedding_group, embedding_bits = EMBEDDING["awq"]
    with clock() as seconds:
        awq_quantize(model, tokens(job), AWQ_MODEL_CONFIGS[kind], group, BITS, embedding_group, embedding_bits)
        mx.eval(model.parameters())
    return taken(job, model, seconds[0], calibrated=True)


def dwq(job: Job, *, group: int) -> Made:
    import mlx.optimizers as optimizers

    model, config = load_model(job.checkpoint)
    student = copy.deepcopy(model)
    student, _ = quantize_model(student, config, group, BITS)
    rows = tokens(job).tolist()
    data = [(row, 0) for row in rows]
    with clock() as seconds:
        dwq_quantize(
            student,
            lambda batch, _, split: model(batch),
            optimizers.Adam(learning_rate=1e-6, bias_correction=True),
            data,
            data[:4],
            batch_size=4,
            max_seq_length=len(rows[0]),
            seed=123,
        )
        mx.eval(student.parameters())
    return taken(job, student, seconds[0], calibrated=True)


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    run(
        {f"mlx_lm affine g{group}": partial(affine, group=group) for group in (32, 64, 128)}
        | {f"mlx_lm GPTQ g{group}": partial(gptq, group=group) for group in (32, 64, 128)}
        | {f"mlx_lm AWQ g{group}": partial(awq, group=group) for group in (32, 64, 128)}
        | {"mlx_lm DWQ g64": partial(dwq, group=64)}
    )
