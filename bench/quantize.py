"""Squared error and speed of every way to quantize, beside ONNX Runtime's own quantizers, as a Markdown table.

    python bench/quantize.py --threads 2

Error is relative to asymmetric 4-bit min/max whose scale is any float32. (k_quant minimizes a weighted
error, so it is not at its best here.) Speed is the best of the repeats, in wall time and in processor time (all threads together), which a
busy machine disturbs less.
``--checkpoint`` takes a directory; by default the embedded tiny-phi if it is there.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "toolkit"))

from edgekit.checkpoint import Source, open_checkpoint  # noqa: E402
from edgekit.quant import GROUPS, Format, dequantize, quantize, unpack_nibbles, unpack_zero_points  # noqa: E402

Matrix = NDArray[np.float32]
Method = Callable[[Matrix, int], Callable[[], Matrix]]
"""Quantizes a matrix in groups of so many (this is timed) and returns what dequantizes it (this is not)."""


def free_min_max(w: Matrix, group: int) -> Callable[[], Matrix]:
    groups = w.reshape(-1, group)
    lo, hi = np.minimum(groups.min(axis=1, keepdims=True), 0), np.maximum(groups.max(axis=1, keepdims=True), 0)
    scale = np.maximum((hi - lo) / 15, np.finfo(np.float32).tiny)
    zero = np.rint(-lo / scale)
    q = np.clip(np.rint(groups / scale) + zero, 0, 15)
    return lambda: ((q - zero) * scale).reshape(w.shape)


def edgekit(bits: int, search: bool, threads: int) -> Method:
    def method(w: Matrix, group: int) -> Callable[[], Matrix]:
        t = quantize(w, Format(bits, group), name="bench", search=search, threads=threads)
        return lambda: dequantize(t)

    return method


def onnxruntime_native(symmetric: bool) -> Method:
    from onnxruntime.quantization.matmul_nbits_quantizer import quantize_matmul_4bits

    def method(w: Matrix, group: int) -> Callable[[], Matrix]:
        (n, k), groups = w.shape, w.shape[1] // group
        packed = np.zeros((n, groups, group // 2), np.uint8)
        scales, zeros = np.zeros((n, groups), np.float32), np.zeros((n, (groups + 1) // 2), np.uint8)
        quantize_matmul_4bits(packed, np.ascontiguousarray(w.T), scales, zeros, group, n, k, symmetric)

        def back() -> Matrix:
            zero = np.full((n, groups), 8, np.uint8) if symmetric else unpack_zero_points(zeros, groups)
            q = unpack_nibbles(packed).astype(np.float32)
            return ((q - zero[:, :, None]) * scales[:, :, None]).reshape(n, k)

        return back

    return method


def onnxruntime_k_quant(w: Matrix, group: int) -> Callable[[], Matrix]:
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    q, scale, zero = quant_tensor_k_quant_cpu(w, 4, group)
    return lambda: ((q - zero) * scale).astype(np.float32).reshape(w.shape)


def methods(threads: int) -> dict[str, Method]:
    return {
        "min/max, free float32 scale (numpy, plain)": free_min_max,
        "edgekit INT4 min/max": edgekit(4, False, threads),
        "edgekit INT4 search": edgekit(4, True, threads),
        "edgekit INT8 min/max": edgekit(8, False, threads),
        "onnxruntime 4-bit asymmetric": onnxruntime_native(False),
        "onnxruntime 4-bit symmetric": onnxruntime_native(True),
        "onnxruntime k_quant": onnxruntime_k_quant,
    }


def matrices(checkpoint: Path | None) -> dict[str, list[Matrix]]:
    rng = np.random.default_rng(0)
    found = {
        "Gaussian": [rng.standard_normal((1024, 4096)).astype(np.float32)],
        "Student-t(4)": [rng.standard_t(4, (1024, 4096)).astype(np.float32)],
    }
    if checkpoint is not None:
        opened = open_checkpoint(checkpoint, Source(checkpoint.name, "local", None, None))
        found[checkpoint.name] = [
            opened.rows(name) for name, info in opened.tensors.items() if len(info.shape) == 2 and info.shape[1] % 128 == 0
        ]
    return found


def measure(method: Method, weights: list[Matrix], group: int, repeats: int) -> tuple[float, float, float]:
    """Squared error, best wall seconds, best processor seconds."""
    error, wall, cpu = 0.0, 0.0, 0.0
    for w in weights:
        walls, cpus = [], []
        for _ in range(repeats):
            began, began_cpu = time.perf_counter(), time.process_time()
            back = method(w, group)
            walls.append(time.perf_counter() - began)
            cpus.append(time.process_time() - began_cpu)
        wall, cpu = wall + min(walls), cpu + min(cpus)
        error += float(np.square(w.astype(np.float64) - back()).sum())
    return error, wall, cpu


def main() -> None:
    embedded = ROOT / "toolkit" / "edgekit" / "tiny_phi"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, default=embedded if (embedded / "model.safetensors").exists() else None)
    args = parser.parse_args()

    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "onnxruntime"))
    print(f"`python {' '.join(sys.argv)}`: Python {platform.python_version()}, {packages}, {platform.machine()} {platform.system()},")
    print(f"{os.cpu_count()} cores, {args.threads} threads for edgekit.\n")
    print("| weights | g | method | squared error | M weights/s | processor ns/weight |\n|---|---|---|---|---|---|")
    for title, weights in matrices(args.checkpoint).items():
        count = sum(w.size for w in weights)
        for group in GROUPS:
            base = 0.0
            for name, method in methods(args.threads).items():
                error, wall, cpu = measure(method, weights, group, args.repeats if "k_quant" not in name else 1)
                base = base or error
                print(
                    f"| {title} | {group} | {name} | {error / base:.4f} | {count / wall / 1e6:.0f} | {cpu / count * 1e9:.1f} |", flush=True
                )


if __name__ == "__main__":
    main()
