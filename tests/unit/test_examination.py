"""``edge verify --against``: fidelity beside integrity and parity, in one command."""

import json
from pathlib import Path

import pytest
from test_imports import modules_after

import edgekit
from checkpoints import make_checkpoint
from command import Edge

TEXT = "Turn on the light in room 12. It is 42 degrees; naïve café. " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examination")
    pytest.importorskip("onnxruntime")
    model = make_checkpoint(folder / "model", "llama")
    edgekit.build(model, target="cpu", output=folder / "a", cached=False)
    (folder / "text").write_text(TEXT, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def asked(folder: Path, *more: str) -> list[str]:
    return ["verify", str(folder / "a"), "--against", str(folder / "model"), "--text", str(folder / "text"), *more]


def test_figures_and_page(edge: Edge, folder: Path, tmp_path: Path) -> None:
    ended = edge(*asked(folder, "--html", str(tmp_path / "page.html"), "--quiet"))
    assert (ended.code, ended.out) == (0, ""), ended.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "KL divergence by position" in page and "Error of each matrix" in page
    ended = edge(*asked(folder))
    assert "fidelity to its model\n" in ended.out and "mean KL divergence, nats" in ended.out
    said = json.loads(edge(*asked(folder, "--json")).out)
    (found,) = said["fidelity"]
    assert found["fidelity"]["same_source"] and 0 < found["fidelity"]["parts"][0]["figures"]["mean_kl"]["value"] < 1
    assert said["problems"] == [] and said["parity"] is None


def test_limits(edge: Edge, folder: Path) -> None:
    assert edge(*asked(folder, "--max-kl", "5", "--min-top1", "0")).code == 0
    ended = edge(*asked(folder, "--max-kl", "0.0001"))
    assert ended.code == 12
    assert (
        "mean KL divergence" in ended.err and "is above 0.0001 (--max-kl); build with --scheme int4-g128 --calibrate default" in ended.err
    )
    ended = edge(*asked(folder, "--min-top1", "1", "--json"))
    assert (ended.code, json.loads(ended.out)["problems"][0]["kind"]) == (12, "FidelityError")


@pytest.mark.parametrize("more", ["--full", "--text x", "--html x", "--max-kl 1", "--min-top1 1", "--against m --no-run", "--prompt x"])
def test_wishes_that_do_not_fit(edge: Edge, folder: Path, more: str) -> None:
    assert edge("verify", str(folder / "a"), *more.split()).code == 2


def test_a_text_that_cannot_be_read(edge: Edge, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    for name, words in (("none", "cannot be read"), ("latin", "is not UTF-8 (byte 2)")):
        ended = edge("verify", str(folder / "a"), "--against", str(folder / "model"), "--text", str(tmp_path / name))
        assert ended.code == 2 and words in ended.err


def test_a_device_needs_nothing_of_the_build_extra(folder: Path) -> None:
    code = (
        "sys.modules['huggingface_hub'] = None\nfrom pathlib import Path\nfrom edgekit.examination import Wishes, examine\n"
        "from edgekit.progress import silent\nassert not examine([Path(sys.argv[1])], Wishes(), silent).problems"
    )
    assert not {"torch", "transformers", "onnx"} & modules_after(code, str(folder / "a"))
