"""``edge serve``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands.common import Directory, MinRelease, Threads, TrustedKey, command, make_trust
from edgekit.errors import UsageError

KEY = "EDGE_API_KEY"


@command
def serve(
    directory: Directory,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")] = 8080,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help=f"What clients have to send. Default: {KEY}, if it is set.", show_default=False)
    ] = None,
    no_api_key: Annotated[bool, typer.Option("--no-api-key", help="Let other machines in without a key.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="Name by which clients address it; may be repeated.", show_default=False),
    ] = None,
    model_name: Annotated[str | None, typer.Option("--model-name", help="What clients ask for. Default: the artifact's.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Most tokens of an answer. Default: what the context holds.")
    ] = None,
    max_body: Annotated[int, typer.Option("--max-body", min=1024, help="Bytes of a request.")] = 4 << 20,
    max_messages: Annotated[int, typer.Option("--max-messages", min=1, help="Of a conversation.")] = 1024,
    max_choices: Annotated[int, typer.Option("--max-choices", min=1, help="Answers of a request (n).")] = 16,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests that may wait; the next is told to come back (429).")] = 64,
    timeout: Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds for a request, its wait included.")] = 600.0,
    drain: Annotated[float, typer.Option("--drain", min=1.0, help="Seconds for answers under way when it is told to end.")] = 30.0,
    forget: Annotated[
        bool, typer.Option("--forget", help="Keep nothing of a request for the next: cached_tokens and time tell what others asked.")
    ] = False,
    threads: Threads = None,
    trusted_key: TrustedKey = None,
    min_release: MinRelease = 0,
) -> None:
    """Serve an artifact to OpenAI's clients, with a chat page at /."""
    from edgekit.artifact import load_artifact
    from edgekit.server.settings import Limits, Settings, check_exposure

    artifact = load_artifact(directory, trust=make_trust(trusted_key, min_release))
    settings = Settings(
        model=artifact.manifest.model.name if model_name is None else model_name,
        host=host,
        port=port,
        key=_key(api_key_file),
        hosts=tuple(allow_host or ()),
        drain=drain,
        forget=forget,
        limits=Limits(queue=queue, seconds=timeout, body=max_body, messages=max_messages, choices=max_choices, tokens=max_tokens),
    )
    check_exposure(settings, insecure=no_api_key)
    from edgekit.server import run

    run.serve(artifact, settings, threads=threads)


def _key(path: Path | None) -> str | None:
    """Not an option: others see the arguments of a process."""
    if path is None:
        return os.environ.get(KEY)
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {path} cannot be read: {error}") from None
