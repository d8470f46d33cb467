"""``edge run`` and ``edge chat``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands.common import Directory, Json, Threads, TrustedKey, command, make_trust

System = Annotated[str | None, typer.Option("--system", help="System message before the conversation.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Most tokens of an answer. Default: what the context holds.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End the answer before this text; may be repeated.", show_default=False)]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the most likely token each time.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Draw from the K most likely tokens; 0 from all.")]
TopP = Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Draw from the fewest tokens whose probability adds up to P.")]
MinP = Annotated[float, typer.Option("--min-p", min=0.0, max=1.0, help="Leave out tokens less likely than P times the likeliest.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", min=0.01, help="Above 1, tokens already there become less likely.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="The same seed draws the same answer.")]
JsonSchema = Annotated[Path | None, typer.Option("--json-schema", metavar="FILE", help="Answer with JSON that is valid under this schema.")]
Regex = Annotated[str | None, typer.Option("--regex", metavar="RE", help="Answer with text that this expression matches from end to end.")]
Grammar = Annotated[Path | None, typer.Option("--grammar", metavar="FILE", help="Answer with text of this Lark grammar.")]
Lookup = Annotated[
    int,
    typer.Option(
        "--lookup", min=0, help="Guess up to N tokens ahead from the text so far: same answer, sooner. Refused where it would change it."
    ),
]


@command
def run(
    directory: Directory,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", show_default=False, help="What to ask; `-` or nothing reads stdin.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    system: System = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    lookup: Lookup = 0,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: Grammar = None,
    threads: Threads = None,
    trusted_key: TrustedKey = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show tokens a second and time to first token on stderr.")] = False,
    json: Json = False,
) -> None:
    """Answer one prompt."""
    from edgekit import console, talk
    from edgekit.runtime import load

    sampling = talk.make_sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    asked = talk.read_prompt(prompt, sys.stdin)
    form = talk.read_form(json_schema, regex, grammar)
    with load(directory, threads=threads, trust=make_trust(trusted_key)) as runtime:
        steps = talk.steps_for(
            runtime, asked, sampling, system=system, raw=raw, max_tokens=max_tokens, stop=stop or [], lookup=lookup, form=form
        )
        answer = talk.take(steps, console.hide if json else console.stream)
    if json:
        console.show_json(answer.as_json())
    else:
        console.stream("\n")
    if stats:
        console.notice(answer.as_line())
    if answer.finish == "interrupted":
        raise KeyboardInterrupt


@command
def chat(
    directory: Directory,
    system: System = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    lookup: Lookup = 0,
    threads: Threads = None,
    trusted_key: TrustedKey = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show tokens a second after each answer.")] = False,
) -> None:
    """Talk with a model; /reset forgets, /exit leaves, Ctrl-C ends an answer."""
    from edgekit import console, talk
    from edgekit.runtime import load

    sampling = talk.make_sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with load(directory, threads=threads, trust=make_trust(trusted_key)) as runtime:
        talk.converse(
            runtime,
            sampling,
            system=system,
            max_tokens=max_tokens,
            stop=stop or [],
            lookup=lookup,
            stats=stats,
            show=console.stream,
            read=talk.ask,
        )
