"""``genai_config.json`` of a ``decoder-pipeline``, by which ``onnxruntime_genai.Model(DIR)`` opens the artifact unaided.

Format: https://onnxruntime.ai/docs/genai/reference/config.html; the order of a run: onnxruntime-genai, decoder_only_pipeline.cpp.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.artifact import TokenInfo
from edgekit.engines.onnx_format.proto import Graph
from edgekit.engines.qnn.stages import PAD
from edgekit.models.decoder import DecoderConfig


@dataclass(frozen=True)
class Step:
    """A model of the pipeline. graph: whose inputs and outputs it has. on: "both", "prompt" or "token"."""

    name: str
    file: str
    graph: Graph
    on: str
    npu: bool


def genai_config(decoder: DecoderConfig, context: int, chunk: int, tokens: TokenInfo, steps: Sequence[Step]) -> dict[str, object]:
    """The content of the file. genai wants a ``bos`` id even of a model without: it gets the first stop id."""
    return {
        "model": {
            "type": "decoder-pipeline",
            "vocab_size": decoder.vocab_size,
            "context_length": context,
            "bos_token_id": tokens.stop[0] if tokens.bos is None else tokens.bos,
            "eos_token_id": list(tokens.stop),
            "pad_token_id": PAD,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": decoder.head_dim,
                "hidden_size": decoder.hidden_size,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.kv_heads,
                "num_hidden_layers": decoder.layers,
                # Prompts in pieces, padded after the last token; the cache stays where it is.
                "sliding_window": {
                    "window_size": chunk,
                    "pad_value": 0,
                    "alignment": "left",
                    "slide_key_value_cache": False,
                },
                "inputs": {
                    "input_ids": "input_ids",
                    "past_sequence_length": "past_seq_len",
                    "total_sequence_length": "total_seq_len",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "pipeline": [{step.name: stage(step) for step in steps}],
            },
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def stage(step: Step) -> Mapping[str, object]:
    said: dict[str, object] = {
        "filename": step.file,
        "inputs": [value.name for value in step.graph.inputs],
        "outputs": [value.name for value in step.graph.outputs],
        "run_on_prompt": step.on != "token",
        "run_on_token_gen": step.on != "prompt",
    }
    if step.npu:
        said["session_options"] = {
            "log_id": f"onnxruntime-genai.{step.name}",
            "provider_options": [{"qnn": {"backend_type": "htp", "htp_performance_mode": "burst"}}],
        }
    if step.name == "lm_head":
        said["is_lm_head"] = True
    return said
