"""What every engine's session promises, on the devices of the ONNX engine that are here (CUDA, DirectML, WebGPU)."""

import pytest

from contract.test_session import *  # noqa: F403

pytestmark = pytest.mark.device
