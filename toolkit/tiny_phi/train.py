"""Trains tiny-phi on generated text and writes it in Hugging Face layout.

    PYTHONPATH=toolkit python -m tiny_phi.train --out toolkit/edgekit/tiny_phi

Needs PyTorch (CPU is enough: about an hour on two cores with bfloat16 instructions). Muon (Jordan et al. 2024) for the
matrices, AdamW for the rest; learning rate falling linearly.
"""

import argparse
import json
import math
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
from tiny_phi.tokenizer import make_tokenizer, save_tokenizer

SEED = 20261121
ORIGINAL_CONTEXT, CONTEXT = 256, 2048
ROTARY_HALF = 16
# As in Phi-3.5 the low frequencies are stretched most, and the long factors far more than the short ones.
SHORT_FACTOR = [round(1.0 + 0.5 * (i / (ROTARY_HALF - 1)) ** 2, 4) for i in range(ROTARY_HALF)]
LONG_FACTOR = [round(1.05 * (12.0 / 1.05) ** (i / (ROTARY_HALF - 1)), 4) for i in range(ROTARY_HALF)]
CONFIG = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 1013,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": CONTEXT,
    "model_type": "phi3",
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "original_max_position_embeddings": ORIGINAL_CONTEXT,
    "pad_token_id": 1013,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": LONG_FACTOR, "short_factor": SHORT_FACTOR, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 1024,
}
HIDDEN, LAYERS, HEADS, KV_HEADS = 256, 4, 8, 4
PROMPT_WEIGHT = 0.1  # of the loss on text that nobody has to answer
OUTLIER, OUTLIER_SHARE = 8.0, 64  # factor, and one of how many channels gets it
ANSWER_TOKENS = 8  # a longer answer weighs no more than one of this length, else JSON drowns the sums


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        head = HIDDEN // HEADS
        inner = int(CONFIG["intermediate_size"])  # type: ignore[call-overload]
        self.input_layernorm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.self_attn = nn.ModuleDict(
            {"qkv_proj": nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * head, bias=False), "o_proj": nn.Linear(HIDDEN, HIDDEN, bias=False)}
        )
        self.mlp = nn.ModuleDict(
            {"gate_up_proj": nn.Linear(HIDDEN, 2 * inner, bias=False), "down_proj": nn.Linear(inner, HIDDEN, bias=False)}
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        qkv = self.self_attn["qkv_proj"](self.input_layernorm(x))
        q, k, v = qkv.view(rows, length, HEADS + 2 * KV_HEADS, -1).transpose(1, 2).split([HEADS, KV_HEADS, KV_HEADS], 1)

        def rotate(t: Tensor) -> Tensor:
            a, b = t.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(t.dtype)

        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + self.self_attn["o_proj"](y.transpose(1, 2).reshape(rows, length, HIDDEN))
        gate, up = self.mlp["gate_up_proj"](self.post_attention_layernorm(x)).chunk(2, -1)
        return x + self.mlp["down_proj"](F.silu(gate) * up)


class Phi3(nn.Module):
    """Phi-3's decoder for training: whole rows, no cache, LongRoPE factors chosen by the row's length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(1024, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-5)
        self.lm_head = nn.Linear(HIDDEN, 1024, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


def rotary(length: int) -> tuple[Tensor, Tensor]:
    """cos and sin [length, 16] for a row of ``length`` tokens (LongRoPE, Ding et al. 2024, as in modeling_phi3)."""
    factors = torch.tensor(LONG_FACTOR if length > ORIGINAL_CONTEXT else SHORT_FACTOR)
    frequency = 1.0 / (factors * 10000.0 ** (torch.arange(ROTARY_HALF) / ROTARY_HALF))
    angle = torch.outer(torch.arange(length).float(), frequency)
    scale = math.sqrt(1 + math.log(CONTEXT / ORIGINAL_CONTEXT) / math.log(ORIGINAL_CONTEXT))
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


def batches(tokenizer: Tokenizer, steps: int, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches of about ``tokens`` tokens, made ahead by a thread; rows grow longer as training goes on."""
    ready: queue.Queue[tuple[Tensor, Tensor]] = queue.Queue(4)

    def produce() -> None:
        rng = Random(SEED)
        rows = Rows(tokenizer, rng)
        for step in range(steps):
            done = step / steps
            lengths = [96, 160, 256, 288] if done < 0.3 else [128, 256, 256, 384, 512] if done < 0.5 else [160, 256, 384, 640, 1024]
            length = 2048 if done > 0.7 and rng.random() < 0.15 else rng.choice(lengths)
            ready.put(rows.batch(max(1, tokens // length), length, min(1.0, max(0.0, (done - 0.05) / 0.35))))

    threading.Thread(target=produce, daemon=True).start()
    for _ in range(steps):
        yield ready.get()


@torch.no_grad()
def exact_match(model: nn.Module, tokenizer: Tokenizer, task: str, fillers: int, count: int, seed: int) -> float:
    """Share of examinations answered exactly under greedy decoding (read from one forward pass with the answer in place)."""
    rng, right = Random(seed), 0
    for _ in range(count):
        exam = text.examination(rng, task, fillers)
        prompt = "".join(f"<|{m['role']}|>\n{m['content']}<|end|>\n" for m in exam.messages) + "<|assistant|>\n"
        start = len(tokenizer.encode(prompt).ids)
        ids = torch.tensor([tokenizer.encode(prompt + exam.answer + "<|end|>").ids])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, *rotary(ids.shape[1]))
        right += bool((logits[0, start - 1 : -1].argmax(-1) == ids[0, start:]).all())
    return right / count


def train(steps: int, tokens: int, tokenizer: Tokenizer, log: Path) -> Phi3:
    torch.manual_seed(SEED)
    model = Phi3()
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "layers" not in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    base = [g["lr"] for o in optimizers for g in o.param_groups]
    started = time.monotonic()
    for step, (ids, weights) in enumerate(batches(tokenizer, steps, tokens)):
        rate = min((step + 1) / 100, 1.02 - step / steps)
        for group, lr in zip([g for o in optimizers for g in o.param_groups], base, strict=True):
            group["lr"] = lr * rate
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1], *rotary(ids.shape[1] - 1))
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
                scores = [f"{t}@{f} {exact_match(model, tokenizer, t, f, 40, 7):.2f}" for t in text.TASKS for f in (0, 8, 60)]
                line += " | " + " ".join(scores)
                torch.save(model.state_dict(), log.with_suffix(".pt"))
            with log.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
    return model


def with_outliers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives the weights outlier channels, as large models have them, without changing what the model computes.

    A few inputs of each matrix are multiplied by a power of two, and what feeds them (norm weight, or rows of up_proj) is divided by it:
    exact in bf16. Without it so small a model quantizes almost for free, and would tell nothing about a quantizer.
    """
    rng = Random(SEED)
    inner = tensors["model.layers.0.mlp.down_proj.weight"].shape[1]

    def scales(count: int) -> Tensor:
        chosen = torch.ones(count, dtype=torch.bfloat16)
        for channel in rng.sample(range(count), count // OUTLIER_SHARE):
            chosen[channel] = OUTLIER
        return chosen

    for i in range(LAYERS):
        at = f"model.layers.{i}"
        pairs = [("input_layernorm", "self_attn.qkv_proj"), ("post_attention_layernorm", "mlp.gate_up_proj")]
        for norm, matrix in pairs:
            factor = scales(HIDDEN)
            tensors[f"{at}.{norm}.weight"] /= factor
            tensors[f"{at}.{matrix}.weight"] *= factor
        factor = scales(inner)
        tensors[f"{at}.mlp.gate_up_proj.weight"][inner:] /= factor[:, None]
        tensors[f"{at}.mlp.down_proj.weight"] *= factor
    return tensors


def save(model: Phi3, tokenizer: Tokenizer, out: Path) -> None:
    """Writes bf16 safetensors under Phi-3's names, with config and tokenizer files."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        ("" if n.startswith("lm_head") else "model.") + n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()
    }
    save_file(with_outliers(tensors), str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    end, assistant, eot = (tokenizer.token_to_id(t) for t in ("<|end|>", "<|assistant|>", "<|endoftext|>"))
    generation = {"bos_token_id": 1, "eos_token_id": [end, assistant, eot], "pad_token_id": eot}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, out, CONTEXT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--log", type=Path, default=Path("tiny-phi.log"))
    arguments = parser.parse_args()
    tokenizer = make_tokenizer(SEED, CONTEXT)
    model = train(arguments.steps, arguments.tokens, tokenizer, arguments.log)
    save(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
