"""Three sampled answers that can be repeated, with their speed: python examples/sample.py DIR "Say hello." """

import sys

import edgekit


def main(directory: str, prompt: str) -> None:
    with edgekit.load(directory) as runtime:
        for seed in range(3):
            sampling = edgekit.Sampling(temperature=0.8, top_p=0.95, seed=seed)
            answer = runtime.complete([{"role": "user", "content": prompt}], sampling=sampling, max_tokens=40, stop="\n\n")
            print(f"seed {seed}: {answer.text!r} ({answer.finish}, {answer.tokens_per_second:.0f} tokens/s)")


if __name__ == "__main__":
    main(*sys.argv[1:])
