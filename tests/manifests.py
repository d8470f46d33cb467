"""A manifest with something in every field, and artifacts of any files under it."""

from pathlib import Path

from edgekit.artifact import (
    ChatVector,
    Conformance,
    ContextInfo,
    EncodeVector,
    EngineInfo,
    FileInfo,
    Greedy,
    GreedyVector,
    Manifest,
    Message,
    ModelInfo,
    SchemeInfo,
    TensorFormat,
    TokenInfo,
    list_files,
)
from edgekit.output import seal, writing
from edgekit.progress import silent


def manifest(**files: FileInfo) -> Manifest:
    four, eight = TensorFormat(4, 128), TensorFormat(8, 128)
    return Manifest(
        format="edgekit",
        version=1,
        producer="edgekit 0.1.0",
        model=ModelInfo("m", "local", None, "MIT", "phi3", 10, {"config.json": "00"}),
        target="cpu",
        engine=EngineInfo("onnx", {"onnxruntime": "1.23"}, {"kv_dtype": "float32", "mmap": True, "n": 3, "none": None}),
        scheme=SchemeInfo("int4-g128", 4.25, four, eight, eight, {"layers.0.down_proj": eight, "x": TensorFormat(16, None)}),
        context=ContextInfo(2048, 256, None),
        tokens=TokenInfo(1024, 1, (1020, 1014), False),
        chat_template=None,
        conformance=Conformance(
            (EncodeVector("héllo", (1, 2)),),
            (ChatVector((Message("user", "hi"),), "<|user|>hi"),),
            Greedy("onnx", (GreedyVector((1, 2), (3,)),)),
        ),
        files=files,
    )


def write(directory: Path, contents: dict[str, bytes], *, force: bool = False) -> None:
    """An artifact that holds files of these names (at most one folder deep)."""
    with writing(directory, force=force) as staging:
        for name, content in contents.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(content)
        seal(staging, manifest(**list_files(staging, silent)))
