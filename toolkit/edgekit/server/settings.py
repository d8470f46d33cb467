"""What the operator of a server chose."""

import ipaddress
from dataclasses import dataclass

from edgekit.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask for.

    queue:    requests that may wait for the model; the next is answered 429.
    seconds:  that a request may take, its wait included.
    idle:     seconds in which a body has to come in, and a client has to take what is sent to it.
    body:     bytes of a request.
    messages: of a conversation.
    choices:  answers of one request (``n`` times prompts).
    tokens:   of one answer; None is as many as the context holds.
    """

    queue: int = 64
    seconds: float = 600.0
    idle: float = 30.0
    body: int = 4 << 20
    messages: int = 1024
    choices: int = 16
    tokens: int | None = None


@dataclass(frozen=True)
class Settings:
    """model: the name clients ask for. key: what they have to send, None for nothing. hosts: names besides IP addresses and localhost
    under which the server may be addressed. drain: seconds that answers may still take once it is told to end. forget: nothing of a request
    is kept for the next one, which may be another client's (docs/security.md)."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8080
    key: str | None = None
    hosts: tuple[str, ...] = ()
    drain: float = 30.0
    forget: bool = False
    limits: Limits = Limits()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to ``host``. A name other than localhost may mean anything, so it does not count."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings, *, insecure: bool) -> None:
    """Raises UsageError where others could use the model without a key and nobody said that they may."""
    if settings.key is not None and not (
        settings.key.isascii() and settings.key.isprintable() and settings.key.strip() == settings.key != ""
    ):
        raise UsageError("the API key has to be of printable ASCII characters, without spaces around it, and not empty")
    if settings.key is None and not insecure and not is_loopback(settings.host):
        raise UsageError(
            f"{settings.host} is reachable from other machines, and there is no API key; set EDGE_API_KEY or give --api-key-file, "
            "or, where everyone who reaches it may use it, --no-api-key"
        )
