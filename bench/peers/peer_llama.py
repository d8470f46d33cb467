"""llama.cpp's quantizer, through llama-cpp-python and gguf: Q4_0 and Q4_K_M, without and with an importance matrix.

The importance matrix is that of llama-imatrix: the mean square of each input over the calibration text.
"""

import ctypes
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from common import F32, Job, Made, clock, fused, run

TYPES = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def files_name(job: Job, name: str) -> str:
    """The GGUF tensor that holds a canonical weight; rows of q and k keep their order, which no quantizer of rows sees."""
    top = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    kinds = {
        "input_norm": "attn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "post_attention_norm": "ffn_norm",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    joined = {"q_proj": "attn_qkv", "k_proj": "attn_qkv", "v_proj": "attn_qkv", "gate_proj": "ffn_up"} if fused(job.config) else {}
    if name in top:
        return f"{top[name]}.weight"
    _, layer, kind = name.split(".")
    return f"blk.{layer}.{(kinds | joined)[kind]}.weight"


def tensors(job: Job) -> Iterator[tuple[str, list[tuple[str, F32]]]]:
    """GGUF tensor -> the canonical weights stacked in it."""
    held: dict[str, list[tuple[str, F32]]] = {}
    order = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    weights = job.weights()
    for name in sorted(weights, key=lambda n: order.index(n.rsplit(".", 1)[-1]) if n.rsplit(".", 1)[-1] in order else 0):
        held.setdefault(files_name(job, name), []).append((name, weights[name]))
    yield from held.items()


def write(job: Job, path: Path) -> None:
    arch = "phi3" if fused(job.config) else "llama"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(job.integer("max_position_embeddings"))
    original = "original_max_position_embeddings"
    writer.add_rope_scaling_orig_ctx_len(job.integer(original if original in job.config else "max_position_embeddings"))
    writer.add_embedding_length(job.integer("hidden_size"))
    writer.add_feed_forward_length(job.integer("intermediate_size"))
    writer.add_block_count(job.integer("num_hidden_layers"))
    writer.add_head_count(job.integer("num_attention_heads"))
    writer.add_head_count_kv(job.integer("num_key_value_heads"))
    writer.add_layer_norm_rms_eps(float(str(job.config["rms_norm_eps"])))
    writer.add_rope_dimension_count(job.integer("hidden_size") // job.integer("num_attention_heads"))
    writer.add_vocab_size(job.integer("vocab_size"))
    writer.add_tokenizer_model("no_vocab")
    for name, parts in tensors(job):
        writer.add_tensor(name, np.concatenate([w for _, w in parts]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def importance(job: Job) -> ctypes.Array[llama_cpp.llama_model_imatrix_data]:
    """Ended by an entry without a name. Tensors that no matrix product reads with these inputs (the embedding) have none."""
    squares = job.squares()
    entries = [(name, squares[parts[0][0]]) for name, parts in tensors(job) if parts[0][0] in squares]
    array = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
    for at, (name, values) in enumerate(entries):
        kept = np.ascontiguousarray(values, np.float32)
        array[at].name = name.encode()
        array[at].data = (ctypes.c_float * len(kept))(*kept.tolist())
        array[at].size = len(kept)
    return array


def quantize(job: Job, *, kind: str, calibrated: bool) -> Made:
    with tempfile.TemporaryDirectory() as scratch:
        plain, out = Path(scratch) / "f32.gguf", Path(scratch) / "out.gguf"
        write(job, plain)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = TYPES[kind]
        held = importance(job) if calibrated else None
        if held is not None:
            params.imatrix = held
        with clock() as seconds:
            status = llama_cpp.llama_model_quantize(str(plain).encode(), str(out).encode(), ctypes.byref(params))
        if status:
            raise RuntimeError(f"llama_model_quantize gave {status}")
        found = {t.name: t for t in gguf.GGUFReader(out).tensors}
        weights: dict[str, F32] = {}
        bits: dict[str, float] = {}
        for name, parts in tensors(job):
            tensor = found[name]
            values = gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type).reshape(-1, parts[0][1].shape[-1])
            at = 0
            for canonical, w in parts:
                rows = len(w) if w.ndim == 2 else 1
                weights[canonical] = values[at : at + rows].reshape(w.shape)
                if w.ndim == 2:
                    bits[canonical] = 8.0 * tensor.n_bytes * w.size / tensor.n_elements
                    print(canonical, tensor.tensor_type.name, flush=True)
                at += rows
    return Made(weights, bits, seconds[0], calibrated)


if __name__ == "__main__":
    run(
        {
            f"llama.cpp {kind}{', imatrix' if calibrated else ''}": partial(quantize, kind=kind, calibrated=calibrated)
            for calibrated in (False, True)
            for kind in TYPES
        }
    )
