"""Shapes of the catalogue's models, which a plan is made of without a hub."""

import sys
from pathlib import Path

import pytest

from checkpoints import hf_shapes
from command import Edge
from edgekit import catalog
from edgekit.catalog import CatalogEntry, catalogue, outline
from edgekit.errors import EngineMissing
from edgekit.models import open_model
from edgekit.plan import find, plan
from edgekit.shapes import shapes
from edgekit.target import load_target

HUB = [entry for entry in catalogue() if entry.hub is not None]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the hub fails."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


def test_every_model_of_the_catalogue_has_its_shapes() -> None:
    assert list(shapes()) == [entry.name for entry in HUB]


@pytest.mark.parametrize("entry", HUB, ids=lambda entry: entry.name)
def test_they_give_the_parameters_of_the_catalogue(entry: CatalogEntry) -> None:
    found = outline(entry.name)
    model = open_model(found.checkpoint)
    assert (model.parameters, model.decoder.context, model.decoder.model_type) == (entry.parameters, entry.context, entry.architecture)
    config = {**found.checkpoint.config, "tie_word_embeddings": model.decoder.tied}
    assert {name: info.shape for name, info in found.checkpoint.tensors.items()} == hf_shapes(config)
    source = found.checkpoint.source
    assert (source.name, source.kind, source.revision, source.license) == (entry.hub, "hub", entry.revision, entry.license)
    assert found.download > 2 * entry.parameters


def test_a_plan_asks_no_hub() -> None:
    for name in ("phi3.5-mini", "microsoft/Phi-3.5-mini-instruct", "MICROSOFT/phi-3.5-mini-instruct"):
        said = plan(find(name), load_target("cpu"), None)
        assert (said.parameters, said.model) == (3821079552, "microsoft/Phi-3.5-mini-instruct")
        assert abs(said.artifact / 1e9 - 2.20) < 0.01
    assert find("phi3.5-mini").model.decoder.rope.switch == 4096


def test_another_revision_or_model_asks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = next(e.revision for e in HUB if e.name == "phi3.5-mini")
    assert find(f"phi3.5-mini@{pinned}").model.parameters == 3821079552
    for name in ("phi3.5-mini@main", "org/fine-tune"):
        with pytest.raises(EngineMissing):
            find(name)


@pytest.mark.parametrize("entry", HUB, ids=lambda entry: entry.name)
def test_every_target_says_something_of_every_model(entry: CatalogEntry) -> None:
    found = find(entry.name)
    assert plan(found, load_target("cpu"), None, context=512).at_context is not None


def test_the_command(edge: Edge) -> None:
    ended = edge("plan", "qwen2.5-0.5b", "--target", "cpu", "--device", "generic-8gb")
    assert ended.code == 0 and "494.0 M parameters" in ended.out


def test_a_name_in_the_catalogue_wins_over_a_directory_and_a_directory_over_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "microsoft" / "Phi-3.5-mini-instruct").mkdir(parents=True)
    assert catalog._listed("microsoft/Phi-3.5-mini-instruct", None) is None
    assert catalog._listed("phi3.5-mini", None) is not None
