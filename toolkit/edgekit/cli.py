"""The ``edge`` command: parse, call, print. Every other import waits until its command runs, so that ``edge --help`` is quick."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer

from edgekit import __version__
from edgekit.errors import EdgekitError, EngineError

P = ParamSpec("P")
INTERRUPTED = 130

app = typer.Typer(
    name="edge",
    help="Quantize a small language model once and run it on any edge engine.",
    epilog="Exit codes: 0 done, 1 anything else, 2 usage, 3 model, 4 target, 5 engine missing, 6 artifact, 7 context overrun, "
    "8 chat template, 9 output, 10 download, 11 engine, 12 fidelity, 130 Ctrl-C.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; errors too.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact that `edge build` made.", show_default=False)]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the engine. Default: its own choice.")]
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
Lookup = Annotated[int, typer.Option("--lookup", min=0, help="Guess up to N tokens ahead from the text so far: same answer, sooner.")]


def _command(call: Callable[P, None]) -> Callable[P, None]:
    """Turns an EdgekitError into its message and exit code, Ctrl-C into 130, and a closed pipe into a quiet end."""

    @functools.wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from edgekit import console

        console.make_safe()
        try:
            call(*args, **kwargs)
        except EdgekitError as error:
            _fail(error, {} if kwargs.get("json") else None)
        except KeyboardInterrupt:
            print("\nedge: interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # What is still buffered has nowhere to go; else the interpreter would complain while it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None

    return wrapped


def _fail(error: EdgekitError, document: dict[str, object] | None) -> NoReturn:
    """The message on stderr, ``document`` with the error in it on stdout, and the exit code."""
    from edgekit import console

    if document is not None:
        console.show_json({"error": _described(error), **document})
    print(f"edge: error: {error}", file=sys.stderr)
    raise typer.Exit(error.exit_code) from None


def _described(error: EdgekitError) -> dict[str, object]:
    return {"kind": type(error).__name__, "message": str(error), "exit_code": error.exit_code}


def _version(asked: bool) -> None:
    if asked:
        print(f"edgekit {__version__}")
        raise typer.Exit


@app.callback()
def edge(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)] = False,
) -> None:
    pass


@app.command()
@_command
def build(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A name from `edge models`, org/name[@revision] of the Hugging Face hub, or a directory.",
        ),
    ],
    target: Annotated[list[str], typer.Option("--target", help="A name from `edge targets` or a .toml file; may be repeated.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory to write; with several targets, the one to write them into. Default: MODEL-TARGET."),
    ] = None,
    scheme: Annotated[str | None, typer.Option("--scheme", help="Quantization, instead of the target's.")] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, help="Context in tokens, instead of the target's.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what has been downloaded before.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is already there.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Quantize anew, and keep nothing for the next build.")] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="A text like what the model will meet, to fit 4-bit weights to (GPTQ).", show_default=False),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not try the artifact; its manifest says so.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads to work with. Default: every core.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")] = False,
    json: Json = False,
) -> None:
    """Quantize a model and write an artifact for each target."""
    from edgekit import console, listing
    from edgekit.build import build as build_artifact
    from edgekit.build import check_request, outputs
    from edgekit.resources import read_text

    text = read_text(calibrate) if calibrate is not None else None
    places = outputs(model, target, out)
    for name, directory in places:
        check_request(name, directory, scheme=scheme, force=force)
    written: list[dict[str, object]] = []
    for name, directory in places:
        try:
            with console.progress(quiet=quiet or json) as progress:
                manifest = build_artifact(
                    model,
                    target=name,
                    output=directory,
                    scheme=scheme,
                    revision=revision,
                    context=context,
                    offline=offline,
                    force=force,
                    cached=not no_cache,
                    verify=not no_verify,
                    calibration=text,
                    progress=progress,
                    threads=threads,
                )
        except EdgekitError as error:
            _fail(error, {"written": written} if json else None)
        written.append({"directory": str(directory), **listing.summary(manifest)})
        if not (quiet or json):
            print(f"{directory}: {listing.headline(manifest)}")
        if reason := manifest.conformance.greedy.reason:
            print(f"edge: note: {directory} is built, but was not tried here: {reason}", file=sys.stderr)
    if json:
        console.show_json(written)


@app.command()
@_command
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
    stats: Annotated[bool, typer.Option("--stats", help="Show tokens a second and time to first token on stderr.")] = False,
    json: Json = False,
) -> None:
    """Answer one prompt."""
    from edgekit import console, talk
    from edgekit.runtime import load

    sampling = talk.make_sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    asked = talk.read_prompt(prompt, sys.stdin)
    form = talk.read_form(json_schema, regex, grammar)
    with load(directory, threads=threads) as runtime:
        steps = talk.steps_for(
            runtime, asked, sampling, system=system, raw=raw, max_tokens=max_tokens, stop=stop or [], lookup=lookup, form=form
        )
        answer = talk.take(steps, console.hide if json else console.stream)
    if json:
        console.show_json(answer.as_json())
    else:
        console.stream("\n")
    if stats:
        print(answer.as_line(), file=sys.stderr)
    if answer.finish == "interrupted":
        raise KeyboardInterrupt


@app.command()
@_command
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
    stats: Annotated[bool, typer.Option("--stats", help="Show tokens a second after each answer.")] = False,
) -> None:
    """Talk with a model; /reset forgets, /exit leaves, Ctrl-C ends an answer."""
    from edgekit import console, talk
    from edgekit.runtime import load

    sampling = talk.make_sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with load(directory, threads=threads) as runtime:
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


@app.command()
@_command
def inspect(
    directory: Directory,
    check: Annotated[bool, typer.Option("--check", help="Read every file and compare its digest.")] = False,
    json: Json = False,
) -> None:
    """Show what an artifact is: model, scheme, context, stop set, files."""
    from edgekit import console, listing
    from edgekit.artifact import check_digests, load_artifact

    artifact = load_artifact(directory)
    if check:
        with console.progress(quiet=json) as progress:
            check_digests(artifact, progress)
    if json:
        console.show_json_text(artifact.manifest.to_json().rstrip("\n"))
    else:
        console.show_pairs(listing.description(artifact.manifest, checked=check))


@app.command()
@_command
def verify(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Artifacts that `edge build` made.", show_default=False)],
    no_run: Annotated[bool, typer.Option("--no-run", help="Check and compare files only; no engine need be here.")] = False,
    against: Annotated[
        str | None, typer.Option("--against", metavar="MODEL", help="Measure fidelity to this model, unquantized.", show_default=False)
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="With --against: measure on this text. Default: edgekit's own.", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="With --against: 4,096 positions instead of 256.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="With --against: write the report as a page.", show_default=False)] = None,
    max_kl: Annotated[float | None, typer.Option("--max-kl", min=0.0, help="With --against: fail above this mean KL divergence.")] = None,
    min_top1: Annotated[
        float | None, typer.Option("--min-top1", min=0.0, max=1.0, help="With --against: fail below this share of same likeliest tokens.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="With several DIR: what to ask; may be repeated. Default: chats and texts of the manifest."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="With several DIR: most tokens of an answer.")] = 32,
    margin: Annotated[
        float, typer.Option("--margin", min=0.0, help="With several DIR: logits by which another token may lead and still count as a tie.")
    ] = 0.5,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress; nothing at all where all is right.")] = False,
    json: Json = False,
) -> None:
    """Check that artifacts are what was built, say the same, and are faithful to their model."""
    from edgekit import console, examination

    wishes = examination.Wishes(
        run=not no_run,
        against=against,
        text=text,
        full=full,
        html=html,
        max_kl=max_kl,
        min_top1=min_top1,
        prompts=tuple(prompt or ()),
        tokens=tokens,
        margin=margin,
        threads=threads,
    )
    with console.progress(quiet=quiet or json) as progress:
        found = examination.examine(directories, wishes, progress)
    if json:
        console.show_json(found.as_json())
    elif not quiet:
        print("\n".join(found.as_lines()))
    for problem in found.problems:
        print(f"edge: error: {problem.message}", file=sys.stderr)
    if found.problems:
        raise typer.Exit(found.problems[0].exit_code)


@app.command()
@_command
def targets(json: Json = False) -> None:
    """List what can be built for, and how far each was tried."""
    from dataclasses import asdict

    from edgekit import console, listing
    from edgekit.target import targets as known

    if json:
        console.show_json([asdict(target) for target in known()])
    else:
        console.show_table(*listing.target_table(known()))


@app.command()
@_command
def models(json: Json = False) -> None:
    """List the models that have a short name."""
    from dataclasses import asdict

    from edgekit import console, listing
    from edgekit.catalog import catalogue

    if json:
        console.show_json([asdict(entry) for entry in catalogue()])
    else:
        console.show_table(*listing.model_table(catalogue()))


@app.command()
@_command
def doctor(json: Json = False) -> None:
    """Show what is installed and which engines work here, and what to do about the rest."""
    from edgekit import console, listing
    from edgekit.doctor import as_json, diagnose

    found = diagnose()
    if json:
        console.show_json(as_json(found))
    else:
        console.show_pairs(listing.diagnosis(found))
    if not found.well:
        raise typer.Exit(EngineError.exit_code)


cache = typer.Typer(help="Quantized weights kept for the next build.", rich_markup_mode=None, no_args_is_help=True)
app.add_typer(cache, name="cache")


@cache.command("list")
@_command
def list_cache(json: Json = False) -> None:
    """Show where the cache is and what it holds, last used first."""
    from edgekit import console, listing
    from edgekit.cache import groups, open_cache

    opened = open_cache()
    held = groups(opened)
    if json:
        console.show_json(listing.cache_facts(opened, held))
    else:
        console.show_pairs(listing.cache_summary(opened, held))
        console.show_table(*listing.cache_table(held))


@cache.command()
@_command
def prune(
    limit: Annotated[str | None, typer.Option("--limit", metavar="SIZE", help="Keep at most this much, such as 5GB.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Keep nothing.")] = False,
    json: Json = False,
) -> None:
    """Remove what was not used for longest, down to the limit (EDGEKIT_CACHE_LIMIT, or 20 GB)."""
    from dataclasses import asdict

    from edgekit import console, listing
    from edgekit.cache import open_cache, pruning_limit
    from edgekit.cache import prune as prune_cache

    opened = open_cache()
    pruned = prune_cache(opened, pruning_limit(opened, limit, everything=everything))
    if json:
        console.show_json({"directory": str(opened.directory), **asdict(pruned)})
    else:
        print(listing.pruned_line(pruned))


def main() -> None:
    """The console script. A polite kill or a closed terminal cleans up as Ctrl-C does: the exception passes through every ``finally``."""
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    app()


if __name__ == "__main__":
    main()
