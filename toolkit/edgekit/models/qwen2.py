"""Qwen2 and Qwen2.5 (``model_type`` qwen2): biases on q, k and v; a sliding window from ``max_window_layers`` on, where it is used.

Maths as in transformers ``models/qwen2/modeling_qwen2.py``.
"""

from collections.abc import Mapping

from edgekit.models import fields, rope
from edgekit.models.decoder import DecoderConfig, Rope, Slice


def decoder_config(config: Mapping[str, object]) -> DecoderConfig:
    """What config.json of a qwen2 checkpoint describes. Raises ConfigError for values that are wrong or change unimplemented maths."""
    fields.activation(config)
    heads, kv_heads, head_dim = fields.heads(config)
    context = fields.integer(config, "max_position_embeddings")
    layers = fields.integer(config, "num_hidden_layers")
    sliding = _sliding(config, layers)
    window = fields.window(config, "sliding_window", context) if any(sliding) else None
    return DecoderConfig(
        model_type="qwen2",
        vocab_size=fields.integer(config, "vocab_size"),
        hidden_size=fields.integer(config, "hidden_size"),
        intermediate_size=fields.integer(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number(config, "rms_norm_eps", 1e-6),
        context=context,
        rope=_rope(config, head_dim),
        windows=tuple(window if s else None for s in sliding),
        tied=fields.flag(config, "tie_word_embeddings"),
        qkv_bias=True,
    )


def _sliding(config: Mapping[str, object], layers: int) -> list[bool]:
    """Which layers have the window, if ``use_sliding_window``: those that layer_types names, else those from ``max_window_layers`` on."""
    if not fields.flag(config, "use_sliding_window") or config.get("sliding_window") is None:
        implied = [False] * layers
        fields.layer_types(config, implied)
        return implied
    named = config.get("layer_types")
    if isinstance(named, list) and len(named) == layers and all(kind in ("sliding_attention", "full_attention") for kind in named):
        return [kind == "sliding_attention" for kind in named]
    # 0 is meant here: every layer slides
    first = 0 if config.get("max_window_layers") == 0 else fields.integer(config, "max_window_layers")
    implied = [i >= first for i in range(layers)]
    fields.layer_types(config, implied)
    return implied


def _rope(config: Mapping[str, object], head_dim: int) -> Rope:
    settings = rope.settings(config)
    fields.refuse_unless(settings, "partial_rotary_factor", 1.0, 1)
    if settings["rope_type"] == "default":
        return rope.plain(settings, head_dim, 10000.0)
    if settings["rope_type"] == "linear":
        return rope.linear(settings, head_dim, 10000.0)
    raise rope.refused("qwen2", settings, "default, linear")


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
            f"layers.{i}.q_proj.bias": Slice(f"{at}.self_attn.q_proj.bias", 0, q),
            f"layers.{i}.k_proj.bias": Slice(f"{at}.self_attn.k_proj.bias", 0, kv),
            f"layers.{i}.v_proj.bias": Slice(f"{at}.self_attn.v_proj.bias", 0, kv),
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
