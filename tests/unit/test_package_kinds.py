"""Every kind of package with every target: it works, or the refusal names a target for which it does."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edgekit
from edgekit.artifact import Artifact, load_artifact
from edgekit.device import load_device
from edgekit.engines import ENGINES
from edgekit.errors import UsageError
from edgekit.packagers import Settings, android, web, windows
from edgekit.packagers.kinds import ANY_ENGINE, KINDS, check_kind, kinds_for, of_artifact, of_target, support, takes, targets_for
from edgekit.packagers.npm import packages
from edgekit.packagers.python import one_place
from edgekit.target import Target, load_target, target_names
from edgekit.wheels import requirements

BUILT = {"onnx": ("cpu", "cuda", "directml", "webgpu"), "openvino": ("intel-cpu",), "mlx": ("apple-m",)}
"""One target for each engine and provider. Qualcomm's takes the manifest of another engine, as its compiler is not everywhere."""
MISSING = "built upon an image"
"""A container gets this far without --base."""


@pytest.fixture(scope="module")
def artifact_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], Artifact]:
    """What a build of tiny-phi for this target gives, as far as packages look at it."""
    folder, made = tmp_path_factory.mktemp("built"), dict[str, Artifact]()
    for name in (name for names in BUILT.values() for name in names):
        edgekit.build("tiny-phi", target=name, output=folder / name, verify=False)
        made[name] = load_artifact(folder / name)

    def of(target: Target) -> Artifact:
        like = next((a for a in made.values() if of_artifact(a) == of_target(target)), made["cpu"])
        engine = like.manifest.engine
        if engine.name != target.engine:
            assert target.engine not in BUILT
            engine = replace(engine, name=target.engine, requires={"onnxruntime-qnn": "2.7"}, details={})
        return replace(like, manifest=replace(like.manifest, target=target.name, engine=engine))

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_every_target_works_or_is_told_what_does(kind: str, artifact_for: Callable[[Target], Artifact]) -> None:
    working = {target for target in target_names() if takes(kind, of_target(load_target(target)))}
    assert working
    for name in target_names():
        artifact = artifact_for(load_target(name))
        if name in working:
            check(artifact, kind)
            assert support(kind, name) == ()
            continue
        with pytest.raises(UsageError) as refused:
            check(artifact, kind)
        named = {other for other in target_names() if other in words(str(refused.value))}
        assert named and named <= working, refused.value
        assert set(support(kind, name)) == named
        others = {other for other in KINDS if f" {other}" in str(refused.value).partition("package this artifact for")[2]}
        assert others == set(kinds_for(of_artifact(artifact)))


def words(text: str) -> set[str]:
    return set(text.partition("build the model for")[2].partition("(--target)")[0].replace(",", " ").split())


def check(artifact: Artifact, kind: str) -> None:
    """As ``package`` does before the long job."""
    check_kind(artifact, kind)
    try:
        importlib.import_module(KINDS[kind]).check(artifact, Settings(platforms=("linux_x86_64",) if kind in ANY_ENGINE else ()))
    except UsageError as error:
        assert kind == "container" and MISSING in str(error), error


def test_names_of_providers_are_those_of_the_engine(artifact_for: Callable[[Target], Artifact]) -> None:
    """As builds write them into manifests; ``directml`` is a target's name, its provider is ``dml``."""
    written = {str(artifact_for(load_target(name)).manifest.engine.details["provider"]) for name in BUILT["onnx"]}
    for kind in ENGINES["onnx"].packages:
        assert set(importlib.import_module(KINDS[kind]).PROVIDERS) <= written
    assert set(ENGINES["onnx"].windows) <= written
    assert set(windows.LIBRARIES) == set(windows.PROVIDERS) == set(windows.COMPUTERS.usual)
    assert {package.provider for package in packages()} - {None} == set(web.PROVIDERS) == set(web.BROWSERS)


def test_what_is_for_windows_alone_has_no_packages_for_python(artifact_for: Callable[[Target], Artifact]) -> None:
    """Or a package would come without its engine."""
    where = one_place(Settings(platforms=("linux_x86_64",)))
    for name in BUILT["onnx"]:
        manifest = artifact_for(load_target(name)).manifest
        brought = {need.name for need in requirements(manifest, where.markers)}
        wanted = list(manifest.engine.requires)[-1]
        assert (wanted in brought) == (manifest.engine.details["provider"] not in ENGINES["onnx"].windows), name


def test_usual_devices_exist_and_run_what_they_are_for() -> None:
    for kind, places in {"android": [android.PHONES], "windows": [windows.COMPUTERS], "web": list(web.BROWSERS.values())}.items():
        for place in places:
            for provider, name in place.usual.items():
                device = load_device(name)
                assert device.kind in place.kinds
                assert any(of_target(load_target(target)).provider == provider for target in device.targets), (kind, name)
    phones = [load_device(path.stem) for path in (Path(__file__).parents[2] / "profiles").glob("*.toml")]
    phones = [d for d in phones if d.kind in android.PHONES.kinds and "cpu" in d.targets]
    assert min(d.app_memory.value for d in phones) == load_device(android.PHONES.usual["cpu"]).app_memory.value


def test_a_large_artifact_of_a_page_is_told_what_would_do(artifact_for: Callable[[Target], Artifact]) -> None:
    """Phi-3.5-mini's: 2.2 GB, too much for WebAssembly and not for a GPU."""
    cpu = grown(artifact_for(load_target("cpu")), 2_260_000_000)
    with pytest.raises(UsageError, match=r"build the model for webgpu \(--target\).*package this artifact for python, linux-service"):
        web.check(cpu, Settings())
    web.check_size(grown(artifact_for(load_target("webgpu")), 2_260_000_000))
    with pytest.raises(UsageError, match=r"4,294,967,296 that a page can load of an artifact for webgpu; package this artifact for python"):
        web.check_size(grown(artifact_for(load_target("webgpu")), 5_000_000_000))


def grown(artifact: Artifact, size: int) -> Artifact:
    files = dict(artifact.manifest.files)
    files["model.onnx.data"] = replace(files["model.onnx.data"], bytes=size)
    return replace(artifact, manifest=replace(artifact.manifest, files=files))


def test_targets_for_a_kind_are_those_it_takes() -> None:
    assert targets_for("windows") == ["cpu", "cuda", "directml", "raspberry-pi-5"]
    assert targets_for("ios") == ["apple-iphone", "apple-m"]
