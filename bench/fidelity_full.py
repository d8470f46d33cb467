"""What the gate of `edge build` costs at full size: a random Phi-3.5-mini, built with --no-verify, then measured by the gate.

    python bench/fidelity_full.py --scratch /scratch           # 7.6 GB of checkpoint, 2 GB of cache, 2 GB of artifact
    python bench/fidelity_full.py --layers 2                   # a quick look

The gate's wall, user and system time and the peak memory of the process that runs it, the second time too, when the logits of the
checkpoint (another scheme) and then all of them (another target) lie in the cache. Linux and macOS.
"""

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import measure

ROOT = Path(__file__).resolve().parent.parent
GATE = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from edgekit import fidelity_gate
from edgekit.cache import open_cache, source_files
from edgekit.catalog import resolve
from edgekit.companions import read_companions
from edgekit.fidelity import default_text
from edgekit.models import open_model
from edgekit.progress import silent
from edgekit.quant.scheme import scheme
from edgekit.quantized import Quantizer
model = open_model(resolve(sys.argv[2], progress=silent))
companions, cache = read_companions(model.checkpoint, model.decoder.vocab_size), open_cache()
files = {tensor.file for tensor in model.checkpoint.tensors.values()}
quantizer = Quantizer(None, cache, source_files(files, cache, silent, None))
weights = json.loads(Path(sys.argv[4]).read_text(encoding="utf-8"))["weights"]
made = fidelity_gate.Quantized(model, model, scheme(sys.argv[3]), quantizer, weights)
found = fidelity_gate.measure_weights(made, companions, default_text(model), silent)
for part in found.parts:
    f = part.figures
    print(json.dumps({"part": part.name, "positions": f.positions, "mean_kl": f.mean_kl.value, "same_top": f.same_top.value,
                      "reference_perplexity": f.reference_perplexity.value}))
"""


def build(model: Path, scheme: str, scratch: Path, environment: dict[str, str]) -> Path:
    """An artifact that was not verified, for its digests, with its weights in the cache."""
    out = scratch / f"artifact-{scheme}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "edgekit.cli", "build", str(model), "--target", "cpu", "--scheme", scheme, "--out", str(out)]
    subprocess.run([*command, "--no-verify", "--quiet"], check=True, env=environment)
    return out / "edgekit.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="fewer than the model has, for a quick look")
    parser.add_argument("--scheme", action="append", help="may be repeated (default: int4-g128)")
    parser.add_argument("--scratch", type=Path, help="where everything goes; the checkpoint stays there (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "fidelity_full.json")
    asked = parser.parse_args()
    if asked.scratch is not None:
        asked.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.scratch, prefix="edgekit-bench-") as folder:
        scratch = Path(folder)
        model = (asked.scratch or scratch) / "phi-3.5-mini"
        if not (model / "model.safetensors.index.json").exists():
            layers = ["--layers", str(asked.layers)] if asked.layers else []
            subprocess.run([sys.executable, str(ROOT / "bench" / "synthetic.py"), "phi-3.5-mini", str(model), *layers], check=True)
        inherited = measure.quiet_environment(scratch)
        environment = {**inherited, "EDGEKIT_CACHE": str(scratch / "cache"), "PYTHONPATH": str(ROOT / "toolkit")}
        runs: list[dict[str, object]] = []
        result = {
            "command": " ".join(["python bench/fidelity_full.py", *sys.argv[1:]]),
            "machine": measure.machine(),
            "numpy": importlib.metadata.version("numpy"),
            "runs": runs,
        }
        for scheme in asked.scheme or ["int4-g128"]:
            manifest = build(model, scheme, scratch, environment)
            for _ in range(2):
                measure.warm(model)
                log = scratch / "log"
                command = [sys.executable, "-c", GATE, str(ROOT / "toolkit"), str(model), scheme, str(manifest)]
                usage = measure.run(command, log=log, environment=environment)
                text = log.read_text(encoding="utf-8", errors="replace")
                if usage.status:
                    raise SystemExit(text)
                runs.append({"scheme": scheme, **asdict(usage), "figures": [json.loads(line) for line in text.splitlines()]})
                print(json.dumps(runs[-1]), flush=True)
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(manifest.parent)


if __name__ == "__main__":
    main()
