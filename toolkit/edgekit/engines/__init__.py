"""The engines edgekit can build for and run on. An engine's name appears here and in its folder, nowhere else."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Engine:
    """Where an engine's two halves live (imported only when used) and which extra installs what they need.

    The ``export`` module offers  ``export(model, scheme, target, directory, progress) -> Exported``  (build.py's ``Export`` Protocol),
    the ``session`` module  ``open_session(directory, manifest) -> Session``, and beside it
    a ``profile`` module    what ``observing.Observer`` lists,
    the ``read`` module, of an engine whose files hold weights, ``open_stored(directory, manifest, model) -> Stored`` (stored.py's
    Protocol).
    chip: the options of a target that only say for which chip it is: whether the engine works here is asked for one of them.
    packages: kinds of ``edge package`` whose loader, which is not edgekit's own, opens its files; the ``footprint`` module of such an
    engine has ``held(directory, manifest, decoder) -> Held``, what that loader takes.
    windows: providers that exist for Windows alone, for which edgekit makes no package for Python.
    """

    export: str
    session: str
    extra: str
    read: str | None = None
    chip: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()

    @property
    def profile(self) -> str:
        return self.session.removesuffix("session") + "profile"

    @property
    def footprint(self) -> str:
        return self.session.removesuffix("session") + "footprint"


ENGINES: dict[str, Engine] = {
    "onnx": Engine(
        "edgekit.engines.onnx.export",
        "edgekit.engines.onnx.session",
        extra="onnx",
        read="edgekit.engines.onnx.read",
        packages=("web", "android", "windows"),
        windows=("dml",),
    ),
    "openvino": Engine(
        "edgekit.engines.openvino.export", "edgekit.engines.openvino.session", extra="openvino", read="edgekit.engines.openvino.read"
    ),
    "qnn": Engine("edgekit.engines.qnn.export", "edgekit.engines.qnn.session", extra="qnn", chip=("soc", "activations")),
    "mlx": Engine(
        "edgekit.engines.mlx.export", "edgekit.engines.mlx.session", extra="mlx", read="edgekit.engines.mlx.read", packages=("ios",)
    ),
    "null": Engine("edgekit.engines.null.export", "edgekit.engines.null.session", extra="test"),
}
