"""Constrain an answer with a logit processor: python examples/numbers_only.py DIR "What is 12 plus 30?"

A processor is any callable that gets the tokens so far and the logits, and returns logits; -inf forbids a token.
"""

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import edgekit


def main(directory: str, prompt: str) -> None:
    with edgekit.load(directory) as runtime:
        vocabulary = range(runtime.manifest.tokens.vocab_size)
        allowed = {token for token in vocabulary if runtime.tokenizer.decode([token]).strip().isdecimal()}
        allowed |= set(runtime.manifest.tokens.stop)
        forbidden = np.array([token not in allowed for token in vocabulary])

        def numbers_only(tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
            logits[forbidden] = -np.inf
            return logits

        answer = runtime.complete([{"role": "user", "content": prompt}], processors=[numbers_only], max_tokens=8)
        print(answer.text)


if __name__ == "__main__":
    main(*sys.argv[1:])
