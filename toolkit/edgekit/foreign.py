"""What stands where a checkpoint should be, told by its first bytes and the names of its files, and what to do about it."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from edgekit.errors import CheckpointError

BEGINNING = 512
"""Bytes that tell what a file is."""
TEXTS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""Files besides the weights that are read where they are there."""
MANIFEST = "edgekit.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
EXPORTED = {".onnx": "an ONNX graph", ".xml": "an OpenVINO graph", ".tflite": "a TensorFlow Lite model", ".mlmodel": "a Core ML model"}
PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
FILES = (".safetensors", ".gguf", ".json", ".mlpackage", *PICKLES, *EXPORTED, *PACKED)
"""How names end that mean a file and never a repository of the hub."""
MAGIC = {
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a zip archive, as PyTorch's pickles are",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
}
ORIGINAL = "take the model's original repository, with float16 or bfloat16 weights in safetensors"


def mistaken(beginning: bytes, path: Path) -> str | None:
    """What a file is instead of JSON, a template or safetensors, by its first BEGINNING bytes, and the next step; None where unknown."""
    if beginning.startswith(b"version https://") and b"\noid sha256:" in beginning:
        size = re.search(rb"\nsize (\d+)", beginning)
        stands = f" that stands for {int(size[1][:18]):,} bytes" if size else ""
        return (
            f"{path} is a Git LFS pointer{stands}, not the file itself: run `git -C {path.parent} lfs pull` (git-lfs has to be installed), "
            "or download the model with `hf download ORG/NAME --local-dir DIR`"
        )
    if re.match(rb"(\.\./)*(\.git)?/?annex/objects/", beginning):
        return f"{path} is a pointer of git-annex, not the file itself: run `git -C {path.parent} annex get .`"
    if beginning.startswith(b"# xet version"):
        return f"{path} is a pointer of git-xet, not the file itself: download the model with `hf download ORG/NAME --local-dir DIR`"
    if re.match(rb"(\xef\xbb\xbf)?\s*(<!doctype html|<html|<\?xml|<head|<!--)", beginning, re.IGNORECASE) and path.suffix != ".jinja":
        return f"{path} is a web page (or XML), not the file: what answered the download was an error or login page. Download it again"
    if beginning and not beginning.strip(b"\0"):
        return f"{path} begins with zeros only: its download or copy was broken off. Download it again"
    found = next((what for magic, what in MAGIC.items() if beginning.startswith(magic)), None)
    return None if found is None else f"{path} is {found}, whatever its name says; {ORIGINAL}"


def check_beginning(path: Path, beginning: bytes) -> None:
    """Raises CheckpointError for a file of weights or JSON that is another thing, or empty."""
    if not beginning and path.suffix != ".jinja":
        raise CheckpointError(f"{path} is empty (truncated: 0 bytes): its download or copy was broken off. Download it again.")
    if what := mistaken(beginning, path):
        raise CheckpointError(what)


def check_texts(directory: Path) -> None:
    """Raises CheckpointError where one of the small files is a pointer to something that is not here, a web page, or empty."""
    templates = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    for path in [*(directory / name for name in TEXTS), *templates]:
        check_link(path)
        if path.is_file():
            try:
                with path.open("rb") as file:
                    beginning = file.read(BEGINNING)
            except OSError:
                continue  # whoever needs it says so
            check_beginning(path, beginning)


def check_link(path: Path) -> None:
    """Raises CheckpointError for a link that leads nowhere."""
    if path.is_symlink() and not path.exists():
        to = str(path.readlink())
        advice = f"run `git -C {path.parent} annex get .`" if ".git/annex/" in to.replace("\\", "/") else "download it again"
        raise CheckpointError(f"{path} is a link to {to}, which is not there: {advice}")


def check_artifact(directory: Path) -> None:
    """Raises CheckpointError for what a build made, which may look like a checkpoint."""
    if (directory / MANIFEST).is_file():
        raise CheckpointError(f"{directory} is no checkpoint. {_exported(directory, [MANIFEST])}")


def without_config(directory: Path) -> str:
    """What a directory without config.json is, and what to give instead."""
    names = _names(directory)
    if (said := _exported(directory, names)) is not None:
        return said
    if "adapter_config.json" in names:
        return merge_adapter(directory)
    if "params.json" in names or any(name.startswith("consolidated") for name in names):
        return (
            "It is in the maker's own layout (params.json, consolidated.*): give the repository's files in Hugging Face layout "
            "(config.json, tokenizer.json, model*.safetensors), or convert it with transformers' convert_*_weights_to_hf.py."
        )
    if (hub := re.fullmatch(r"models--([^/]+?)--(.+)", directory.resolve().name)) and (directory / "snapshots").is_dir():
        latest = _models(directory / "snapshots")
        place = f"its snapshot, {latest[0]}, or " if latest else ""
        return f"It is a folder of the hub's cache: give {place}the model's name on the hub, {hub[1]}/{hub[2]}."
    inner = _models(directory)
    if len(inner) == 1:
        return f"{inner[0]} is one: give that directory."
    if inner:
        return f"Several directories in it are: give one of {', '.join(map(str, inner[:6]))}."
    if any(name.endswith(".gguf") for name in names):
        return f"It holds a GGUF file, which edgekit does not read: {ORIGINAL}."
    return "Download the model there with `hf download ORG/NAME --local-dir DIR`, or give its name on the hub."


def without_weights(directory: Path) -> str:
    """What to do about a directory that has config.json but not the weights that edgekit reads."""
    names = _names(directory)
    if (said := _exported(directory, names)) is not None:
        return said
    return absent_weights(names, str(directory))


def absent_weights(names: Collection[str], place: str, adapter: Mapping[str, object] | None = None) -> str:
    """The same by the names of the files in ``place``, a directory or a repository of the hub. adapter: its adapter_config.json."""
    if "adapter_config.json" in names or any(name.startswith("adapter_model") for name in names):
        return merge_adapter(place, adapter)
    if any(name.startswith("consolidated") and name.endswith(".safetensors") for name in names):
        return (
            "Its consolidated.safetensors is in Mistral's own layout, with other names and another order of rows: give the same model's "
            "model*.safetensors, which most repositories hold beside it."
        )
    if any(name.endswith(PICKLES) for name in names):
        return (
            "PyTorch pickles (.bin, .pt) are not read, since loading one can run code. Convert them where you trust them:\n"
            f'  python -c "from transformers import AutoModelForCausalLM as M; M.from_pretrained({place!r}, dtype={"auto"!r})'
            ".save_pretrained('NEW', safe_serialization=True)\"\n"
            f"  python -c \"from transformers import AutoTokenizer as T; T.from_pretrained({place!r}).save_pretrained('NEW')\"\n"
            "and give NEW."
        )
    if any(name.endswith(".gguf") for name in names):
        return f"GGUF files are already quantized, and edgekit does not read them: {ORIGINAL}."
    others = sorted(name for name in names if name.endswith(".safetensors"))
    if others:
        return f"It holds {', '.join(others[:4])}: a single file must be called model.safetensors, several need their index."
    return "Download the model's safetensors: `hf download ORG/NAME --local-dir DIR`."


def merge_adapter(place: Path | str, config: Mapping[str, object] | None = None) -> str:
    """How to merge the PEFT adapter in ``place``, a directory or a repository of the hub, into its base. config: adapter_config.json, where
    it has been read."""
    found = _json(Path(place) / "adapter_config.json") if config is None else config
    base = found.get("base_model_name_or_path")
    kind = found.get("peft_type")
    of = f" of {base!r}" if isinstance(base, str) and base else ""
    kind = f" ({kind[:30]!r})" if isinstance(kind, str) and kind else ""
    where, tokenizer = str(place), base if of else "BASE"
    return (
        f"It is a PEFT adapter{kind}{of}, not a whole model: merge the LoRA adapter into its base first (pip install peft):\n"
        f"  python -c \"from peft import AutoPeftModelForCausalLM as M; M.from_pretrained({where!r}, dtype='auto')"
        ".merge_and_unload().save_pretrained('MERGED')\"\n"
        f"  python -c \"from transformers import AutoTokenizer as T; T.from_pretrained({tokenizer!r}).save_pretrained('MERGED')\"\n"
        "and give MERGED."
    )


def ignored_adapter(directory: Path) -> str | None:
    """A note on an adapter that lies beside a whole model."""
    names = _names(directory)
    found = sorted(name for name in names if name.startswith("adapter_model"))
    if not found:
        return None
    return (
        f"{directory / found[0]} is an adapter that is NOT applied: the model is built without it. To have it in, merge it with peft "
        "(merge_and_unload) and build what that saves"
    )


def a_file(path: Path, exists: bool) -> str:
    """What to give instead of ``path``, which names a file."""
    suffix, parent = path.suffix.lower(), path.parent
    if not exists:
        unread = ", and GGUF files are not read" if suffix == ".gguf" else ""
        return (
            f"no such file: {path}{unread}; give a directory with config.json and safetensors, a catalogue name (`edge models`) or a hub id"
        )
    beside = f"give its directory: {parent}" if (parent / "config.json").is_file() else "a directory with config.json beside it is needed"
    if path.name.startswith("adapter_model") or path.name == "adapter_config.json":
        return f"{path} is a file. {merge_adapter(parent)}"
    if (parent / MANIFEST).is_file():
        return f"{path} is a file of an edgekit artifact. {_exported(parent, _names(parent))}"
    if suffix == ".gguf":
        return f"{path} is a GGUF file, already quantized, which edgekit does not read: {ORIGINAL}"
    if suffix in EXPORTED:
        return f"{path} is {EXPORTED[suffix]}, exported already: edgekit builds from the checkpoint that it was made of; {ORIGINAL}"
    if suffix in PICKLES:
        return f"{path} is a file. {absent_weights([path.name], str(parent))}"
    if suffix in PACKED:
        return f"{path} is an archive: unpack it, and give the directory with config.json"
    return f"{path} is a file; {beside}"


def _exported(directory: Path, names: Collection[str]) -> str | None:
    """Of a directory that holds what a build makes."""
    if MANIFEST in names:
        made_of = _json(directory / MANIFEST).get("model")
        name = made_of.get("name") if isinstance(made_of, dict) else None
        known = isinstance(name, str) and re.fullmatch(r"[\w./-]{1,200}", name, re.ASCII)
        model = (
            f"the model that it was made of, {name}," if known else f"the model that it was made of (`edge inspect {directory}` says which)"
        )
        return f"It is an edgekit artifact, built already: `edge chat {directory}` runs it; give {model} to build for another target."
    made = {"genai_config.json": "onnxruntime-genai", "openvino_model.xml": "OpenVINO", "mlc-chat-config.json": "MLC"}
    found = next((engine for name, engine in made.items() if name in names), None)
    if found is None and any(name.endswith(".onnx") for name in names) and not any(name.endswith(".safetensors") for name in names):
        found = "ONNX"
    return None if found is None else f"It holds a model exported for {found} already: {ORIGINAL}."


def _models(directory: Path) -> list[Path]:
    """Directories in it that look like checkpoints."""
    try:
        inner = sorted(path for path in directory.iterdir() if path.is_dir())
        return [path for path in inner if (path / "config.json").is_file() and any(path.glob("*.safetensors"))]
    except OSError:
        return []


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir() if path.is_file())
    except OSError:
        return []


def _json(path: Path) -> Mapping[str, object]:
    """Empty where it cannot be read: it only makes a message better."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(16 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
