"""How long a conversation has room in an application on a loader of others: GenAI reserves keys and values for as many tokens as it is told
to, so that a kit may ask for no more than a device lets one app use."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from edgekit import strict_json
from edgekit.artifact import Artifact
from edgekit.build import SMALLEST_CONTEXT
from edgekit.device import DeviceProfile, Unit, devices, load_device
from edgekit.engines import ENGINES
from edgekit.engines.exported import Held
from edgekit.errors import ArtifactError, EdgekitError, UsageError
from edgekit.models import architecture
from edgekit.packagers.kinds import listed, of_artifact, of_target
from edgekit.target import load_target, target_names

ANSWER = 1024
"""Tokens that an answer has room for unless the app asks for others."""


@dataclass(frozen=True)
class Place:
    """Where packages of a kind run. kinds: of device profiles. usual: provider -> the profile that is meant where nobody says which.
    most: bytes that no such app gets, whatever the device. copies: of the keys and values, that the loader holds at once."""

    kinds: Sequence[str]
    usual: dict[str, str]
    most: int | None = None
    copies: int = 1


@dataclass(frozen=True)
class Room:
    """Bytes, and tokens of prompt and answer together. device: whose memory it is. limit: most tokens of a conversation."""

    device: str
    memory: int
    fixed: int
    cache: int
    activation: int
    limit: int

    def length(self, prompt: int, most: int = ANSWER) -> int:
        """Tokens that a kit has its loader reserve for ``prompt`` tokens and an answer of at most ``most``: as Model.kt and Model.cs do."""
        return prompt + min(most, self.limit - prompt)

    def reserved(self, prompt: int, most: int = ANSWER) -> int:
        """Bytes of keys and values of that."""
        return self.cache * self.length(prompt, most)


def facts(room: Room) -> dict[str, object]:
    """What templates speak of."""
    return {
        "room": room.limit,
        "answer": ANSWER,
        "device": room.device,
        "memory_mb": f"{room.memory / 1e6:,.0f}",
        "fixed_mb": f"{room.fixed / 1e6:,.0f}",
        "cache_kb": f"{room.cache / 1e3:,.0f}",
        "activation_kb": f"{room.activation / 1e3:,.0f}",
    }


def room_for(artifact: Artifact, kind: str, device: str | None, place: Place, *, most_tokens: int | None = None) -> Room:
    """Of this artifact in a package of this kind. most_tokens: fewer than its context, for reasons of the loader's.

    Raises UsageError: that device does not run such a package, or holds no conversation (saying which do).
    """
    held = _held(artifact)
    context = min(artifact.manifest.context.length, most_tokens or artifact.manifest.context.length)
    name, memory = _memory(artifact, kind, device, place)
    room = _room(name, memory, held, place, context)
    if room.limit < min(SMALLEST_CONTEXT, context):
        larger = (_room(one.name, _bytes(one, artifact, place), held, place, context) for one in _running(artifact, place))
        fitting = listed([one.device for one in larger if one.limit >= min(SMALLEST_CONTEXT, context)])
        would = f"package it for a larger device: --device {fitting}" if fitting else "take a smaller model (edge models)"
        raise UsageError(
            f"{artifact.directory} takes about {room.fixed / 1e6:,.0f} MB before the first token and {name} lets an app use "
            f"{memory / 1e6:,.0f} MB: no room for a conversation; {would}"
        )
    return room


def _held(artifact: Artifact) -> Held:
    path = artifact.directory / "config.json"
    try:
        config = strict_json.load(path.read_bytes())
        decoder = architecture(config).decoder_config(config)
    except (OSError, ValueError, AttributeError, EdgekitError) as error:
        raise ArtifactError(f"{path} says nothing of the model's sizes ({error}); build the artifact again") from None
    engine = ENGINES[artifact.manifest.engine.name]
    found: Held = importlib.import_module(engine.footprint).held(artifact.directory, artifact.manifest, decoder)
    return found


def _room(name: str, memory: int, held: Held, place: Place, context: int) -> Room:
    cache = place.copies * held.cache
    fixed = held.fixed + held.activation * (held.at_once or 0)
    activation = 0 if held.at_once else held.activation
    # Any of the tokens may be the prompt's: beyond LongRoPE's switch all of them are computed anew, at once.
    limit = max(0, min(context, (memory - fixed) // (cache + activation)))
    return Room(name, memory, fixed, cache, activation, limit)


def _memory(artifact: Artifact, kind: str, device: str | None, place: Place) -> tuple[str, int]:
    """The name and the bytes: of the device that is asked for, else of the target, else of the kind's usual device."""
    if device is not None:
        chosen = load_device(device)
        if not _runs_on(chosen, artifact, place):
            fitting = listed([known.name for known in _running(artifact, place)])
            raise UsageError(f"{artifact.directory} does not run on {chosen.name} in a package for {kind}; --device takes {fitting}")
        return chosen.name, _bytes(chosen, artifact, place)
    target = artifact.manifest.target
    if target in target_names() and (stated := load_target(target).memory_mb) is not None and _is_for(target, place):
        return f"target {target}", min(stated * 1_000_000, place.most or stated * 1_000_000)
    usual = load_device(place.usual[of_artifact(artifact).provider])
    return usual.name, _bytes(usual, artifact, place)


def _is_for(target: str, place: Place) -> bool:
    """Whether a target's memory is that of such a device: one for a Raspberry Pi says nothing of a phone."""
    kinds = {device.kind for device in devices() for unit in device.units if target in unit.targets}
    return bool(kinds & set(place.kinds))


def _running(artifact: Artifact, place: Place) -> list[DeviceProfile]:
    return [device for device in devices() if _runs_on(device, artifact, place)]


def _runs_on(device: DeviceProfile, artifact: Artifact, place: Place) -> bool:
    """Whether it is of that kind, with a unit for such artifacts."""
    return device.kind in place.kinds and any(True for _ in _units(device, artifact))


def _units(device: DeviceProfile, artifact: Artifact) -> Iterator[Unit]:
    runs = of_artifact(artifact)
    return (unit for unit in device.units if any(of_target(load_target(target)) == runs for target in unit.targets))


def _bytes(device: DeviceProfile, artifact: Artifact, place: Place) -> int:
    unit = next(_units(device, artifact))
    allowed = min(device.app_memory.value, unit.memory.value if unit.memory else inf)
    return min(round(allowed * 1e6), place.most or round(allowed * 1e6))
