"""The inner loops of ``gptq.py``: codes of a block of columns, one column after the other, each changing what the next ones see.

NumPy defines them; kernel.c, where it was compiled, does the same operations in the same order, so codes are equal bit for bit.
"""

import numpy as np

from edgekit.quant import native
from edgekit.quant.rtn import F32


def nearest(w: F32, scale: F32, zero: F32) -> F32:
    """Signed codes ``q - z``."""
    codes: F32 = np.clip(np.rint(w / scale), -zero, np.float32(15) - zero)
    return codes


def compensate(w: F32, scale: F32, zero: F32, upper: F32, codes: F32) -> None:
    """Rounds the columns of ``w`` [N, B] in order, each error taken out of the later ones as ``upper`` [B, B] says; ``w`` is used up.

    scale, zero: [N, B]. Signed codes go to ``codes`` [N, B].
    """
    if native.COMPENSATE is not None:
        native.run_columns(native.COMPENSATE, (w, scale, zero, np.ascontiguousarray(upper), codes))
        return
    for i in range(w.shape[1]):
        codes[:, i] = nearest(w[:, i], scale[:, i], zero[:, i])
        error = (w[:, i] - codes[:, i] * scale[:, i]) / upper[i, i]
        w[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]


def descend(scale: F32, zero: F32, h: F32, pull: F32, codes: F32) -> None:
    """One sweep of coordinate descent over the columns of a block: each code becomes the best one, given all others.

    scale, zero, codes: [N, B]. h: [B, B], with a positive diagonal. pull: [N, B], of ``(W - codes * scale) H``; kept up to date.
    """
    if native.DESCEND is not None:
        native.run_columns(native.DESCEND, (scale, zero, h, codes, pull))
        return
    for i in range(codes.shape[1]):
        old = codes[:, i].copy()
        codes[:, i] = nearest(old * scale[:, i] + pull[:, i] / h[i, i], scale[:, i], zero[:, i])
        step = (old - codes[:, i]) * scale[:, i]
        pull += step[:, None] * h[i]
