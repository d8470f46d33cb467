"""Phi-3, Phi-3.5 and Phi-4-mini (``model_type`` phi3): fused qkv_proj and gate_up_proj, LongRoPE, partial rotary, tied embeddings.

Maths as in transformers ``models/phi3/modeling_phi3.py``.
"""

from collections.abc import Mapping

from edgekit.models import fields, rope
from edgekit.models.decoder import DecoderConfig, Rope, Slice


def decoder_config(config: Mapping[str, object]) -> DecoderConfig:
    """What config.json of a phi3 checkpoint describes. Raises ConfigError for values that are wrong or change unimplemented maths."""
    fields.activation(config)
    heads, kv_heads, head_dim = fields.heads(config, fields.integer(config, "num_attention_heads"))
    context = fields.integer(config, "max_position_embeddings")
    layers = fields.integer(config, "num_hidden_layers")
    window = fields.window(config, "sliding_window", context)
    fields.layer_types(config, [config.get("sliding_window") is not None] * layers, window)
    return DecoderConfig(
        model_type="phi3",
        vocab_size=fields.integer(config, "vocab_size"),
        hidden_size=fields.integer(config, "hidden_size"),
        intermediate_size=fields.integer(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number(config, "rms_norm_eps", 1e-5),
        context=context,
        rope=_rope(config, head_dim, context),
        windows=(window,) * layers,
        tied=fields.flag(config, "tie_word_embeddings"),
        qkv_bias=False,
    )


def _rope(config: Mapping[str, object], head_dim: int, context: int) -> Rope:
    settings = rope.settings(config)
    if settings["rope_type"] in ("longrope", "su"):  # "su" is what the first Phi-3 checkpoints call LongRoPE
        return rope.longrope(settings, head_dim, 10000.0, context)
    if settings["rope_type"] == "default":
        return rope.plain(settings, head_dim, 10000.0)
    raise rope.refused("phi3", settings, "longrope (su), default")


def weight_slices(decoder: DecoderConfig) -> dict[str, Slice]:
    """Canonical weight name -> the rows of the checkpoint tensor that hold it."""
    d, f = decoder.hidden_size, decoder.intermediate_size
    q, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    out = {"embed_tokens": Slice("model.embed_tokens.weight", 0, decoder.vocab_size)}
    for i in range(decoder.layers):
        at = f"model.layers.{i}"
        qkv, gate_up = f"{at}.self_attn.qkv_proj.weight", f"{at}.mlp.gate_up_proj.weight"
        out |= {
            f"layers.{i}.input_norm": Slice(f"{at}.input_layernorm.weight", 0, d),
            f"layers.{i}.q_proj": Slice(qkv, 0, q),
            f"layers.{i}.k_proj": Slice(qkv, q, q + kv),
            f"layers.{i}.v_proj": Slice(qkv, q + kv, q + 2 * kv),
            f"layers.{i}.o_proj": Slice(f"{at}.self_attn.o_proj.weight", 0, d),
            f"layers.{i}.post_attention_norm": Slice(f"{at}.post_attention_layernorm.weight", 0, d),
            f"layers.{i}.gate_proj": Slice(gate_up, 0, f),
            f"layers.{i}.up_proj": Slice(gate_up, f, 2 * f),
            f"layers.{i}.down_proj": Slice(f"{at}.mlp.down_proj.weight", 0, d),
        }
    out["norm"] = Slice("model.norm.weight", 0, d)
    if not decoder.tied:
        out["lm_head"] = Slice("lm_head.weight", 0, decoder.vocab_size)
    return out
