"""``edge build``."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands.common import Json, command, fail
from edgekit.errors import EdgekitError, UsageError


@command
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
    device: Annotated[
        str | None, typer.Option("--device", help="A name from `edge devices` or a .toml file: refuse early what cannot fit there.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use only what has been downloaded before.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is already there.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Quantize anew, and keep nothing for the next build.")] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="FILE|default",
            help="Fit 4-bit weights to a text like what the model will meet, or to one that comes with edgekit.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="How 4-bit weights are rounded: minmax, search or equalize (the default) by themselves; awq, gptq or awq-gptq (the "
            "default with --calibrate) for a text.",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        float | None, typer.Option("--bits", min=0.0, help="Mixed precision: storage for each weight, such as 4.5.", show_default=False)
    ] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", metavar="SIZE", help="Mixed precision: size of all weights, such as 2.4GB.", show_default=False)
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", min=0.0, help="Ship nothing above this mean KL divergence. Default: the scheme's.", show_default=False),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            min=0.0,
            max=1.0,
            help="Ship nothing below this share of same likeliest tokens. Default: the scheme's.",
            show_default=False,
        ),
    ] = None,
    verify_full: Annotated[
        bool, typer.Option("--verify-full", help="Measure the artifact itself too, by its engine, on more text; takes many minutes.")
    ] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Measure and try nothing; the manifest says so.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads to work with. Default: every core.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")] = False,
    json: Json = False,
) -> None:
    """Quantize a model and write an artifact for each target."""
    from edgekit import console, listing
    from edgekit.build import carry_out
    from edgekit.cache import parse_size
    from edgekit.fidelity_gate import Limits
    from edgekit.fitting import BEST
    from edgekit.prepare import Order, outputs, prepare
    from edgekit.resources import read_text

    if no_verify and (verify_full or max_kl is not None or min_top1 is not None):
        raise UsageError("--verify-full, --max-kl and --min-top1 contradict --no-verify; give one of them")
    text = read_text(Path(calibrate)) if calibrate is not None and calibrate != "default" else None
    method = method or (BEST if calibrate is not None else None)
    size = parse_size(fit, "--fit") if fit is not None else None
    order = Order(
        model,
        scheme=scheme,
        revision=revision,
        context=context,
        device=device,
        offline=offline,
        force=force,
        cached=not no_cache,
        verify=not no_verify,
        full=verify_full,
        limits=Limits(max_kl, min_top1),
        calibration=text,
        method=method,
        bits=bits,
        fit_bytes=size,
        threads=threads,
    )
    with console.progress(quiet=quiet or json) as progress:
        jobs = prepare(order, outputs(model, target, out), progress)
    written: list[dict[str, object]] = []
    for job in jobs:
        try:
            with console.progress(quiet=quiet or json) as progress:
                manifest = carry_out(job, progress)
        except EdgekitError as error:
            fail(error, {"written": written} if json else None)
        written.append({"directory": str(job.output), **listing.summary(manifest)})
        if not (quiet or json):
            console.show(f"{job.output}: {listing.headline(manifest)}")
        if reason := manifest.conformance.greedy.reason:
            console.notice(f"edge: note: {job.output} is built, but was not tried here: {reason}")
    if json:
        console.show_json(written)
