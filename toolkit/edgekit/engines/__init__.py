"""The engines edgekit can build for and run on. An engine's name appears here and in its folder, nowhere else."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Engine:
    """Where an engine's two halves live (imported only when used) and which extra installs what they need.

    The ``export`` module offers  ``export(model, scheme, target, directory, progress) -> Exported``  (build.py's ``Export`` Protocol),
    the ``session`` module  ``open_session(directory, manifest) -> Session``.
    """

    export: str
    session: str
    extra: str


ENGINES: dict[str, Engine] = {
    "onnx": Engine("edgekit.engines.onnx.export", "edgekit.engines.onnx.session", extra="onnx"),
    "openvino": Engine("edgekit.engines.openvino.export", "edgekit.engines.openvino.session", extra="openvino"),
    "qnn": Engine("edgekit.engines.qnn.export", "edgekit.engines.qnn.session", extra="qnn"),
    "mlx": Engine("edgekit.engines.mlx.export", "edgekit.engines.mlx.session", extra="mlx"),
    "null": Engine("edgekit.engines.null.export", "edgekit.engines.null.session", extra="test"),
}
