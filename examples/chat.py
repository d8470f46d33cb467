"""Stream an answer: python examples/chat.py DIR "turn on the kitchen light" """

import sys

import edgekit


def main(directory: str, prompt: str) -> None:
    with edgekit.load(directory) as runtime:
        for step in runtime.chat([{"role": "user", "content": prompt}], max_tokens=200):
            print(step.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main(*sys.argv[1:])
