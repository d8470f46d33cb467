"""What the plugin's cache holds.

That cache is a state of the request and only grows. What was rewound is taken out of it before the next call: hidden by the attention mask
instead, it would change in which order the sums of attention are taken, and an answer with it.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino


def keep(request: "openvino.InferRequest", length: int) -> None:
    """The first ``length`` tokens and nothing else, whatever a call that failed or was interrupted left behind them."""
    import openvino

    if length == 0:
        request.reset_state()
        return
    for state in request.query_state():
        state.state = openvino.Tensor(np.ascontiguousarray(state.state.data[:, :, :length]))
