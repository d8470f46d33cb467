"""Digests of the portable weights, taken as an exporter gets them: artifacts with equal ones hold the same weights, whatever their
engine (docs/artifact.md specifies them)."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgekit.models import Model
from edgekit.quant.scheme import Format, QuantizedTensor


@dataclass(frozen=True)
class Ledger:
    """blocks: canonical weight -> its format, shape and first row of a block -> sha256 of that block. Filled from several threads."""

    blocks: dict[str, dict[tuple[Format, tuple[int, int], int], bytes]] = field(default_factory=dict)

    def note(self, weight: str, shape: tuple[int, int], start: int, block: QuantizedTensor) -> None:
        """A block of ``weight`` [N, K], from row ``start`` on, was handed out."""
        digest = hashlib.sha256()
        for array in (block.codes, block.scales.astype("<f2", copy=False), block.zeros):
            digest.update(_bytes(array))
        self.blocks.setdefault(weight, {})[block.format, shape, start] = digest.digest()


def weight_digests(model: Model, ledger: Ledger) -> dict[str, str]:
    """Hex sha256 of every weight of ``model``: of matrices by what is in the ``ledger``, of norms and biases by their float32 values.

    Nothing for an artifact without weights. Raises CheckpointError from reading the norms and biases.
    """
    if not ledger.blocks:
        return {}
    found = {}
    for name, shape in model.decoder.weight_shapes().items():
        if len(shape) == 1:
            digest = hashlib.sha256(f"FLOAT32 {shape[0]}\n".encode())
            digest.update(_bytes(model.tensor(name).astype("<f4", copy=False)))
            found[name] = digest.hexdigest()
        elif name in ledger.blocks:
            found[name] = _matrix(ledger.blocks[name])
    return found


def _matrix(blocks: dict[tuple[Format, tuple[int, int], int], bytes]) -> str:
    """Of a weight that was taken in two formats, both count, the one of fewer bits first."""
    digest = hashlib.sha256()
    ordered = sorted(blocks.items(), key=lambda item: (item[0][0].bits, item[0][0].group, item[0][2]))
    begun: Format | None = None
    for (form, (n, k), _), block in ordered:
        if form != begun:
            digest.update(f"INT{form.bits} g{form.group} {n}x{k}\n".encode())
            begun = form
        digest.update(block)
    return digest.hexdigest()


def _bytes(array: NDArray[np.generic]) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
