"""Where the plugin's cache holds which token.

That cache is a state of the request and only grows. What is rewound stays in it, hidden by the attention mask, until it is worth a copy to
be rid of it: so a wrong draft (prompt lookup) costs nothing.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import openvino

HOLES = 64
"""Given-up slots, beside an eighth of the sequence, that may stay in the cache before it is copied without them."""


class Slots:
    def __init__(self, context: int) -> None:
        self._count = 0
        self._of = np.zeros(context, np.int64)  # the slot of each position held
        self._mask = np.ones((1, context + HOLES + context // 8 + 1), np.int64)

    def mask(self, new: int) -> NDArray[np.int64]:
        """[1, slots and so many new ones]: 0 where one was given up."""
        return self._mask[:, : self._count + new]

    def took(self, position: int, count: int) -> None:
        """So many tokens from ``position`` on are in the cache now."""
        self._of[position : position + count] = np.arange(self._count, self._count + count)
        self._count += count

    def hide(self, begin: int, end: int) -> None:
        """The tokens of these positions."""
        self._mask[0, self._of[begin:end]] = 0

    def hide_unknown(self, request: "openvino.InferRequest") -> None:
        """Whatever a call that failed or was interrupted left in the cache."""
        held = int(request.query_state()[0].state.shape[2])
        self._mask[0, self._count : held] = 0
        self._count = held

    def compact(self, request: "openvino.InferRequest", position: int) -> None:
        """Takes what was given up out of the cache, where that is much, or nothing else is left."""
        holes = self._count - position
        if not holes or (position and holes <= HOLES + position // 8):
            return
        import openvino

        if position == 0:
            request.reset_state()
        else:
            kept = self._of[:position]
            for state in request.query_state():
                state.state = openvino.Tensor(np.ascontiguousarray(state.state.data[:, :, kept]))
        self._count = position
        self._of[:position] = np.arange(position)
        self._mask[:] = 1
