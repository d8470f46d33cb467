"""One engine in a process of its own: loads a model, continues prompts, prints what it took as JSON. Run by bench/decode.py.

    python bench/decode_one.py loop DIR --threads 2

Greedy, one sequence, stop tokens ignored (a random model says them any time). Every prompt differs from its first token on, so
nothing is reused. ``first`` is the first prompt after the load: it pays for page faults and whatever an engine puts off until then.
"""

import argparse
import json
import os
import statistics
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import numpy as np

import measure

PROMPTS = {"first": 64, "64": 64, "1024": 1024}
STEPS = 32
LIMIT = 1024 + 2 * STEPS
"""Tokens of prompt and answer that an engine which reserves its cache at once is told of."""


class Engine(Protocol):
    def start(self, prompt: list[int]) -> None:
        """Forgets everything, computes the prompt and chooses the first token."""

    def step(self) -> None:
        """One token more."""


class Loop:
    """edgekit's runtime loop: sampler, logprob and text included."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import edgekit
        from edgekit.runtime.prefix import PrefixCache

        self.runtime = edgekit.load(path, threads=threads)
        self.cache = PrefixCache(self.runtime.session, switch=self.runtime.manifest.context.rope_switch)

    def start(self, prompt: list[int]) -> None:
        from edgekit.runtime.generate import generate

        stream = self.runtime.tokenizer.stream(prompt)
        self.steps = generate(self.cache, prompt, stream, context=self.runtime.context, stop_tokens=())
        next(self.steps)

    def step(self) -> None:
        next(self.steps)


class Bare:
    """edgekit's session without the loop around it: tokens in, argmax out."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import edgekit

        self.session = edgekit.load(path, threads=threads).session

    def start(self, prompt: list[int]) -> None:
        self.session.rewind(0)
        self.token = int(np.argmax(self.session.forward(prompt)))

    def step(self) -> None:
        self.token = int(np.argmax(self.session.forward([self.token])))


class Stock(Bare):
    """The same with ONNX Runtime's own products, where edgekit's own would take their place."""

    def __init__(self, path: Path, threads: int | None) -> None:
        os.environ["EDGEKIT_ONNX_PRODUCTS"] = "onnxruntime"
        super().__init__(path, threads)


class Genai:
    """onnxruntime-genai's own loop."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime_genai as og

        self.og = og
        config = og.Config(str(path))
        if threads:
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = og.Model(config)

    def start(self, prompt: list[int]) -> None:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=LIMIT, min_length=LIMIT, do_sample=False)
        if hasattr(self, "generator"):
            del self.generator  # its cache goes before the next one's comes
        self.generator = self.og.Generator(self.model, params)
        self.generator.append_tokens(np.array(prompt, np.int32))
        self.generator.generate_next_token()

    def step(self) -> None:
        self.generator.generate_next_token()


class OpenvinoGenai:
    """openvino_genai's own loop, which hands out tokens as they come and cannot be stepped: a step waits for the next."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import openvino
        import openvino_genai

        self.openvino, self.genai = openvino, openvino_genai
        self.pipeline = openvino_genai.LLMPipeline(str(path), "CPU", **({"INFERENCE_NUM_THREADS": threads} if threads else {}))
        self.running: threading.Thread | None = None

    def start(self, prompt: list[int]) -> None:
        if self.running is not None:
            self.running.join()
        self.tokens: SimpleQueue[int] = SimpleQueue()
        ids = np.array([prompt], np.int64)
        inputs = self.genai.TokenizedInputs(self.openvino.Tensor(ids), self.openvino.Tensor(np.ones_like(ids)))
        config = self.genai.GenerationConfig(max_new_tokens=STEPS + 1, do_sample=False, ignore_eos=True)
        tokens, going_on = self.tokens, self.genai.StreamingStatus.RUNNING

        class Streamer(self.genai.StreamerBase):  # type: ignore[misc, name-defined]
            def write(self, token: object) -> object:
                tokens.put(0)
                return going_on

            def end(self) -> None:
                pass

        self.running = threading.Thread(target=self.pipeline.generate, args=(inputs, config, Streamer()))
        self.running.start()
        self.step()

    def step(self) -> None:
        self.tokens.get(timeout=600)


class LlamaCpp:
    def __init__(self, path: Path, threads: int | None) -> None:
        import llama_cpp

        self.low = llama_cpp
        count = threads or os.cpu_count() or 1
        self.llama = llama_cpp.Llama(str(path), n_ctx=LIMIT, n_threads=count, n_threads_batch=count, verbose=False)

    def start(self, prompt: list[int]) -> None:
        self.llama.reset()
        self._eval(prompt)

    def step(self) -> None:
        self._eval([self.token])

    def _eval(self, tokens: list[int]) -> None:
        self.llama.eval(tokens)
        logits = self.low.llama_get_logits_ith(self.llama.ctx, -1)
        self.token = int(np.argmax(np.ctypeslib.as_array(logits, (self.llama.n_vocab(),))))


ENGINES: dict[str, Callable[[Path, int | None], Engine]] = {
    "loop": Loop,
    "bare": Bare,
    "stock": Stock,
    "genai": Genai,
    "openvino_genai": OpenvinoGenai,
    "llama.cpp": LlamaCpp,
}


def onnx_weight_bytes(directory: Path) -> int:
    """Bytes of what MatMulNBits nodes read."""
    import onnx

    graph = onnx.load(str(directory / "model.onnx"), load_external_data=False).graph
    read = {name for node in graph.node if node.op_type == "MatMulNBits" for name in node.input}
    return sum(stored(t) for t in graph.initializer if t.name in read)


def stored(tensor: object) -> int:
    length = next((e.value for e in tensor.external_data if e.key == "length"), None)  # type: ignore[attr-defined]
    return int(length) if length is not None else tensor.ByteSize()  # type: ignore[attr-defined]


def openvino_weight_bytes(directory: Path) -> int:
    """Bytes of all constants of more than one dimension but the embedding's."""
    total = 0
    for layer in ElementTree.parse(directory / "openvino_model.xml").iter("layer"):
        data = layer.find("data")
        if (
            layer.attrib["type"] == "Const"
            and data is not None
            and "," in data.attrib["shape"]
            and "embed_tokens" not in layer.attrib["name"]
        ):
            total += int(data.attrib["size"])
    return total


def gguf_weight_bytes(path: Path) -> int:
    import gguf

    return sum(int(t.n_bytes) for t in gguf.GGUFReader(path).tensors if t.name != "token_embd.weight")


def weight_bytes(path: Path) -> int:
    """Bytes of weights that one token has to read: all matrices but the embedding."""
    if path.suffix == ".gguf":
        return gguf_weight_bytes(path)
    return openvino_weight_bytes(path) if (path / "openvino_model.xml").is_file() else onnx_weight_bytes(path)


def cache_bytes(path: Path) -> int:
    """Bytes of keys and values that a token reads for each token before it; 0 for OpenVINO, which keeps to itself how it holds them."""
    if path.suffix == ".gguf":
        import gguf

        said = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
        model = said["general.architecture"]
        heads, size = said[f"{model}.attention.head_count_kv"], said[f"{model}.embedding_length"] // said[f"{model}.attention.head_count"]
        return int(2 * said[f"{model}.block_count"] * heads * size * np.dtype(np.float16).itemsize)  # llama.cpp's default
    if (path / "openvino_model.xml").is_file():
        return 0
    import onnx

    shape = json.loads((path / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    inputs = onnx.load(str(path / "model.onnx"), load_external_data=False).graph.input
    kind = next(value.type.tensor_type.elem_type for value in inputs if value.name == "past_key_values.0.key")
    width = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    return int(2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_size"] * width)


def token_bytes(path: Path, prompts: Iterable[int]) -> list[float]:
    """Bytes that a token after each such prompt reads, mean of the steps measured: weights, keys and values. Times tokens a second, and
    divided by the memory's bandwidth, it is the model bandwidth utilization (Databricks 2023, "LLM Inference Performance Engineering")."""
    weights, cache = weight_bytes(path), cache_bytes(path)
    return [weights + cache * (prompt + STEPS / 2) for prompt in prompts]


def measured(kind: str, path: Path, threads: int | None, vocabulary: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    before = time.perf_counter()
    engine = ENGINES[kind](path, threads)
    result: dict[str, object] = {"load": time.perf_counter() - before, "rss_loaded": measure.status_bytes("VmHWM")}
    for name, length in PROMPTS.items():
        prompt = rng.integers(0, vocabulary, length).tolist()
        began = time.perf_counter()
        engine.start(prompt)
        prefill = time.perf_counter() - began
        steps = []
        for _ in range(STEPS):
            began = time.perf_counter()
            engine.step()
            steps.append(time.perf_counter() - began)
        result[name] = {
            "prefill": prefill,
            "prefill_rate": length / prefill,
            "decode_rate": 1 / statistics.median(steps),
            "decode_rate_mean": STEPS / sum(steps),
            "peak": measure.status_bytes("VmHWM"),
            "anonymous": measure.status_bytes("RssAnon"),
        }
    return result


def bandwidth(threads: int) -> float:
    """Bytes a second that numpy reads from memory, best of five: each thread sums up half a gigabyte of its own."""
    arrays = [np.ones(1 << 27, np.float32) for _ in range(threads)]
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=np.dot, args=(a, a)) for a in arrays]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(a.nbytes for a in arrays) / (time.perf_counter() - began))
    return best


def prompt_text(directory: Path, tokens: int) -> str:
    """A text of so many tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = ""
    while len(tokenizer.encode(text).ids) < tokens:
        text += " abc"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*ENGINES, "bandwidth", "prompt", "token-bytes"])
    parser.add_argument("path", type=Path, nargs="?", default=Path())
    parser.add_argument("--threads", type=int)
    parser.add_argument("--vocabulary", type=int, default=32000, help="prompts are drawn from the ids below this one")
    asked = parser.parse_args()
    if asked.kind == "bandwidth":
        found: object = bandwidth(asked.threads or os.cpu_count() or 1)
    elif asked.kind == "prompt":
        found = prompt_text(asked.path, PROMPTS["first"])
    elif asked.kind == "token-bytes":
        found = dict(zip(PROMPTS, token_bytes(asked.path, PROMPTS.values()), strict=True))
    else:
        found = measured(asked.kind, asked.path, asked.threads, asked.vocabulary)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
