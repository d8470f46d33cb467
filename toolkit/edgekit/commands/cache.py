"""``edge cache``."""

from typing import Annotated

import typer

from edgekit.commands.common import Json, command

cache = typer.Typer(help="Quantized weights kept for the next build.", rich_markup_mode=None, no_args_is_help=True)


@cache.command("list")
@command
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
@command
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
        console.show(listing.pruned_line(pruned))
