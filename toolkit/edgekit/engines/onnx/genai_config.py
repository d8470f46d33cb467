"""``genai_config.json``, by which ``onnxruntime_genai.Model(DIR)`` opens the artifact unaided.

Format: https://onnxruntime.ai/docs/genai/reference/config.html
"""

from edgekit.artifact import TokenInfo
from edgekit.models.decoder import DecoderConfig

MAX_LENGTH = 4096
"""genai reserves a KV cache of ``search.max_length`` at once: a model's 128k would take tens of GB. A caller may set more."""
PHI3_RESTART = 4096
"""genai computes a sequence anew when it grows from this many tokens to one more, for type ``phi3`` only, whatever the config says. With
LongRoPE of another switch it would go on with mixed factors, so there ``search.max_length`` ends at the switch."""


PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    # As genai's builder writes them (builders/base.py, ep_attrs), but for DirectML's graph capture: that one needs every operator
    # on the device, which the arithmetic of the lengths is not.
    "cuda": {"enable_cuda_graph": "0"},
    "dml": {"enable_graph_capture": "0"},
    "webgpu": {"enableGraphCapture": "0", "validationMode": "basic"},
}


def genai_config(
    decoder: DecoderConfig, context: int, model_file: str, tokens: TokenInfo, pad: int | None, provider: str = "cpu"
) -> dict[str, object]:
    """The content of the file. genai wants a ``bos`` and a ``pad`` id even of a model without: it gets the first stop id."""
    first = tokens.stop[0]
    return {
        "model": {
            "type": model_type(decoder),
            "vocab_size": decoder.vocab_size,
            "context_length": context,
            "bos_token_id": first if tokens.bos is None else tokens.bos,
            "eos_token_id": list(tokens.stop),
            "pad_token_id": first if pad is None else pad,
            "decoder": {
                # Threads are left to ONNX Runtime: the file does not know the machine.
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [{provider: PROVIDER_OPTIONS[provider]}] if provider in PROVIDER_OPTIONS else [],
                },
                "filename": model_file,
                "head_size": decoder.head_dim,
                "hidden_size": decoder.hidden_size,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.kv_heads,
                "num_hidden_layers": decoder.layers,
                # No sliding_window section: the window is in the graph, and with the section genai crashes beyond it.
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": max_length(decoder, context),
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


def max_length(decoder: DecoderConfig, context: int) -> int:
    """Most tokens of a sequence in genai unless its caller sets more."""
    switch = decoder.rope.switch
    safe = context if switch is None or switch == PHI3_RESTART else min(context, switch)
    return min(safe, MAX_LENGTH)


def model_type(decoder: DecoderConfig) -> str:
    """``phi3`` where genai's restart comes at the model's LongRoPE switch; elsewhere ``decoder``, genai's type without any special case."""
    return "phi3" if decoder.rope.switch == PHI3_RESTART else "decoder"
