"""The catalogue's models as shapes alone, which come with the package: what ``edge plan`` needs, without a hub and without a download."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

from edgekit.checkpoint import TensorInfo
from edgekit.errors import EdgekitError
from edgekit.models import ARCHITECTURES, tensor_shapes
from edgekit.records import RecordError, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).parent / "shapes.toml"
TOKEN_BYTES = 60
"""Of tokenizer.json for each token of the vocabulary, about: 40 to 80 in these models, so within 3 MB or 0.3 % of what a build writes."""
BF16 = 2


@dataclass(frozen=True)
class Shapes:
    """One table of shapes.toml: keys of config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    partial_rotary_factor: float = 1.0
    sliding_window: int | None = None
    original_max_position_embeddings: int | None = None

    def config(self, architecture: str, context: int) -> dict[str, object]:
        """A config.json of these shapes. The factors of a LongRoPE are ones: only how many there are decides a size."""
        pairs = int((self.head_dim or self.hidden_size // self.num_attention_heads) * self.partial_rotary_factor) // 2
        ones = {"rope_type": "longrope", "short_factor": [1.0] * pairs, "long_factor": [1.0] * pairs}
        scaling = None if self.original_max_position_embeddings is None else ones
        return {"model_type": architecture, "max_position_embeddings": context, "rope_scaling": scaling, **vars(self)}


@lru_cache(maxsize=1)
def shapes() -> Mapping[str, Shapes]:
    """By name in the catalogue. Raises EdgekitError for a damaged file."""
    try:
        tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
        return {name: parse(Shapes, table, unknown="refuse", path=name) for name, table in tables.items()}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecordError) as error:
        raise EdgekitError(f"{FILE}: {error}; install edgekit again") from None


def weightless(config: Mapping[str, object], hub: str) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint of this config.json, in bf16, as a header would name them."""
    found: dict[str, TensorInfo] = {}
    at = 0
    for name, shape in tensor_shapes(ARCHITECTURES[str(config["model_type"])], config).items():
        found[name] = TensorInfo(name, "BF16", shape, Path(hub, "model.safetensors"), at, at + BF16 * prod(shape))
        at = found[name].end
    return found
