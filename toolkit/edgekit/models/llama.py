"""Llama 2, Llama 3.x and what shares their layout, such as TinyLlama and SmolLM2 (``model_type`` llama): llama3 RoPE scaling.

Maths as in transformers ``models/llama/modeling_llama.py``.
"""

from collections.abc import Mapping

from edgekit.models import fields, rope
from edgekit.models.decoder import DecoderConfig, Rope, Slice


def decoder_config(config: Mapping[str, object]) -> DecoderConfig:
    """What config.json of a llama checkpoint describes. Raises ConfigError for values that are wrong or change unimplemented maths.

    A sliding_window, which some carry over from other architectures, is none of a llama model: transformers never reads it.
    """
    fields.activation(config)
    fields.refuse_unless(config, "attention_bias", False)
    fields.refuse_unless(config, "mlp_bias", False)
    heads, kv_heads, head_dim = fields.heads(config, fields.integer(config, "num_attention_heads"))
    layers = fields.integer(config, "num_hidden_layers")
    fields.layer_types(config, [False] * layers)
    return DecoderConfig(
        model_type="llama",
        vocab_size=fields.integer(config, "vocab_size"),
        hidden_size=fields.integer(config, "hidden_size"),
        intermediate_size=fields.integer(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number(config, "rms_norm_eps", 1e-6),
        context=fields.integer(config, "max_position_embeddings"),
        rope=_rope(config, head_dim),
        windows=(None,) * layers,
        tied=fields.flag(config, "tie_word_embeddings"),
        qkv_bias=False,
    )


def _rope(config: Mapping[str, object], head_dim: int) -> Rope:
    settings = rope.settings(config)
    fields.refuse_unless(settings, "partial_rotary_factor", 1.0, 1)
    if settings["rope_type"] == "default":
        return rope.plain(settings, head_dim, 10000.0)
    if settings["rope_type"] == "linear":
        return rope.linear(settings, head_dim, 10000.0)
    if settings["rope_type"] == "llama3":
        return rope.llama3(settings, head_dim, 10000.0)
    raise rope.refused("llama", settings, "default, linear, llama3")


def weight_slices(decoder: DecoderConfig) -> dict[str, Slice]:
    """Canonical weight name -> the rows of the checkpoint tensor that hold it."""
    d, f = decoder.hidden_size, decoder.intermediate_size
    q, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    out = {"embed_tokens": Slice("model.embed_tokens.weight", 0, decoder.vocab_size)}
    for i in range(decoder.layers):
        at = f"model.layers.{i}"
        out |= {
            f"layers.{i}.input_norm": Slice(f"{at}.input_layernorm.weight", 0, d),
            f"layers.{i}.q_proj": Slice(f"{at}.self_attn.q_proj.weight", 0, q),
            f"layers.{i}.k_proj": Slice(f"{at}.self_attn.k_proj.weight", 0, kv),
            f"layers.{i}.v_proj": Slice(f"{at}.self_attn.v_proj.weight", 0, kv),
            f"layers.{i}.o_proj": Slice(f"{at}.self_attn.o_proj.weight", 0, d),
            f"layers.{i}.post_attention_norm": Slice(f"{at}.post_attention_layernorm.weight", 0, d),
            f"layers.{i}.gate_proj": Slice(f"{at}.mlp.gate_proj.weight", 0, f),
            f"layers.{i}.up_proj": Slice(f"{at}.mlp.up_proj.weight", 0, f),
            f"layers.{i}.down_proj": Slice(f"{at}.mlp.down_proj.weight", 0, d),
        }
    out["norm"] = Slice("model.norm.weight", 0, d)
    if not decoder.tied:
        out["lm_head"] = Slice("lm_head.weight", 0, decoder.vocab_size)
    return out
