"""Which model is meant by a name, and downloading: against a small hub on localhost, in a subprocess where HF_ENDPOINT takes effect."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from edgekit import catalog, hub
from edgekit.catalog import CatalogEntry, catalogue, resolve
from edgekit.errors import EdgekitError, EngineMissing, ModelNotFound, UsageError
from edgekit.models import ARCHITECTURES, open_model
from edgekit.progress import silent
from hub_client import World
from hub_server import COMMIT, Repo, serve


def test_the_catalogue_is_sound() -> None:
    entries = catalogue()
    names = [e.name for e in entries]
    assert names[0] == "tiny-phi" and len(set(names)) == len(names)
    for wanted in ("phi3-mini-4k", "phi3.5-mini", "phi4-mini", "mistral-7b-v0.3", "mistral-nemo", "llama3.2-1b", "qwen2.5-0.5b"):
        assert wanted in names
    for e in entries:
        assert e.name == e.name.lower() and e.architecture in ARCHITECTURES and e.license
        assert 10**6 < e.parameters < 2 * 10**10 and 1000 < e.context <= 2**20
        assert e.hub is None or catalog.HUB_ID.fullmatch(e.hub)
        assert e.revision is None or hub.COMMIT.fullmatch(e.revision)


# hidden, intermediate, layers, heads, kv heads, head_dim, vocabulary, tied: from the config.json of each model
DIMENSIONS = {
    "phi3.5-mini": ("phi3", 3072, 8192, 32, 32, 32, 96, 32064, False),
    "phi3-medium-4k": ("phi3", 5120, 17920, 40, 40, 10, 128, 32064, False),
    "phi4-mini": ("phi3", 3072, 8192, 32, 24, 8, 128, 200064, True),
    "mistral-7b-v0.1": ("mistral", 4096, 14336, 32, 32, 8, 128, 32000, False),
    "mistral-7b-v0.3": ("mistral", 4096, 14336, 32, 32, 8, 128, 32768, False),
    "mistral-nemo": ("mistral", 5120, 14336, 40, 32, 8, 128, 131072, False),
    "ministral-8b": ("mistral", 4096, 12288, 36, 32, 8, 128, 131072, False),
    "llama3.1-8b": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, False),
    "llama3.2-1b": ("llama", 2048, 8192, 16, 32, 8, 64, 128256, True),
    "llama3.2-3b": ("llama", 3072, 8192, 28, 24, 8, 128, 128256, True),
    "qwen2.5-0.5b": ("qwen2", 896, 4864, 24, 14, 2, 64, 151936, True),
    "qwen2.5-1.5b": ("qwen2", 1536, 8960, 28, 12, 2, 128, 151936, True),
    "qwen2.5-3b": ("qwen2", 2048, 11008, 36, 16, 2, 128, 151936, True),
    "qwen2.5-7b": ("qwen2", 3584, 18944, 28, 28, 4, 128, 152064, False),
    "tinyllama": ("llama", 2048, 5632, 22, 32, 4, 64, 32000, False),
    "smollm2-135m": ("llama", 576, 1536, 30, 9, 3, 64, 49152, True),
    "smollm2-360m": ("llama", 960, 2560, 32, 15, 5, 64, 49152, True),
    "smollm2-1.7b": ("llama", 2048, 8192, 24, 32, 32, 64, 49152, True),
}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_parameters_are_what_the_dimensions_give(name: str) -> None:
    kind, d, f, layers, heads, kv, head_dim, vocab, tied = DIMENSIONS[name]
    config = {"model_type": kind, "hidden_size": d, "intermediate_size": f, "num_hidden_layers": layers, "num_attention_heads": heads}
    config |= {"num_key_value_heads": kv, "head_dim": head_dim, "vocab_size": vocab, "tie_word_embeddings": tied, "sliding_window": None}
    decoder = ARCHITECTURES[kind].decoder_config(config | {"max_position_embeddings": 4096})
    count = 0
    for shape in decoder.weight_shapes().values():
        count += shape[0] * (shape[1] if len(shape) > 1 else 1)
    entry = next(e for e in catalogue() if e.name == name)
    assert (entry.parameters, entry.architecture) == (count, kind)


def test_gigabytes() -> None:
    assert CatalogEntry("x", None, None, "phi3", "MIT", 3_500_000_000, 4096).gigabytes == 7.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[x]\narchitecture = "phi3"\nlicence = "MIT"\nparameters = 1\ncontext = 1\n', "x: unknown key 'licence'"),
        ('[x]\narchitecture = "phi3"\nlicense = "MIT"\nparameters = "1"\ncontext = 1\n', "x.parameters: wanted an integer"),
        ("[x", "install edgekit again"),
    ],
)
def test_a_damaged_catalogue(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catalog.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(catalog, "HERE", tmp_path)
    catalog._entries.cache_clear()
    try:
        with pytest.raises(EdgekitError, match=message):
            catalogue()
    finally:
        catalog._entries.cache_clear()


# What a name means


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_checkpoint(tmp_path / "my model@home", "phi3")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    checkpoint = resolve(str(directory), progress=silent)
    assert (checkpoint.source.name, checkpoint.source.kind, checkpoint.source.revision) == ("my model@home", "local", None)
    assert checkpoint.source.license == "mit"
    monkeypatch.chdir(directory)
    assert resolve(".", progress=silent).source.name == "my model@home"
    monkeypatch.chdir(tmp_path)
    assert resolve("my model@home", progress=silent).source.kind == "local"


def test_a_catalogue_name_wins_over_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "tiny-phi", "llama")
    make_checkpoint(tmp_path / "model", "phi3").rename(tmp_path / "tiny_phi")
    monkeypatch.setattr(catalog, "HERE", tmp_path)
    monkeypatch.chdir(tmp_path)
    named = resolve("tiny-phi", progress=silent)
    assert (named.source.kind, named.config["model_type"]) == ("embedded", "phi3")
    assert named.source.license == "Apache-2.0"
    assert resolve("./tiny-phi", progress=silent).config["model_type"] == "llama"


def test_the_embedded_model_is_as_the_catalogue_says() -> None:
    entry = catalogue()[0]
    model = open_model(resolve("tiny-phi", progress=silent))
    assert (model.parameters, model.decoder.context) == (entry.parameters, entry.context)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("phi3.5-mni", ModelNotFound, "unknown model 'phi3.5-mni': did you mean phi3.5-mini"),
        ("Qwen2.5-05b", ModelNotFound, "did you mean qwen2.5-0.5b"),
        ("xyzzy", ModelNotFound, "`edge models` lists"),
        ("./nothing", ModelNotFound, "no such directory: ./nothing"),
        ("/no/such/place", ModelNotFound, "no such directory"),
        ("C:\\models\\phi", ModelNotFound, "no such directory"),
        ("a/b/c", ModelNotFound, "no such directory"),
        ("org/..", ModelNotFound, "unknown model"),
        ("tiny-phi@main", UsageError, "comes with the package: it has no revision 'main'"),
        ("phi4-mini@", UsageError, "ends with @"),
        ("org/name@../x", UsageError, "is no revision"),
        ("org/name@-x y", UsageError, "is no revision"),
        ("", ModelNotFound, "unknown model ''"),
        ("~nobody-of-this-name/m", ModelNotFound, "no such directory"),
        ("x" * 5000, ModelNotFound, "unknown model"),
    ],
)
def test_names_that_mean_nothing(model: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message.replace(".", r"\.").replace("?", r"\?")):
        resolve(model, progress=silent)


def test_a_revision_where_there_is_none(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "m", "phi3")
    with pytest.raises(UsageError, match="is a directory: it has no revision"):
        resolve(str(directory), revision="main", progress=silent)
    with pytest.raises(UsageError, match="two revisions"):
        resolve("org/name@a", revision="b", progress=silent)
    with pytest.raises(ModelNotFound, match="is a file; give its directory"):
        resolve(str(directory / "config.json"), progress=silent)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EngineMissing, match=r'pip install "edgekit\[build\]"'):
        resolve("org/name", progress=silent)


# The hub


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    pytest.importorskip("huggingface_hub", minversion="1.0")
    root = tmp_path_factory.mktemp("hub")
    directory = make_checkpoint(root / "repo", "phi3-longrope", shards=2)
    unwanted = ("pytorch_model.bin", "modeling_own.py", "consolidated.safetensors", "onnx/config.json", "training.ipynb")
    for name in (*unwanted, "additional_chat_templates/notes.json", "additional_chat_templates/tool_use.jinja", "LICENSE"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(name, encoding="utf-8")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    pickles = root / "pickles"
    pickles.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (pickles / name).write_text("{}", encoding="utf-8")
    repo = Repo(directory, branches=("main", "v1.0"))
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}', encoding="utf-8")
    for name in ("README.md", "adapter_model.safetensors"):
        (adapter / name).write_text("x", encoding="utf-8")
    gguf = root / "gguf"
    gguf.mkdir()
    for name in ("README.md", "model-Q4_K_M.gguf"):
        (gguf / name).write_text("x", encoding="utf-8")
    repos = {"org/name": repo, "org/gated": Repo(directory, gated=True), "org/pickles": Repo(pickles)}
    repos |= {"org/adapter": Repo(adapter), "org/gguf": Repo(gguf)}
    with serve(repos) as server:
        yield World(server, repo, root / "cache")


def test_download_then_again_then_offline(world: World) -> None:
    world.hub.log.clear()
    first = world.resolve("org/name")
    assert first["source"] == {"name": "org/name", "kind": "hub", "revision": COMMIT, "license": "mit"}
    assert first["telemetry"] == "1"
    assert first["files"] == [
        "LICENSE",
        "README.md",
        "additional_chat_templates/tool_use.jinja",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    downloaded = [line for line in world.hub.log if line.startswith("GET /org")]
    assert len(downloaded) == len(first["files"])
    calls = first["calls"]
    size = sum((world.repo.directory / name).stat().st_size for name in first["files"])
    assert {(stage, total) for stage, _, total in calls} == {("download", size)}
    done = [d for _, d, _ in calls]
    assert done == sorted(done) and done[-1] == size

    world.hub.log.clear()
    again = world.resolve("org/name")
    assert again["directory"] == first["directory"] and again["calls"] == []
    assert not [line for line in world.hub.log if line.startswith("GET /org")]

    world.hub.log.clear()
    for options, env in (({"offline": True}, {}), ({}, {"HF_HUB_OFFLINE": "1"})):
        cached = world.resolve("org/name", env=env, **options)
        assert cached["directory"] == first["directory"] and cached["source"] == first["source"]
    pinned = world.resolve(f"org/name@{COMMIT}", offline=True)
    assert pinned["source"] == first["source"]
    assert world.hub.log == []


def test_revisions(world: World) -> None:
    for model, options in ((f"org/name@{COMMIT}", {}), ("org/name@v1.0", {}), ("org/name", {"revision": "v1.0"})):
        assert world.resolve(model, **options)["source"]["revision"] == COMMIT
    for revision in ("f" * 40, "v2.0"):
        failed = world.resolve(f"org/name@{revision}")
        assert failed["error"] == "ModelNotFound" and f"no revision '{revision}'" in failed["message"]


def test_a_catalogue_name_asks_for_its_pinned_commit(world: World) -> None:
    world.hub.log.clear()
    failed = world.resolve("phi3.5-mini")
    assert failed["error"] == "ModelNotFound" and "microsoft/Phi-3.5-mini-instruct" in failed["message"]
    pinned = next(e.revision for e in catalogue() if e.name == "phi3.5-mini")
    assert world.hub.log and all("/microsoft/Phi-3.5-mini-instruct/" in line and pinned in line for line in world.hub.log)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("org/none", {}, "ModelNotFound", "the hub has no model 'org/none'"),
        ("org/gated", {}, "DownloadError", "hf auth login"),
        ("org/pickles", {}, "CheckpointError", "has no safetensors"),
        ("org/adapter", {}, "CheckpointError", "a PEFT adapter ('LORA') of 'org/base', not a whole model: merge"),
        ("org/adapter", {}, "CheckpointError", "M.from_pretrained('org/adapter', dtype='auto').merge_and_unload()"),
        ("org/gguf", {}, "CheckpointError", "GGUF files are already quantized"),
        ("microsoft/Phi-3.5-mini-instuct", {}, "ModelNotFound", ". Did you mean microsoft/Phi-3.5-mini-instruct"),
        ("org/never-seen", {"offline": True}, "DownloadError", "not wholly in the cache"),
        ("org/na--me", {}, "UsageError", "is no hub id"),
    ],
)
def test_refusals(model: str, options: dict[str, object], error: str, message: str, world: World) -> None:
    failed = world.resolve(model, **options)
    assert failed["error"] == error and message in failed["message"]


def test_the_hub_is_away(world: World) -> None:
    failed = world.resolve("org/other", url="http://127.0.0.1:9")
    assert failed["error"] == "DownloadError" and "could not be downloaded" in failed["message"]


@pytest.mark.parametrize("model", ["phi3.5-mini", f"org/other@{COMMIT}", "org/other"])
def test_a_hub_that_is_away_is_asked_once(model: str, world: World) -> None:
    """huggingface_hub asks five more times for the files of a commit, in half a minute, and says so each time."""
    failed = world.resolve(model, url="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in failed["message"] and "HTTPS_PROXY" in failed["message"]
    assert "Retry" not in failed["noise"]
