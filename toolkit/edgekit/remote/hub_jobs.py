"""Jobs in Qualcomm AI Hub through its own client (qai-hub), with what was submitted in a journal: a run that is broken off goes on with
the models and jobs that it has there."""

import contextlib
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgekit import strict_json
from edgekit.errors import DeviceUnfit, EngineMissing, LinkBroken, OutputError, Untrusted, UsageError
from edgekit.remote.device import patiently

POLL = 10.0
"""Seconds between two looks at a job."""
PATIENCE = 1800.0
INSTALL = 'Qualcomm AI Hub needs its client; install it: pip install "edgekit[aihub]"'
CONFIGURE = "make a token at https://aihub.qualcomm.com (Settings), then: qai-hub configure --api_token TOKEN"

T = TypeVar("T")


@dataclass
class JobJournal:
    """ids: what was done -> the hub's id of it."""

    path: Path
    ids: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "JobJournal":
        """Raises UsageError for a file that is none."""
        ids: dict[str, str] = {}
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        for line in lines:
            try:
                entry = strict_json.load(line)
                ids[str(entry["did"])] = str(entry["id"])
            except (ValueError, KeyError, TypeError):
                raise UsageError(f"{path} is no journal of a run in AI Hub; give another --journal, or delete it") from None
        return cls(path, ids)

    def note(self, did: str, identity: str) -> None:
        """On the disk when this returns; an empty id takes back what was noted. Raises OutputError."""
        self.ids[did] = identity
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps({"did": did, "id": identity}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}; give --journal a place that can") from None


@dataclass(frozen=True)
class Hub:
    """client: a qai_hub.Client. device: a qai_hub.Device. tell: gets what is going on."""

    client: Any
    device: Any
    where: str
    journal: JobJournal
    tell: Callable[[str], None]
    patience: float

    def call(self, step: Callable[[], T]) -> T:
        """``step`` of the client, until the link holds."""
        return patiently(lambda: self._once(step), lambda: 0, self.tell, self.patience)

    def _once(self, step: Callable[[], T]) -> T:
        return once(self.where, step)

    def once(self, did: str, submit: Callable[[], str]) -> str:
        """The id of what was done before, or of what ``submit`` does now."""
        if not self.journal.ids.get(did):
            self.journal.note(did, self.call(submit))
        return self.journal.ids[did]

    def finished(self, did: str, what: str) -> Any:
        """The job noted as ``did``, when it has succeeded. Raises DeviceUnfit where it failed; the next run submits it anew."""
        identity, shown = self.journal.ids[did], ""
        while True:
            job = self.call(lambda: self.client.get_job(identity))
            status = self.call(job.get_status)
            if status.code != shown:
                shown = status.code
                self.tell(f"{self.where}: {what}: job {identity} {shown.lower().replace('_', ' ')}")
            if status.success:
                return job
            if status.failure:
                self.journal.note(did, "")
                raise DeviceUnfit(
                    f"{self.where}: {what}: job {identity} failed: {plain(status.message or 'no reason given')}; see {job.url}"
                )
            time.sleep(POLL)


def connect(name: str, system: str, journal: Path, tell: Callable[[str], None], patience: float = PATIENCE) -> Hub:
    """Raises EngineMissing without the client, Untrusted without a token that is taken, DeviceUnfit where there is no such device."""
    try:
        import qai_hub
    except ImportError:
        raise EngineMissing(INSTALL) from None
    where = f"aihub:{name}"
    client = qai_hub.Client()
    found = patiently(lambda: once(where, lambda: _devices(client, name, system)), lambda: 0, tell, patience)
    if not found:
        raise DeviceUnfit(f"{where}: AI Hub has no device of this name; it lists them with: qai-hub list-devices")
    return Hub(client, found[-1], where, JobJournal.open(journal), tell, patience)


def _devices(client: Any, name: str, system: str) -> list[Any]:
    client.set_verbose(False)  # reads the token, too
    return list(client.get_devices(name=name, os=system))


def once(where: str, step: Callable[[], T]) -> T:
    """What the client raises, as edgekit's. Nothing of a request gets into a message: addresses of uploads are secrets."""
    import requests
    from botocore.exceptions import BotoCoreError, ClientError
    from qai_hub.client import Error, InternalError, RateLimitedError, UserError

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return step()
    except RateLimitedError as error:
        raise LinkBroken(f"{where}: too many jobs at once: {plain(str(error))}") from None
    except UserError as error:
        said = plain(str(error))
        if "authenticate" in said or "API token" in said or "configuration" in said:
            raise Untrusted(f"{where}: AI Hub knows no such user ({said.splitlines()[0]}); {CONFIGURE}") from None
        raise DeviceUnfit(f"{where}: {said}") from None
    except InternalError as error:
        raise LinkBroken(f"{where}: {plain(str(error))}") from None
    except (requests.RequestException, BotoCoreError, ClientError, TimeoutError) as error:
        raise LinkBroken(f"{where}: the transfer failed ({type(error).__name__})") from None
    except (Error, ValueError) as error:
        raise DeviceUnfit(f"{where}: {plain(str(error))}") from None


def plain(text: str) -> str:
    """Without the frames that the client draws, on one line."""
    kept = "".join(c if c.isprintable() and not "─" <= c <= "╿" else " " for c in text)
    return " ".join(kept.split())
