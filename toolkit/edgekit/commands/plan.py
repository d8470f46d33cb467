"""``edge plan``."""

from typing import Annotated

import typer

from edgekit.commands.common import Json, command


@command
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A name from `edge models`, org/name[@revision] of the Hugging Face hub, or a directory.",
        ),
    ],
    target: Annotated[
        str | None, typer.Option("--target", help="A name from `edge targets` or a .toml file. Default: all of them.", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="A name from `edge devices` or a .toml file. Default: a table over all.")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens of prompt and answer. Default: 4096, or what target and model hold.")
    ] = None,
    scheme: Annotated[str | None, typer.Option("--scheme", help="Quantization, instead of the target's.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what has been downloaded before.")] = False,
    json: Json = False,
) -> None:
    """Say, before anything is built, whether a model fits a device and how fast it will be. Downloads no weights."""
    from edgekit import console, plan_report
    from edgekit.plan import find

    report = plan_report.report(find(model, revision=revision, offline=offline), target, device, scheme=scheme, context=context)
    if json:
        console.show_json(report.as_json())
    elif report.pairs:
        console.show_pairs(report.pairs)
    else:
        console.show_table(*report.table)
    if report.problem is not None:
        console.notice(f"edge: error: {report.problem}")
        raise typer.Exit(report.problem.exit_code)
