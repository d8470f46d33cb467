"""Running an MLX artifact: on the GPU of a Mac, or on a CPU, where it is slow and for tests."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgekit.artifact import Manifest
from edgekit.engines.mlx.packages import check_installed, missing
from edgekit.errors import EdgekitError, EngineError
from edgekit.runtime.session import check_call, check_rewind, check_vocabulary

if TYPE_CHECKING:
    from edgekit.engines.mlx.model import Decoder


def open_session(directory: Path, manifest: Manifest, *, threads: int | None = None) -> "MlxSession":
    """Loads the safetensors of an artifact. ``threads`` changes nothing: MLX has no such setting.

    Raises EngineMissing (mlx or mlx-lm absent or older than the artifact needs) and EngineError (MLX refuses the files).
    """
    check_installed(manifest.engine.requires)
    try:
        from edgekit.engines.mlx.model import CHUNK, load, on_gpu, wire

        decoder = load(directory, widen=not on_gpu(), compiled=on_gpu())
    except EdgekitError:
        raise
    except ImportError as error:
        raise missing(str(error)) from None
    except Exception as error:  # MLX raises RuntimeError, ValueError and OSError; a config.json that was changed anything else
        raise EngineError(f"MLX cannot load {directory}: {error}; build the artifact again") from error
    return MlxSession(decoder, directory, manifest.context.length, wire(), CHUNK)


class MlxSession:
    """See ``edgekit.runtime.session.Session``. wired: what ``wire`` said, to be undone when the session is closed."""

    def __init__(self, decoder: "Decoder", directory: Path, context: int, wired: int | None, grain: int) -> None:
        self._decoder: Decoder | None = decoder
        self._directory = directory
        self._context = context
        self._position = 0
        self._caches = decoder.new_caches()
        self._wired = wired
        self._grain = grain

    @property
    def position(self) -> int:
        return self._position

    @property
    def context(self) -> int:
        return self._context

    @property
    def grain(self) -> int:
        return self._grain

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See ``Session.forward``. Long input is computed in chunks, all with the LongRoPE factors of the final length.

        Raises UsageError for an id outside the vocabulary, EngineError when MLX fails.
        """
        logits: NDArray[np.float32] = self.forward_last(tokens, 1)[0]
        return logits

    def forward_last(self, tokens: Sequence[int], last: int) -> NDArray[np.float32]:
        """See ``Session.forward_last``. Raises as ``forward`` does."""
        if self._decoder is None:
            raise EngineError("the session is closed; open the artifact again")
        check_call(tokens, last, self._position, self._context)
        final = self._position + len(tokens)
        ids = np.asarray(tokens, np.int64)
        check_vocabulary(ids, self._decoder.vocab_size)
        from edgekit.engines.mlx.model import compute

        with self._undone():
            rows = compute(self._decoder, self._caches, ids, last, final)
        self._position = final
        return rows

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Whatever is raised, Ctrl-C included: the caches hold what they held before."""
        try:
            yield
        except BaseException as error:
            self._trim(self._position)
            if isinstance(error, Exception):  # MLX raises RuntimeError and ValueError
                raise EngineError(f"MLX failed while running {self._directory}: {error}") from error
            raise

    def _trim(self, length: int) -> None:
        """What is forgotten stays in the buffers until it is overwritten; nothing reads it."""
        for cache in self._caches:
            cache.trim(cache.offset - length)

    def rewind(self, length: int) -> None:
        """See ``Session.rewind``."""
        check_rewind(length, self._position)
        self._trim(length)
        self._position = length

    def close(self) -> None:
        """See ``Session.close``."""
        from edgekit.engines.mlx.model import release

        if self._decoder is not None:
            self._decoder = None
            self._caches = []
            release(self._wired)
