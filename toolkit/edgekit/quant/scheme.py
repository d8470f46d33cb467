"""Formats a tensor can be stored in, and the few named schemes that say which tensor gets which."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import TargetError

GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Format:
    """How one matrix is stored: affine codes of ``bits`` (4 or 8) with a scale and zero point for each group of ``group`` along K.

    symmetric: every zero point is 8 (4 bits only), for devices that have none: a part of portable INT4 that rounds worse.
    """

    bits: int
    group: int
    symmetric: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Storage in bits, the float16 scale and the zero point of each group included."""
        return self.bits + (16 + self.bits) / self.group

    def fitted(self, k: int) -> "Format":
        """This format for a matrix of K inputs: in the largest group up to its own that divides K. One that does not is filled up, which
        costs more than it saves (576 inputs in groups of 128 are stored as 640), and several engines have no padding.

        Where none divides K (80), it stays as it is and the last group is filled up.
        """
        whole = (group for group in sorted(GROUPS, reverse=True) if group <= self.group and k % group == 0)
        return replace(self, group=next(whole, self.group))


@dataclass(frozen=True)
class QuantScheme:
    """Which format each kind of matrix gets: the groups are the largest, ``format_for`` fits them to a matrix. Norms and biases always stay
    in float32 or float16.

    exceptions: canonical weight name and format, for single matrices that get another one (``precision.py`` chooses them).
    """

    name: str
    linear: Format
    embedding: Format
    lm_head: Format
    exceptions: tuple[tuple[str, Format], ...] = ()

    def format_for(self, weight: str, k: int) -> Format:
        """The format that a canonical weight such as ``layers.0.q_proj``, with K inputs, is stored in: on every engine."""
        return self.format_of(weight).fitted(k)

    def format_of(self, weight: str) -> Format:
        """What is meant for a weight of this name, before its inputs are known."""
        for name, form in self.exceptions:
            if name == weight:
                return form
        return {"embed_tokens": self.embedding, "lm_head": self.lm_head}.get(weight, self.linear)


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix W[N, K] as ``(q - z) * s``, in groups of ``format.group`` along K.

    codes:  uint8, packed. 4 bits: [N, G, group / 2], two codes a byte, low nibble first. 8 bits: [N, G, group].
    scales: float16 [N, G], positive; for 4 bits the significand has at most 7 significant bits.
    zeros:  uint8 [N, G], one zero point a byte (0..15 or 0..255).
    G = ceil(K / group); where group does not divide K the last group is filled up with codes equal to its zero point.
    """

    shape: tuple[int, int]
    format: Format
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8]


def _int4(group: int) -> QuantScheme:
    fine = Format(8, group)
    return QuantScheme(f"int4-g{group}", linear=Format(4, group), embedding=fine, lm_head=fine)


def _symmetric(group: int) -> QuantScheme:
    fine = Format(8, group)
    return QuantScheme(f"int4-sym-g{group}", linear=Format(4, group, symmetric=True), embedding=fine, lm_head=fine)


SCHEMES: dict[str, QuantScheme] = {s.name: s for s in [_int4(32), _int4(64), _int4(128), _symmetric(128)]}


def scheme(name: str) -> QuantScheme:
    """The scheme called ``name``. Raises TargetError naming the known ones."""
    try:
        return SCHEMES[name]
    except KeyError:
        raise TargetError(f"unknown scheme {name!r}; known: {', '.join(SCHEMES)}") from None
