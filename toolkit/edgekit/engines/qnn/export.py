"""From a checkpoint to what a Qualcomm NPU runs: compiled parts, embeddings.onnx, lm_head.onnx, cpu.data, genai_config.json.

One part after the other is quantized, compiled and its weights removed again: the disk holds one part's weights beside the artifact.
A compiled part is kept in the cache under a digest of all that it is made of: a build that was broken off goes on there.
"""

import importlib.util
import json
import shutil
from importlib.metadata import version
from pathlib import Path

from edgekit import cache_files
from edgekit.artifact import Scalar, TensorFormat, TokenInfo
from edgekit.cache import group_name
from edgekit.companions import read_companions
from edgekit.engines.exported import Exported, Footprint
from edgekit.engines.onnx_format import weights
from edgekit.engines.onnx_format.genai_tokenizer import compared
from edgekit.engines.onnx_format.proto import serialize
from edgekit.engines.qnn.calibration import calibrate
from edgekit.engines.qnn.compiler import FINALIZATION, INSTALL, REQUIRES, TURNS_VERSION, compile_part, read_compiled, turns
from edgekit.engines.qnn.footprint import running
from edgekit.engines.qnn.genai_config import Step, genai_config
from edgekit.engines.qnn.genie import embedding_bits, write_embedding
from edgekit.engines.qnn.genie_config import FILE as GENIE_CONFIG
from edgekit.engines.qnn.genie_config import genie_config
from edgekit.engines.qnn.layout import PROMPT, TOKEN, Layout, Pipeline, PlannedPart, check_machine, plan, plan_genie
from edgekit.engines.qnn.options import qnn_options
from edgekit.engines.qnn.stages import needs_length
from edgekit.errors import EngineMissing
from edgekit.files import file_digest
from edgekit.models import Model
from edgekit.progress import Progress
from edgekit.quant.scheme import QuantScheme
from edgekit.quantized import PLAIN, Quantizer
from edgekit.target import Target

PARTS = ".parts"
EMBEDDINGS, LM_HEAD = "embeddings.onnx", "lm_head.onnx"


def check(model: Model, scheme: QuantScheme, target: Target) -> None:
    """Whether this model can be built for this target; reads no weight. Raises TargetError saying what stands against it, EngineMissing
    without Qualcomm's compiler."""
    planned_for(model, scheme, target)
    missing = [name for name in REQUIRES if name != "onnxruntime-genai" and importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        raise EngineMissing(f"target {target.name} needs {' and '.join(missing)}; run: {INSTALL}")


def planned_for(model: Model, scheme: QuantScheme, target: Target) -> Layout:
    """For what the target's artifact is opened by. Raises TargetError."""
    return plan_genie(model, scheme, target) if qnn_options(target).runtime == "genie" else plan(model, scheme, target)


def footprint(model: Model, scheme: QuantScheme, target: Target) -> Footprint:
    """The artifact's size, about; keys and values of every layer, in float16."""
    decoder, layout = model.decoder, planned_for(model, scheme, target)
    cache = 4 * decoder.layers * decoder.kv_heads * decoder.head_dim
    return Footprint(layout.size, cache, running=running(layout, decoder))


def export(
    model: Model, scheme: QuantScheme, target: Target, directory: Path, progress: Progress, quantizer: Quantizer = PLAIN
) -> Exported:
    """Writes the files into ``directory``. Raises TargetError as ``check`` does, or where the NPU does not take a graph whole;
    OutputError for a disk too small; CheckpointError from reading the weights; EngineError where the compiler fails."""
    layout = planned_for(model, scheme, target)
    check_machine(layout, directory)
    companions = read_companions(model.checkpoint, model.decoder.vocab_size)
    if isinstance(layout, Pipeline):
        if layout.options.activations == "uint16":
            layout = calibrate(layout, model, scheme, companions, directory, progress, quantizer)
        weights.write(layout.cpu, model, directory, renamed(progress, "embeddings and lm_head"), quantizer)
        (directory / EMBEDDINGS).write_bytes(serialize(layout.embeddings))
        (directory / LM_HEAD).write_bytes(serialize(layout.lm_head))
    for planned in layout.parts:
        export_part(planned, layout, model, directory, progress, quantizer)
    about = details(layout, model, directory)
    name, config = configuration(layout, model, companions.tokens, directory)
    (directory / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
    if isinstance(layout, Pipeline):
        about = {**about, **compared(companions, directory)}
    return Exported(
        engine_requires=REQUIRES if isinstance(layout, Pipeline) else {},
        bits_per_weight=bits_per_weight(layout, model),
        tensors=exceptions(layout, model),
        details=about,
    )


def configuration(layout: Layout, model: Model, tokens: TokenInfo, directory: Path) -> tuple[str, dict[str, object]]:
    """Name and content of the file by which the artifact is opened. Genie opens binaries: the ONNX files around them are removed."""
    if isinstance(layout, Pipeline):
        return "genai_config.json", genai_config(model.decoder, layout.context, layout.options.chunk, tokens, steps(layout))
    (planned,) = layout.parts
    for half in planned.graphs:
        (directory / file_name(planned, half)).unlink()
    # With both graphs in it; without sharing that for prompts alone, by which Genie takes single tokens too.
    return GENIE_CONFIG, genie_config(model.decoder, layout.context, tokens, file_name(planned, PROMPT).replace(".onnx", "_qnn.bin"))


def exceptions(layout: Layout, model: Model) -> dict[str, TensorFormat]:
    """What is not stored as the scheme says: in integers every matrix of a layer has 8 bits, with a scale for each row of K weights."""
    if layout.options.activations == "float16":
        return {}
    shapes = {name: shape for name, shape in model.decoder.weight_shapes().items() if len(shape) == 2 and name.startswith("layers.")}
    return {name: TensorFormat(8, shape[1]) for name, shape in shapes.items()}


def bits_per_weight(layout: Layout, model: Model) -> float:
    if not isinstance(layout, Pipeline):
        return embedding_bits(layout.parts[0].part)
    stored = exceptions(layout, model)
    if not stored:
        return layout.bits_per_weight
    sizes = {name: shape[0] * shape[1] for name, shape in model.decoder.weight_shapes().items() if name in stored}
    rows = sum(sizes[name] // (form.group or 1) for name, form in stored.items())
    cpu = sum(m.shape[0] * m.shape[1] for m in layout.cpu.matrices)
    return (layout.cpu.bits_per_weight * cpu + 8 * sum(sizes.values()) + 32 * rows) / (cpu + sum(sizes.values()))


def file_name(planned: PlannedPart, half: str) -> str:
    return f"part{planned.part.index}_{half}.onnx"


def steps(layout: Pipeline) -> list[Step]:
    """The pipeline in the order of a run."""
    found = [Step("embeddings", EMBEDDINGS, layout.embeddings, "both", npu=False)]
    for half in (PROMPT, TOKEN):
        for planned in layout.parts:
            found.append(Step(f"{half}_{planned.part.index}", file_name(planned, half), planned.graphs[half], half, npu=True))
    return [*found, Step("lm_head", LM_HEAD, layout.lm_head, "both", npu=False)]


def details(layout: Layout, model: Model, directory: Path) -> dict[str, Scalar]:
    """For the manifest: what the compiled files are for, and their limits."""
    compiled = read_compiled(directory / file_name(layout.parts[0], PROMPT))
    chip = layout.options.chip
    return {
        "runtime": layout.options.runtime,
        "soc": chip.name,
        "soc_model": chip.model,
        "htp_arch": f"v{chip.arch}",
        "precision": layout.options.activations,
        "qairt": compiled.sdk,
        "ep_compatibility": compiled.compatibility,
        "prompt_chunk": layout.options.chunk,
        "parts": len(layout.parts),
        "weight_sharing": layout.options.sharing,
        "reproducible": reproducible(layout),
        "rope_length": needs_length(model.decoder, layout.context),
    }


def reproducible(layout: Layout) -> bool:
    """Whether the same parts give the same bytes, here and wherever this is so."""
    return layout.options.reproducible and turns() is not None


def export_part(planned: PlannedPart, layout: Layout, model: Model, directory: Path, progress: Progress, quantizer: Quantizer) -> None:
    """Quantizes and compiles one part, or takes it from the cache, and moves the compiled files into ``directory``."""
    folder = directory / PARTS / str(planned.part.index)
    made = folder / "made"
    made.mkdir(parents=True)
    if layout.options.activations == "float16":
        weights.write(planned.part.data, model, folder, renamed(progress, planned.layers), quantizer)
    if not isinstance(layout, Pipeline):
        write_embedding(planned.part, model, folder, quantizer)
    for half, graph in planned.graphs.items():
        (folder / f"{half}.onnx").write_bytes(serialize(graph))
    options, total = layout.options, 2 * planned.part.data.size
    stage = f"compile {planned.layers}"
    group = group_name(facts(planned, layout, folder))
    if quantizer.cache is None or not cache_files.restore(quantizer.cache, group, made):
        compile_part(
            folder,
            {f"{half}.onnx": f"made/{file_name(planned, half)}" for half in planned.graphs},
            options.chip.model,
            sharing=options.sharing,
            reproducible=options.reproducible,
            memory=options.memory_mb * 1_000_000,
            what=f"{planned.layers} for {options.soc}",
            tell=lambda done: progress(stage, done * total // len(planned.graphs), total),
        )
        if quantizer.cache is not None:
            about = {"model": model.checkpoint.source.name, "file": planned.layers, "format": f"compiled for {options.soc}"}
            cache_files.keep(quantizer.cache, group, {path.name: path for path in sorted(made.iterdir())}, about)
    progress(stage, total, total)
    for path in made.iterdir():
        path.replace(directory / path.name)
    shutil.rmtree(folder)
    if planned is layout.parts[-1]:
        (directory / PARTS).rmdir()


def facts(planned: PlannedPart, layout: Layout, folder: Path) -> list[str | int | bool]:
    """All that the compiled files of a part depend on; the files are the weights, where they are not in the graphs, and the graphs."""
    digests = [file_digest(path).hex() for path in sorted(path for path in folder.iterdir() if path.is_file())]
    versions = [version(name) for name in ("onnxruntime", "onnxruntime-qnn")]
    made = [TURNS_VERSION] if reproducible(layout) else []
    return ["compiled", planned.part.index, *digests, layout.options.chip.model, layout.options.sharing, FINALIZATION, *versions, *made]


def renamed(progress: Progress, what: str) -> Progress:
    """Each file is a stage of its own."""
    return lambda stage, done, total, /: progress(f"{stage} {what}", done, total)
