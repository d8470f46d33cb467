"""What an engine's export tells the build: before the long job what it will take, afterwards what it wrote."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit.artifact import Scalar, TensorFormat


@dataclass(frozen=True)
class Footprint:
    """Bytes. weights: of the engine's files. cache: of the KV cache for each token of context."""

    weights: int
    cache: int


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
