"""``edge targets``, ``edge devices`` and ``edge models``."""

from edgekit.commands.common import Json, command


@command
def targets(json: Json = False) -> None:
    """List what can be built for, and how far each was tried."""
    from dataclasses import asdict

    from edgekit import console, listing
    from edgekit.target import targets as known

    if json:
        console.show_json([asdict(target) for target in known()])
    else:
        console.show_table(*listing.target_table(known()))


@command
def devices(json: Json = False) -> None:
    """List the devices that `edge plan` knows: memory, bandwidth, and what runs there."""
    from dataclasses import asdict

    from edgekit import console, listing
    from edgekit.device import devices as known

    if json:
        console.show_json([asdict(device) for device in known()])
    else:
        console.show_table(*listing.device_table(known()))


@command
def models(json: Json = False) -> None:
    """List the models that have a short name."""
    from dataclasses import asdict

    from edgekit import console, listing
    from edgekit.catalog import catalogue

    if json:
        console.show_json([asdict(entry) for entry in catalogue()])
    else:
        console.show_table(*listing.model_table(catalogue()))
