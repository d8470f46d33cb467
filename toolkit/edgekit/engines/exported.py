"""What an engine's export tells the build: before the long job what it will take, afterwards what it wrote."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgekit.artifact import Scalar, TensorFormat


@dataclass(frozen=True)
class Running:
    """What an engine takes when it runs, in bytes; plan.py adds them up. Each engine's ``footprint.py`` has the constants and their origin.

    unit: of a device. measured: the constants were measured on this engine and unit; else they are carried over from a measured one.
    read: of the weights, for every token. operations: of their products, for every token (a multiply-add is two).
    process: the process with its engine and tokenizer, without the model. loaded: what the weights take, once loaded.
    mapped: of a file that is mapped, whose pages come as tokens are looked up. loading: the most that loading takes.
    piece: most tokens of a prompt computed at a time. activation: for each token of a piece.
    bandwidth, compute: least and greatest share of the unit's own that decoding reaches in its products with weights;
    attention, prefill: least and greatest share of its compute, of one token with keys and values, and of a prompt.
    latency: least and greatest seconds for each layer and token that no bandwidth and no compute explains: calls, small operators.
    """

    unit: Literal["cpu", "gpu", "npu"]
    measured: bool
    read: int
    operations: int
    process: int
    loaded: int
    mapped: int
    loading: int
    piece: int
    activation: int
    bandwidth: tuple[float, float]
    compute: tuple[float, float]
    attention: tuple[float, float]
    prefill: tuple[float, float]
    latency: tuple[float, float]


@dataclass(frozen=True)
class Lossy:
    """What of an engine's files costs quality beyond the quantized weights, so that a build runs the artifact to measure it.

    what: for messages. requires: as ``Exported.engine_requires``. advice: what to do where it costs too much.
    """

    what: str
    requires: Mapping[str, str]
    advice: str


@dataclass(frozen=True)
class Footprint:
    """Bytes. weights: of the engine's file of weights. cache: of the KV cache for each token of context. graph: of the engine's other
    files. tokenizer: of a tokenizer of the engine's own, as a share of tokenizer.json. running: None where nothing is known.
    lossy: None where the quantized weights are all that costs quality."""

    weights: int
    cache: int
    graph: int = 0
    tokenizer: float = 0.0
    running: Running | None = None
    lossy: Lossy | None = None


@dataclass(frozen=True)
class Held:
    """What an artifact that was built takes in the engine's own loader, in bytes. fixed: before the first token. cache: keys and values of
    each token. activation: of each token that is computed at once. at_once: most of those, None where it
    computes any prompt whole."""

    fixed: int
    cache: int
    activation: int
    at_once: int | None = None


@dataclass(frozen=True)
class Exported:
    """The files themselves are found by listing the directory.

    engine_requires:  package -> lowest version that runs the artifact, e.g. {"onnxruntime": "1.23"}.
    bits_per_weight:  storage of all matrices (scales and zero points included) in bits, over their number of weights.
    tensors:          canonical weight name -> its format, for every matrix that is not stored as the scheme says.
    details:          what only this engine has, e.g. {"kv_dtype": "float32"}; goes into the manifest as it is.
    """

    engine_requires: Mapping[str, str]
    bits_per_weight: float
    tensors: Mapping[str, TensorFormat] = field(default_factory=dict)
    details: Mapping[str, Scalar] = field(default_factory=dict)
