"""What every engine's session promises, on the devices that are here (CUDA, DirectML, WebGPU; Intel's GPUs)."""

import pytest

from contract.test_session import *  # noqa: F403

pytestmark = pytest.mark.device
