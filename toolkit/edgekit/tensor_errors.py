"""What quantizing does to each matrix by itself: its relative error, from the weights alone."""

import threading
from collections.abc import Iterator, Mapping

import numpy as np

from edgekit.models import Model
from edgekit.parallel import in_threads
from edgekit.progress import Progress
from edgekit.quant import dequantize
from edgekit.quant.scheme import Format, QuantScheme
from edgekit.quantized import Matrix, Quantizer, block, cuts, matrices


def tensor_errors(
    model: Model, scheme: QuantScheme, exceptions: Mapping[str, Format], quantizer: Quantizer, progress: Progress
) -> dict[str, float]:
    """By canonical name, of every matrix W and its quantized Q: ``|W - Q| / |W|`` (Frobenius norms; 0 for a matrix of zeros).

    A thread holds one block of rows at a time. Raises CheckpointError.
    """
    wanted = matrices(model, scheme, exceptions)
    sums = {m.weight: np.zeros(2) for m in wanted}
    lock, total, done = threading.Lock(), sum(m.shape[0] * m.shape[1] for m in wanted), 0

    def work(job: tuple[Matrix, int, int]) -> Iterator[int]:
        m, start, stop = job
        weight = model.rows(m.weight, start, stop)
        error = weight - dequantize(block(model, m, start, stop, quantizer))
        found = [float(np.vdot(a, a)) for a in (error, weight)]
        with lock:
            sums[m.weight] += found
        yield weight.size

    def tell(count: int) -> None:
        nonlocal done
        done += count
        progress("error of the weights", done, total)

    in_threads(work, [(m, start, stop) for m in wanted for start, stop in cuts(m.shape)], quantizer.threads, tell)
    return {name: float(np.sqrt(error / norm)) if norm else 0.0 for name, (error, norm) in sums.items()}
