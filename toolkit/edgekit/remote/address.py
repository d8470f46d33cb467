"""What ``--on`` names: ``ssh://[user@]host[:port][/folder]``, ``adb:SERIAL`` or ``aihub:DEVICE``."""

import re
from dataclasses import dataclass

from edgekit.errors import UsageError
from edgekit.remote.adb import Adb
from edgekit.remote.ssh import Ssh
from edgekit.remote.transport import Transport

FORMS = "ssh://[user@]host[:port][/folder], adb:SERIAL, aihub:DEVICE"
SSH = re.compile(
    r"ssh://(?:(?P<user>[^/]*)@)?(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?)\]|(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*))(?::(?P<port>\d{1,5}))?(?P<folder>/[^\0-\x1f]*)?"
)
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
HOME = "~/.cache/edgekit/remote"
ANDROID = "/data/local/tmp/edgekit"


@dataclass(frozen=True)
class HubDevice:
    """A device of Qualcomm AI Hub by its name there, perhaps with its OS: ``QCS6490 (Proxy)`` or ``Google Pixel 4@11``."""

    name: str
    os: str


def address(text: str) -> Transport | HubDevice:
    """Raises UsageError."""
    scheme, _, rest = text.partition(":")
    if scheme == "ssh" and rest.startswith("//"):
        return _ssh(text)
    if scheme == "adb" and rest:
        if not SERIAL.fullmatch(rest):
            raise UsageError(f"--on {text!r}: {rest!r} is no serial of a device; `adb devices` lists them")
        return Adb(rest, ANDROID)
    if scheme == "aihub" and rest.strip():
        name, _, system = rest.strip().partition("@")
        return HubDevice(name, system)
    raise UsageError(f"--on {text!r}: wanted one of {FORMS}")


def _ssh(text: str) -> Ssh:
    shown = repr(re.sub(r"//([^/@:]*):[^/]*@", r"//\1:***@", text))
    found = SSH.fullmatch(text)
    user = found["user"] if found else None
    if shown != repr(text):
        raise UsageError(f"--on {shown}: a password does not belong there, where others see it; use a key (ssh-copy-id)")
    port = int(found["port"]) if found and found["port"] else None
    if found is None or (user is not None and not USER.fullmatch(user)) or not (port is None or 0 < port < 65536):
        raise UsageError(f"--on {shown}: wanted ssh://[user@]host[:port][/folder]")
    folder = (found["folder"] or "").rstrip("/")
    return Ssh(found["six"] or found["host"], user, port, f"{folder}/edgekit" if folder else HOME)
