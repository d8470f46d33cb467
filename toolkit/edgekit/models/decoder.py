"""What kind of decoder a checkpoint holds, parsed once, and the canonical names of its weights.

Canonical weights (shapes [out, in], as in a Linear):
    embed_tokens [V, D]     layers.{i}.input_norm [D]           layers.{i}.post_attention_norm [D]     norm [D]
    lm_head [V, D]          layers.{i}.q_proj [H*hd, D]         layers.{i}.gate_proj [F, D]
    (absent when tied)      layers.{i}.k_proj [KV*hd, D]        layers.{i}.up_proj [F, D]
                            layers.{i}.v_proj [KV*hd, D]        layers.{i}.down_proj [D, F]
                            layers.{i}.o_proj [D, H*hd]
    biases, where the architecture has them: layers.{i}.q_proj.bias [H*hd], k_proj.bias, v_proj.bias
Fused checkpoint tensors (Phi-3's qkv_proj) are seen as row ranges; quantization groups run along the input, so fusing rows or
splitting them changes no code.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021), any scaling already folded into the frequencies.

    inv_freq:      inverse frequencies, one for each of ``dims / 2`` pairs; pair i rotates dims i and i + dims/2.
    long_inv_freq: for LongRoPE (Ding et al. 2024): used instead, for the WHOLE sequence, once it is longer than ``switch``.
    switch:        original_max_position_embeddings of LongRoPE, else None.
    scale:         multiplies cos and sin (LongRoPE's attention factor), else 1.
    """

    inv_freq: tuple[float, ...]
    long_inv_freq: tuple[float, ...] | None = None
    switch: int | None = None
    scale: float = 1.0

    @property
    def dims(self) -> int:
        """Rotated dims of a head (fewer than head_dim where rotary is partial)."""
        return 2 * len(self.inv_freq)

    def is_long(self, length: int) -> bool:
        """Whether a sequence of ``length`` tokens in all uses the long frequencies."""
        return self.switch is not None and length > self.switch

    def cos_sin(self, positions: int, *, long: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin, each float32 [positions, dims / 2], for positions 0.. with the short or the long frequencies."""
        chosen = self.long_inv_freq if long else self.inv_freq
        if chosen is None:
            raise ValueError("this RoPE has no long frequencies")
        angle = np.outer(np.arange(positions, dtype=np.float32), np.array(chosen, dtype=np.float32)).astype(np.float64)
        return (np.cos(angle) * self.scale).astype(np.float32), (np.sin(angle) * self.scale).astype(np.float32)


@dataclass(frozen=True)
class Slice:
    """Rows ``start`` to ``stop`` of the checkpoint tensor ``tensor``."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True)
class DecoderConfig:
    """A pre-norm (RMSNorm) decoder with grouped-query attention, rotary positions and a SwiGLU MLP."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context: int
    rope: Rope
    windows: tuple[int | None, ...]
    """Sliding window by layer: a token sees itself and the ``window - 1`` tokens before it; None sees all."""
    tied: bool
    qkv_bias: bool

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every weight, in the order a forward pass needs them."""
        return dict(self._shapes)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        d, f, hd = self.hidden_size, self.intermediate_size, self.head_dim
        q, kv = self.heads * hd, self.kv_heads * hd
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (self.vocab_size, d)}
        for i in range(self.layers):
            layer: dict[str, tuple[int, ...]] = {"input_norm": (d,), "q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d)}
            if self.qkv_bias:
                layer |= {"q_proj.bias": (q,), "k_proj.bias": (kv,), "v_proj.bias": (kv,)}
            layer |= {"o_proj": (d, q), "post_attention_norm": (d,), "gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
            shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
        shapes["norm"] = (d,)
        if not self.tied:
            shapes["lm_head"] = (self.vocab_size, d)
        return shapes
