"""What to do about a build that is not faithful enough: never what was just done, and in the order of what helped.

Measured on SmolLM2-135M and tiny-phi (docs/fidelity.md has the figures): fitting to a text gains most and costs no byte, then smaller
groups, then finer formats for the matrices that need them. Each step keeps those before it.
"""

import math

from edgekit.fitting import BEST, USUAL, Method
from edgekit.models import Model
from edgekit.precision import most_bits, stored_bits
from edgekit.quant.scheme import GROUPS, QuantScheme

MORE_BITS = 0.6
"""What a step of ``--bits`` adds: on SmolLM2 it took 40 % off the divergence of calibrated groups of 32."""
LAST = "take a larger model, or, where its answers are good enough for you, other limits (--max-kl, --min-top1)"


def advice(model: Model, scheme: QuantScheme, method: Method, bits: float | None = None, text: str = "default") -> str:
    """The next steps as options of ``edge build``. bits: what was asked for with ``--bits``. text: for ``--calibrate``."""
    steps = _steps(model, scheme, method, bits, text)
    then = f"build with {steps[1]}" if len(steps) > 1 else LAST
    return f"build with {steps[0]}; if that is not enough, {then}" if steps else LAST


def _steps(model: Model, scheme: QuantScheme, method: Method, bits: float | None, text: str) -> list[str]:
    """Those that are left, each with what was done before it."""
    if scheme.linear.symmetric:
        # Their zero points are fixed, so there is no calibration and no budget, and the device takes no other scheme.
        other = "another --target, whose weights have zero points (edge targets)"
        return [other] if method == USUAL else [f"--method {USUAL}", other]
    steps, fit, finest = list[str](), f"--calibrate {text}", f"--scheme int4-g{min(GROUPS)}"
    if method != BEST:
        budget = "" if bits is None else f" --bits {bits:g}"
        steps.append(f"--scheme {scheme.name} {fit}{budget}")
    if bits is None and scheme.linear.group > min(GROUPS):
        steps.append(f"{finest} {fit}")
    had, most = max(stored_bits(model, scheme), bits or 0.0), most_bits(model, scheme)
    more = min(math.ceil(10 * (had + MORE_BITS)) / 10, math.floor(10 * most) / 10)
    if more > had:
        steps.append(f"{finest} {fit} --bits {more:g}")
    return steps
