"""What a service manager such as systemd hears of the server (sd_notify(3)); elsewhere nothing happens."""

import os
import socket


def tell(state: str) -> None:
    """``READY=1``, ``WATCHDOG=1`` or ``STOPPING=1``. A manager that does not listen (any more) is no reason to stop serving."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
            made.setblocking(False)
            made.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
    except OSError:
        return


def watchdog() -> float | None:
    """Seconds after which the manager takes a silent server for hung and starts it again; None where it does not watch this process."""
    span, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not span.isdecimal() or int(span) == 0 or process not in ("", str(os.getpid())):
        return None
    return int(span) / 1e6
