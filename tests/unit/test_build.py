"""The build: what goes into an artifact, that it is the same each time, and that a build that fails leaves nothing."""

import json
import shutil
from pathlib import Path

import pytest

import edgekit
from checkpoints import Variant, make_checkpoint, write_json
from edgekit.artifact import Manifest, check_digests, load_artifact
from edgekit.build import build, outputs
from edgekit.errors import ConfigError, ModelError, OutputError, TargetError, TemplateError, UsageError
from edgekit.runtime.tokenizer import open_tokenizer
from edgekit.template_files import read_sources


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_checkpoint(tmp_path_factory.mktemp("model") / "small", "phi3-longrope", shards=2)
    (directory / "LICENSE").write_text("Do as you like.\n", encoding="utf-8")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# small\n", encoding="utf-8")
    (directory / "optimizer.bin").write_bytes(b"not wanted")
    return directory


@pytest.fixture(scope="module")
def built(checkpoint: Path) -> tuple[Path, Manifest]:
    directory = checkpoint.parent / "artifact"
    return directory, build(checkpoint, target="cpu", output=directory)


def edited(checkpoint: Path, tmp_path: Path, file: str, **changes: object) -> Path:
    """A copy of the checkpoint in which keys of a JSON file are set, or deleted by ``...``."""
    copy = tmp_path / "edited"
    copy.mkdir()
    for path in checkpoint.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = json.loads((copy / file).read_text(encoding="utf-8")) | changes
    (copy / file).write_text(json.dumps({k: v for k, v in data.items() if v is not ...}), encoding="utf-8")
    return copy


def test_returned_manifest_is_the_written_one(built: tuple[Path, Manifest]) -> None:
    directory, manifest = built
    artifact = load_artifact(directory)
    check_digests(artifact)
    assert artifact.manifest == manifest


def test_manifest_says_where_the_model_came_from(built: tuple[Path, Manifest]) -> None:
    model = built[1].model
    assert (model.name, model.source, model.revision, model.license, model.architecture) == ("small", "local", None, "mit", "phi3")
    assert {"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"} <= set(model.files)
    assert "optimizer.bin" not in model.files


def test_artifact_holds_what_travels_with_the_weights(built: tuple[Path, Manifest], checkpoint: Path) -> None:
    directory, manifest = built
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "LICENSE", "README.md"):
        assert (directory / name).read_bytes() == (checkpoint / name).read_bytes()
        assert name in manifest.files
    assert manifest.chat_template == "chat_template.jinja"
    template = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert (directory / "chat_template.jinja").read_text(encoding="utf-8") == template
    assert {p.name for p in directory.iterdir()} == {*manifest.files, "edgekit.json"}


def test_context_is_capped_by_the_model_and_may_be_less(built: tuple[Path, Manifest], checkpoint: Path, tmp_path: Path) -> None:
    assert built[1].context.length == 96
    assert built[1].context.rope_switch == 24
    assert build(checkpoint, target="cpu", output=tmp_path / "a", context=32).context.length == 32
    with pytest.raises(UsageError, match="context 97 is not between 1 and the 96 tokens that small can hold"):
        build(checkpoint, target="cpu", output=tmp_path / "b", context=97)


def test_stop_set_is_the_union_of_all_that_ends_an_answer(built: tuple[Path, Manifest], checkpoint: Path, tmp_path: Path) -> None:
    """generation_config.json, config.json, the tokenizer's eos_token, and what the template writes after an answer."""
    manifest = built[1]
    listed = json.loads((checkpoint / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert list(manifest.tokens.stop) == listed
    # Without them in any file, <|end|> is found by rendering an answer.
    poor = edited(checkpoint, tmp_path, "generation_config.json", eos_token_id=listed[0])
    stop = build(poor, target="cpu", output=tmp_path / "a").tokens.stop
    assert set(stop) == set(listed)
    engine_reads = json.loads((tmp_path / "a" / "generation_config.json").read_text(encoding="utf-8"))
    assert engine_reads["eos_token_id"] == list(stop)


def test_a_model_that_nothing_ends_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    copy = edited(checkpoint, tmp_path, "generation_config.json", eos_token_id=...)
    for file, keys in (("config.json", ["eos_token_id"]), ("tokenizer_config.json", ["eos_token", "chat_template"])):
        data = json.loads((copy / file).read_text(encoding="utf-8"))
        (copy / file).write_text(json.dumps({k: v for k, v in data.items() if k not in keys}), encoding="utf-8")
    with pytest.raises(ConfigError, match="nothing says which token ends an answer"):
        build(copy, target="cpu", output=tmp_path / "a")


@pytest.mark.parametrize("value", ["7", 1.5, [True], [7, None], 4096, -1])
def test_wrong_stop_ids_are_refused(checkpoint: Path, tmp_path: Path, value: object) -> None:
    copy = edited(checkpoint, tmp_path, "generation_config.json", eos_token_id=value)
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        build(copy, target="cpu", output=tmp_path / "a")


def test_conformance_vectors(built: tuple[Path, Manifest]) -> None:
    conformance = built[1].conformance
    texts = [vector.text for vector in conformance.encode]
    assert any("世界" in text for text in texts)
    assert any("room 12" in text for text in texts)
    assert "<|end|>" in "".join(texts)
    assert conformance.chat[0].rendered == "<|user|>\nWhat is 12 plus 30?<|end|>\n<|assistant|>\n"
    assert conformance.greedy.computed_by == "onnx"
    assert all(1 <= len(vector.continuation) <= 16 for vector in conformance.greedy.vectors)


def test_a_build_that_is_not_verified_says_so(built: tuple[Path, Manifest], checkpoint: Path, tmp_path: Path) -> None:
    manifest = build(checkpoint, target="cpu", output=tmp_path / "a", verify=False)
    assert manifest.files == built[1].files
    assert manifest.conformance.greedy.vectors == ()
    assert manifest.conformance.greedy.reason == "not verified (--no-verify)"


def test_two_builds_are_byte_identical(built: tuple[Path, Manifest], checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, target="cpu", output=tmp_path / "again", threads=1)
    for path in built[0].iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_template_of_its_own_file_wins_and_named_ones_have_a_default(checkpoint: Path, tmp_path: Path) -> None:
    plain = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    named = [{"name": "tool_use", "template": "{{ nothing }}"}, {"name": "default", "template": plain}]
    copy = edited(checkpoint, tmp_path, "tokenizer_config.json", chat_template=named)
    manifest = build(copy, target="cpu", output=tmp_path / "a")
    assert manifest.conformance.chat[0].rendered == "[What is 12 plus 30?]"
    (copy / "chat_template.jinja").write_text("own: {{ messages[0].content }}", encoding="utf-8")
    manifest = build(copy, target="cpu", output=tmp_path / "b")
    assert manifest.conformance.chat[0].rendered == "own: What is 12 plus 30?"


def test_model_without_template(checkpoint: Path, tmp_path: Path) -> None:
    manifest = build(edited(checkpoint, tmp_path, "tokenizer_config.json", chat_template=...), target="cpu", output=tmp_path / "a")
    assert manifest.chat_template is None
    assert manifest.conformance.chat == ()
    assert not (tmp_path / "a" / "chat_template.jinja").exists()


def test_template_that_refuses_a_system_message_is_no_reason_to_fail(checkpoint: Path, tmp_path: Path) -> None:
    refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
    manifest = build(
        edited(checkpoint, tmp_path, "tokenizer_config.json", chat_template=refusing), target="cpu", output=tmp_path / "a", context=64
    )
    assert [vector.messages[0].role for vector in manifest.conformance.chat] == ["user", "user", "user"]


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ messages[0].__class__.__mro__ }}", "{{ raise_exception('never') }}", {"not": "text"}]
)
def test_broken_template_stops_before_the_long_job(checkpoint: Path, tmp_path: Path, template: object) -> None:
    copy = edited(checkpoint, tmp_path, "tokenizer_config.json", chat_template=template)
    stages: list[str] = []
    with pytest.raises(TemplateError, match=r"tokenizer_config\.json"):
        build(copy, target="cpu", output=tmp_path / "a", progress=lambda stage, done, total: stages.append(stage))
    assert stages == []
    assert not (tmp_path / "a").exists()


def test_tokenizer_of_another_model(checkpoint: Path, tmp_path: Path) -> None:
    copy = edited(checkpoint, tmp_path, "tokenizer_config.json")
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["extra"] = 320
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"gives 'extra' the id 320, but config\.json has vocab_size 320"):
        build(copy, target="cpu", output=tmp_path / "a")


def test_added_tokens_beyond_the_embedding_are_text(checkpoint: Path, tmp_path: Path) -> None:
    """As transformers runs such a model: no row can be looked up for them, and none generated."""
    copy = edited(checkpoint, tmp_path, "tokenizer_config.json", pad_token="[PAD]")
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    known = len(tokenizer["model"]["vocab"])
    fill = [f"<fill{i}>" for i in range(320 - known)]  # so that the next id is the first beyond
    write_json(copy / "added_tokens.json", {text: known + i for i, text in enumerate([*fill, "[PAD]", "<more>"])})
    stops = json.loads((copy / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    write_json(copy / "generation_config.json", {"eos_token_id": [*stops, 320], "pad_token_id": 320})
    manifest = build(copy, target="cpu", output=tmp_path / "a")
    assert list(manifest.tokens.stop) == stops
    opened = open_tokenizer(tmp_path / "a")
    assert max(opened.encode("[PAD]<more>" + "".join(fill))) == 319 and opened.decode(opened.encode("a[PAD]<more>")) == "a[PAD]<more>"
    written = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "pad_token" not in written and "pad_token_id" not in json.loads((tmp_path / "a" / "generation_config.json").read_text("utf-8"))
    assert "[PAD]" not in (tmp_path / "a" / "tokenizer.json").read_text(encoding="utf-8")


def test_a_tool_template_travels_and_renders_chats_with_tools(checkpoint: Path, tmp_path: Path) -> None:
    shown = "{% for t in tools %}<{{ t.function.name }}>{% endfor %}{{ messages[0].content }}"
    named = [{"name": "tool_use", "template": shown}, {"name": "default", "template": "{{ messages[0].content }}"}]
    for given in (named, {"default": named[1]["template"], "tool_use": shown}):
        manifest = build(
            edited(checkpoint, tmp_path, "tokenizer_config.json", chat_template=given), target="cpu", output=tmp_path / "a", force=True
        )
        assert manifest.tool_template == "additional_chat_templates/tool_use.jinja"
        assert [vector.rendered for vector in manifest.conformance.tools] == ["<set_light>What is 12 plus 30?"]
        with edgekit.load(tmp_path / "a") as runtime:
            assert runtime.render([{"role": "user", "content": "x"}]) == "x"
            assert runtime.render([{"role": "user", "content": "x"}], tools=[{"function": {"name": "f"}}]) == "<f>x"
        shutil.rmtree(tmp_path / "edited")


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"chat_template.jinja": "A"}, ("A", None)),
        ({"chat_template.jinja": "A", "additional_chat_templates/tool_use.jinja": "T"}, ("A", "T")),
        (
            {"chat_template.jinja": "A", "additional_chat_templates/default.jinja": "B", "additional_chat_templates/rag.jinja": "R"},
            ("B", None),
        ),
        ({"chat_template.json": {"chat_template": "P"}}, ("P", None)),
        ({"processor_config.json": {"chat_template": {"default": "P", "tool_use": "T"}}}, ("P", "T")),
        ({"tokenizer_config.json": {"chat_template": "C"}, "chat_template.json": {"chat_template": "P"}}, ("C", None)),
        ({"tokenizer_config.json": {"chat_template": "C"}, "additional_chat_templates/tool_use.jinja": "T"}, None),
        ({"tokenizer_config.json": {"chat_template": [{"name": "tool_use", "template": "T"}]}}, None),
        ({"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": 3}]}}, None),
        ({"tokenizer_config.json": {"chat_template": [{"name": "chat", "template": "C"}]}}, ("C", None)),
    ],
)
def test_where_templates_are_looked_for(tmp_path: Path, files: dict[str, object], wanted: tuple[str, str | None] | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    config = files.get("tokenizer_config.json", {})
    assert isinstance(config, dict)
    if wanted is None:
        with pytest.raises(TemplateError, match=r"tokenizer_config\.json|additional_chat_templates"):
            read_sources(tmp_path, config)
    else:
        found = read_sources(tmp_path, config)
        assert (found.default, found.tools) == wanted


@pytest.mark.parametrize(("content", "message"), [(None, r"has no tokenizer\.json"), ("{}", "cannot be read as a tokenizer")])
def test_missing_or_broken_tokenizer(checkpoint: Path, tmp_path: Path, content: str | None, message: str) -> None:
    copy = edited(checkpoint, tmp_path, "tokenizer_config.json")
    (copy / "tokenizer.json").unlink()
    if content is not None:
        (copy / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        build(copy, target="cpu", output=tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "megabytes", "advice"),
    [
        ({"hidden_size": 512, "intermediate_size": 1024}, 1, "take a smaller model or another target"),
        ({"max_position_embeddings": 100_000}, 30, r"build with --context \d+"),
    ],
)
def test_weights_and_cache_larger_than_the_device_are_refused(
    tmp_path: Path, changes: dict[str, object], megabytes: int, advice: str
) -> None:
    target = tmp_path / "watch.toml"
    head = 'description = "d"\nengine = "onnx"\nscheme = "int4-g32"\ncontext = 100000\nverified = "executed"\n'
    target.write_text(head + f"memory_mb = {megabytes}\n", encoding="utf-8")
    big = make_checkpoint(tmp_path / "big", Variant("llama", changes))
    message = rf"big as int4-g32 takes \d+ MB and its KV cache for .* MB; target 'watch' allows {megabytes} MB in all: {advice}"
    with pytest.raises(TargetError, match=message) as caught:
        build(big, target=target, output=tmp_path / "a")
    if "--context" in advice:
        fits = int(str(caught.value).rsplit(" ", 1)[1])
        build(big, target=target, output=tmp_path / "a", context=fits)
        with pytest.raises(TargetError, match="MB in all"):
            build(big, target=target, output=tmp_path / "b", context=2 * fits)


def test_full_disk_is_seen_before_the_long_job(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(OutputError, match=r"cannot write .*: about .* MB are needed"):
        build(checkpoint, target="cpu", output=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
def test_interrupted_build_leaves_nothing(checkpoint: Path, tmp_path: Path, error: BaseException | type[BaseException]) -> None:
    def interrupt(stage: str, done: int, total: int, /) -> None:
        if stage == "digest of the artifact":
            raise error

    wanted = OutputError if isinstance(error, OSError) else error
    with pytest.raises(wanted):  # type: ignore[arg-type]
        build(checkpoint, target="cpu", output=tmp_path / "a", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_scheme_overrides_the_target(checkpoint: Path, tmp_path: Path) -> None:
    manifest = build(checkpoint, target="cpu", output=tmp_path / "a", scheme="int4-g32")
    assert (manifest.scheme.name, manifest.scheme.linear.group) == ("int4-g32", 32)
    with pytest.raises(TargetError, match="unknown scheme 'int3'; known: int4-g32, int4-g64, int4-g128"):
        build(checkpoint, target="cpu", output=tmp_path / "b", scheme="int3")


def test_where_targets_are_written(tmp_path: Path) -> None:
    assert outputs("phi3.5-mini", ["cpu"], None) == [("cpu", Path("phi3.5-mini-cpu"))]
    assert outputs("microsoft/Phi-3.5-mini-instruct@main", ["cpu"], None) == [("cpu", Path("Phi-3.5-mini-instruct-cpu"))]
    assert outputs("m", ["cpu"], tmp_path) == [("cpu", tmp_path)]
    assert outputs("m", ["cpu", "my/own.toml"], tmp_path) == [("cpu", tmp_path / "m-cpu"), ("my/own.toml", tmp_path / "m-own")]
    assert outputs(str(tmp_path), ["cpu"], None) == [("cpu", Path(f"{tmp_path.name}-cpu"))]
    with pytest.raises(UsageError, match="twice"):
        outputs("m", ["cpu", "cpu"], None)
    for other in ("my/cpu.toml", "my/CPU.toml"):
        with pytest.raises(UsageError, match=r"targets cpu and my/.* would both be written to m-"):
            outputs("m", ["cpu", other], None)
