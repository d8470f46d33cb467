"""Trains tiny-phi, or one of its Mistral- and Llama-shaped siblings, on generated text and writes it in Hugging Face layout.

    PYTHONPATH=toolkit python -m tiny_phi.train --out toolkit/edgekit/tiny_phi
    PYTHONPATH=toolkit python -m tiny_phi.train --shape mistral --steps 800 --stop 601 --tokens 640 --plain --out bench/data/tiny-mistral
    PYTHONPATH=toolkit python -m tiny_phi.train --shape llama --steps 800 --stop 601 --tokens 640 --plain --out bench/data/tiny-llama

Needs PyTorch (CPU is enough: tiny-phi takes about an hour on two cores with bfloat16 instructions). Muon (Jordan et al. 2024) for the
matrices, AdamW for the rest; learning rate falling linearly. --plain: float32 and AdamW alone, twenty times faster a step without bfloat16
instructions, as PyTorch's Muon computes in bfloat16.
"""

import argparse
import itertools
import json
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_phi import text
from tiny_phi.shapes import CONTEXT, HEAD_DIM, HIDDEN, INNER, SHAPES, VOCABULARY, Shape
from tiny_phi.tokenizer import make_tokenizer, save_tokenizer

SEED = 20261121
PROMPT_WEIGHT = 0.1  # of the loss on text that nobody has to answer
OUTLIER, OUTLIER_SHARE = 8.0, 64  # factor, and one of how many channels gets it
ANSWER_TOKENS = 8  # a longer answer weighs no more than one of this length, else JSON drowns the sums


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = HIDDEN + 2 * shape.kv_heads * HEAD_DIM
        self.input_layernorm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.self_attn = nn.ModuleDict({"qkv_proj": nn.Linear(HIDDEN, width, bias=False), "o_proj": nn.Linear(HIDDEN, HIDDEN, bias=False)})
        self.mlp = nn.ModuleDict(
            {"gate_up_proj": nn.Linear(HIDDEN, 2 * INNER, bias=False), "down_proj": nn.Linear(INNER, HIDDEN, bias=False)}
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        qkv = self.self_attn["qkv_proj"](self.input_layernorm(x))
        kv_heads = self.shape.kv_heads
        q, k, v = qkv.view(rows, length, -1, HEAD_DIM).transpose(1, 2).split([HIDDEN // HEAD_DIM, kv_heads, kv_heads], 1)

        def rotate(t: Tensor) -> Tensor:
            a, b = t.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(t.dtype)

        seen = visible(length, self.shape.window)
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=seen, is_causal=seen is None, enable_gqa=True)
        x = x + self.self_attn["o_proj"](y.transpose(1, 2).reshape(rows, length, HIDDEN))
        gate, up = self.mlp["gate_up_proj"](self.post_attention_layernorm(x)).chunk(2, -1)
        return x + self.mlp["down_proj"](F.silu(gate) * up)


def visible(length: int, window: int | None) -> Tensor | None:
    """Which keys a query sees, [length, length], or None where that is all up to its own."""
    if window is None or length <= window:
        return None
    behind = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (behind >= 0) & (behind < window)


class Decoder(nn.Module):
    """A decoder for training, with Phi-3's fused matrices whatever its shape: whole rows, no cache, RoPE chosen by the row's length."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        if shape.tied:
            self.lm_head.weight = self.embed_tokens.weight
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


def rotary(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin [length, half of the head] for a row of ``length`` tokens."""
    frequencies, scale = shape.frequencies(length)
    angle = torch.outer(torch.arange(length).float(), torch.tensor(frequencies))
    return angle.cos() * scale, angle.sin() * scale


class Rows:
    """Endless training rows: conversations as token ids, with the weight of each token's loss."""

    def __init__(self, tokenizer: Tokenizer, rng: Random) -> None:
        self.tokenizer, self.rng = tokenizer, rng

    def row(self, length: int, hardness: float) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) <= length:
            for message in text.conversation(self.rng, max(20, length // 3), hardness):
                body = self.tokenizer.encode(f"<|{message['role']}|>\n{message['content']}<|end|>\n").ids
                ids += body
                weight = min(1.0, ANSWER_TOKENS / len(body)) if message["role"] == "assistant" else PROMPT_WEIGHT
                weights += [PROMPT_WEIGHT] + [weight] * (len(body) - 1)
        return ids[: length + 1], weights[: length + 1]

    def batch(self, rows: int, length: int, hardness: float) -> tuple[Tensor, Tensor]:
        pairs = [self.row(length, hardness) for _ in range(rows)]
        return torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])


def batches(tokenizer: Tokenizer, steps: int, tokens: int, longest: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches of about ``tokens`` tokens, made ahead by a thread; rows grow longer as training goes on."""
    ready: queue.Queue[tuple[Tensor, Tensor]] = queue.Queue(4)

    def produce() -> None:
        rng = Random(SEED)
        rows = Rows(tokenizer, rng)
        for step in range(steps):
            done = step / steps
            lengths = [96, 160, 256, 288] if done < 0.3 else [128, 256, 256, 384, 512] if done < 0.5 else [160, 256, 384, 640, 1024]
            length = 2048 if done > 0.7 and rng.random() < 0.15 else rng.choice(lengths)
            length = min(length, longest)
            ready.put(rows.batch(max(1, tokens // length), length, min(1.0, max(0.0, (done - 0.05) / 0.35))))

    threading.Thread(target=produce, daemon=True).start()
    for _ in range(steps):
        yield ready.get()


@torch.no_grad()
def exact_match(model: nn.Module, shape: Shape, tokenizer: Tokenizer, task: str, fillers: int, count: int, seed: int) -> float:
    """Share of examinations answered exactly under greedy decoding (read from one forward pass with the answer in place)."""
    rng, right = Random(seed), 0
    for _ in range(count):
        exam = text.examination(rng, task, fillers)
        prompt = "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in exam.messages) + "<|assistant|>\n"
        start = len(tokenizer.encode(prompt).ids)
        ids = torch.tensor([tokenizer.encode(prompt + exam.answer + "<|end|>").ids])
        logits = model(ids, *rotary(shape, ids.shape[1]))
        right += bool((logits[0, start - 1 : -1].argmax(-1) == ids[0, start:]).all())
    return right / count


def train(shape: Shape, steps: int, tokens: int, tokenizer: Tokenizer, log: Path, *, plain: bool, exams: int, stop: int) -> Decoder:
    torch.manual_seed(SEED)
    model = Decoder(shape)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "layers" not in n]
    first = (
        torch.optim.AdamW(matrices, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
        if plain
        else torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    )
    optimizers: list[torch.optim.Optimizer] = [first, torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)]
    base = [g["lr"] for o in optimizers for g in o.param_groups]
    started = time.monotonic()
    made = batches(tokenizer, steps, tokens, shape.longest)
    for step, (ids, weights) in enumerate(itertools.islice(made, stop)):
        rate = min((step + 1) / 100, 1.02 - step / steps)
        for group, lr in zip([g for o in optimizers for g in o.param_groups], base, strict=True):
            group["lr"] = lr * rate
        with torch.autocast("cpu", torch.bfloat16, enabled=not plain):
            logits = model(ids[:, :-1], *rotary(shape, ids.shape[1] - 1))
        losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        wanted = weights[:, 1:].flatten()
        loss = (losses * wanted).sum() / wanted.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0:
            answers = float(losses.detach()[wanted > PROMPT_WEIGHT].mean())
            line = f"{step} {time.monotonic() - started:.0f}s row {ids.shape[1] - 1} loss {loss.item():.4f} answers {answers:.4f}"
            if step % 200 == 0 and step:
                scores = [f"{t}@{f} {exact_match(model, shape, tokenizer, t, f, exams, 7):.2f}" for t in text.TASKS for f in (0, 8, 60)]
                line += " | " + " ".join(scores)
                torch.save(model.state_dict(), log.with_suffix(".pt"))
            with log.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
    return model


def with_outliers(tensors: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Gives the model outlier channels, as large models have them, without changing what it computes.

    A few inputs of each matrix are multiplied by a power of two, and what feeds them (norm weight, or rows of up_proj) is divided by it:
    exact in bf16. Without it so small a model quantizes almost for free, and would tell nothing about a quantizer. Where the shape has
    ``loud`` channels, as many again are divided and what feeds them multiplied: large activations that meet small weights.
    """
    rng = Random(SEED)

    def scales(count: int) -> Tensor:
        chosen = torch.ones(count, dtype=torch.bfloat16)
        each = count // OUTLIER_SHARE
        for at, channel in enumerate(rng.sample(range(count), each * (2 if shape.loud else 1))):
            chosen[channel] = OUTLIER if at < each else 1 / OUTLIER
        return chosen

    for i in range(shape.layers):
        at = f"model.layers.{i}"
        pairs = [("input_layernorm", "self_attn.qkv_proj"), ("post_attention_layernorm", "mlp.gate_up_proj")]
        for norm, matrix in pairs:
            factor = scales(HIDDEN)
            tensors[f"{at}.{norm}.weight"] /= factor
            tensors[f"{at}.{matrix}.weight"] *= factor
        factor = scales(INNER)
        tensors[f"{at}.mlp.gate_up_proj.weight"][INNER:] /= factor[:, None]
        tensors[f"{at}.mlp.down_proj.weight"] *= factor
    return tensors


def named(tensors: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Under the names of the checkpoint: fused as in Phi-3, or cut into their parts."""
    if shape.fused:
        return tensors
    kv = shape.kv_heads * HEAD_DIM
    parts = {
        "qkv_proj": {"q_proj": (0, HIDDEN), "k_proj": (HIDDEN, HIDDEN + kv), "v_proj": (HIDDEN + kv, HIDDEN + 2 * kv)},
        "gate_up_proj": {"gate_proj": (0, INNER), "up_proj": (INNER, 2 * INNER)},
    }
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        fused = next((part for part in parts if part in name), None)
        cuts = {name: (0, len(tensor))} if fused is None else {name.replace(fused, part): cut for part, cut in parts[fused].items()}
        out |= {part: tensor[start:stop].contiguous() for part, (start, stop) in cuts.items()}
    return out


def save(model: Decoder, shape: Shape, tokenizer: Tokenizer, out: Path) -> None:
    """Writes bf16 safetensors under the names of its ``model_type``, with config and tokenizer files."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        ("" if n.startswith("lm_head") else "model.") + n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()
    }
    save_file(named(with_outliers(tensors, shape), shape), str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(shape.config, indent=2) + "\n", encoding="utf-8")
    end, assistant, eot = (tokenizer.token_to_id(t) for t in ("<|end|>", "<|assistant|>", "<|endoftext|>"))
    generation = {"bos_token_id": 1, "eos_token_id": [end, assistant, eot], "pad_token_id": eot}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, out, CONTEXT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="phi3")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--stop", type=int, help="end after so many of the steps, with the learning rates of all (default: all)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--plain", action="store_true", help="float32 and AdamW alone")
    parser.add_argument("--exams", type=int, default=40, help="prompts a task and length, every 200 steps")
    parser.add_argument("--threads", type=int, help="PyTorch's (default: its own choice)")
    parser.add_argument("--log", type=Path, default=Path("tiny-phi.log"))
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape = SHAPES[arguments.shape]
    tokenizer = make_tokenizer(SEED, CONTEXT)
    model = train(
        shape,
        arguments.steps,
        arguments.tokens,
        tokenizer,
        arguments.log,
        plain=arguments.plain,
        exams=arguments.exams,
        stop=arguments.stop or arguments.steps,
    )
    save(model, shape, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
