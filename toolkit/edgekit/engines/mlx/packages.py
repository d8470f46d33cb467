"""What has to be installed to run an artifact of this engine."""

import importlib.metadata
from collections.abc import Mapping

from edgekit.errors import EngineMissing
from edgekit.resources import check_release

INSTALL = 'pip install "edgekit[mlx]" (macOS on Apple silicon; on Linux with a CPU: pip install "mlx[cpu]" mlx-lm)'


def missing(why: str) -> EngineMissing:
    return EngineMissing(f"this artifact runs on MLX ({why}); install it: {INSTALL}")


def check_installed(requires: Mapping[str, str]) -> None:
    """Raises EngineMissing unless each package is there and not older than its version."""
    for package, needed in requires.items():
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise missing(f"{package} is not installed") from None
        check_release(package, installed, needed)
