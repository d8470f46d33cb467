"""What fitting the weights of a full-size model to a text takes: all of its layers, or some and the rest by their number.

    python bench/calibrate.py --layers 32 --sequences 64 --scratch /scratch --out bench/results/calibrate.json     # an hour, 11 GB of disk
    python bench/calibrate.py --layers 2 --scratch /scratch

Layers of one shape cost the same, so the whole takes layers times the mean one; the embedding and the last position's logits add seconds.
Wall time is that of this machine as busy as it was; processor time says what it had been with all cores to itself, at best.
Peak memory is the process's own. The text is random tokens: what they are changes no cost.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "toolkit"), str(ROOT / "bench")]

import synthetic  # noqa: E402
from edgekit.cache import Cache, source_files  # noqa: E402
from edgekit.calibrate import LENGTH, calibrate, kept_as  # noqa: E402
from edgekit.catalog import resolve  # noqa: E402
from edgekit.models import open_model  # noqa: E402
from edgekit.parallel import cores  # noqa: E402
from edgekit.progress import silent  # noqa: E402
from edgekit.quant.scheme import scheme  # noqa: E402
from edgekit.quantized import Kept  # noqa: E402
from measure import machine  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="phi-3.5-mini", choices=sorted(synthetic.MODELS))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--scheme", default="int4-g128")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.scratch is not None:
        arguments.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        checkpoint = Path(folder) / "model"
        synthetic.make(checkpoint, arguments.model, layers=arguments.layers)
        model = open_model(resolve(str(checkpoint), progress=silent))
        rng = np.random.default_rng(0)
        sequences = rng.integers(10, model.decoder.vocab_size, (arguments.sequences, LENGTH)).tolist()
        sources = source_files({tensor.file for tensor in model.checkpoint.tensors.values()}, None, silent, None)
        quant = scheme(arguments.scheme)
        store = Kept(Cache(Path(folder) / "cache", 1 << 40), sources, kept_as(quant, model, "awq-gptq", sequences))
        marks = [(time.perf_counter(), time.process_time())]

        def progress(stage: str, done: int, total: int) -> None:
            print(f"{stage} {done}/{total} {time.perf_counter() - marks[0][0]:.0f} s", flush=True)
            if done % (total // arguments.layers) == 0:
                marks.append((time.perf_counter(), time.process_time()))

        calibrate(model, quant, "awq-gptq", sequences, store, progress)
        marks.append((time.perf_counter(), time.process_time()))
    layers = int(str(synthetic.MODELS[arguments.model]["num_hidden_layers"]))
    wall, cpu = ((marks[-1][i] - marks[0][i]) / arguments.layers for i in (0, 1))
    result = {
        "command": "python bench/calibrate.py " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "load": os.getloadavg()[1],
        "tokens": arguments.sequences * LENGTH,
        "layers": arguments.layers,
        "layer": {"wall_s": round(wall, 1), "processor_s": round(cpu, 1)},
        "model": {
            "layers": layers,
            "wall_min": round(wall * layers / 60, 1),
            "processor_min_by_core": round(cpu * layers / 60 / cores(), 1),
        },
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
