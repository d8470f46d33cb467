"""``edge profile --on``: brings runtime and artifact to a device, measures there, and brings the report back.

Every step may be done again, and goes on where it was. The measuring itself is a process of its own on the device, with a journal: it lives
on while the link is broken, and after a new start of the device it is begun again with that journal.
"""

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edgekit import errors, strict_json
from edgekit.artifact import MANIFEST, SIGNATURE, Artifact
from edgekit.errors import DeviceUnfit, EdgekitError, OutputError, RemoteError
from edgekit.progress import Progress
from edgekit.remote import bundle as packing
from edgekit.remote.device import PATIENCE, Device, connect, patiently, upload
from edgekit.remote.transport import Blob, Json, Transport, last_line
from edgekit.resources import cache_folder

START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from edgekit.cli import main; main()"
DESCRIBE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import json; from dataclasses import asdict; "
    "from edgekit.profile.machine import describe; print(json.dumps(asdict(describe(sys.argv[1:]))))"
)
BEGINNINGS = 3
"""Times that a run which vanished is begun again without having measured anything in between."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """arguments: of ``edge profile`` there, beside the artifact, its journal and trace. trace: where that is brought. keep: the copy of
    artifact and runtime stays for the next time. patience: seconds that a broken link may take."""

    arguments: tuple[str, ...]
    journal: Path | None
    trace: Path | None = None
    keep: bool = True
    patience: float = PATIENCE


@dataclass(frozen=True)
class Run:
    """name: of its folder there; equal for an equal request, so that one which was cut off is found again. journal: here. machine: what the
    runtime there says of it."""

    device: Device
    name: str
    command: tuple[str, ...]
    journal: Path
    machine: Json


@dataclass(frozen=True)
class Outcome:
    """document: of ``edge profile --json`` there. broken: why there is none; the journal holds what was measured until then."""

    document: Json | None
    broken: RemoteError | None
    machine: Json
    journal: Path


def profile_on(transport: Transport, artifact: Artifact, wishes: Wishes, tell: Tell, progress: Progress) -> Outcome:
    """``tell`` gets what is going on, a line at a time.

    Raises RemoteError before anything is measured; EngineMissing where the device has no packages; what ``edge profile`` there raised.
    """
    device = connect(transport)
    tell(f"{device.where}: Python {device.version}, {device.system} {device.machine}")
    run = _prepare(device, artifact, wishes, tell, progress)
    try:
        document = _bring(run, wishes, tell)
    except (KeyboardInterrupt, SystemExit):
        with contextlib.suppress(RemoteError):
            device.answer({"verb": "stop", "name": run.name})
        raise
    except RemoteError as error:
        if not _lines(run.journal):
            raise
        kept = f"{_lines(run.journal)} measurements are kept in {run.journal}; the same command goes on after them"
        return Outcome(None, type(error)(f"{error}; {kept}"), run.machine, run.journal)
    _leave(run, wishes, tell)
    if wishes.journal is None:
        run.journal.unlink(missing_ok=True)
    return Outcome(document, None, run.machine, run.journal)


def _bring(run: Run, wishes: Wishes, tell: Tell) -> Json:
    """Measures, and fetches what came out."""
    code = _measure(run, wishes, tell)
    with tempfile.TemporaryDirectory(prefix="edgekit-remote-") as folder:
        out, err = (_file(run, name, Path(folder), wishes, tell) for name in ("out", "err"))
        document = _understand(run.device, code, out, err)
        if wishes.trace is not None:
            data = _file(run, "trace", Path(folder), wishes, tell)
            try:
                wishes.trace.write_bytes(data)
            except OSError as error:
                raise OutputError(f"{wishes.trace} cannot be written: {error.strerror or error}; give --trace a place that can") from None
    return document


def _prepare(device: Device, artifact: Artifact, wishes: Wishes, tell: Tell, progress: Progress) -> Run:
    """Everything that is needed, on the device."""
    pip = packing.blob(packing.pip_wheel())
    upload(device, [pip], "pip to the device", progress, tell, wishes.patience)
    platform = _platform(_patient(device, {"verb": "tags", "pip": pip.digest}, tell, wishes))
    held = packing.bundle(artifact.manifest, platform, tell)
    upload(device, list(held.wheels.values()), "runtime to the device", progress, tell, wishes.patience)
    wheels = {name: blob.digest for name, blob in held.wheels.items()}
    runtime = str(_patient(device, {"verb": "install", "name": held.name, "wheels": wheels}, tell, wishes)["path"])
    files = _blobs(artifact)
    upload(device, list(files.values()), "artifact to the device", progress, tell, wishes.patience)
    name = (files.get(SIGNATURE) or files[MANIFEST]).digest[:16]
    digests = {name: blob.digest for name, blob in files.items()}
    place = str(_patient(device, {"verb": "place", "name": name, "files": digests}, tell, wishes)["path"])
    traced = wishes.trace is not None
    key = hashlib.sha256(json.dumps([name, held.name, wishes.arguments, traced]).encode()).hexdigest()[:16]
    folder = f"{device.root}/runs/{key}"
    trace = ("--trace", f"{folder}/trace") if traced else ()
    python = (device.python, "-I", *(() if held.there else ("-S",)), "-c")
    arguments = ("profile", place, "--json", "--journal", f"{folder}/journal", *trace, *wishes.arguments)
    describe = [*python, DESCRIBE, f"{runtime}/packages", *artifact.manifest.engine.requires]
    machine = _object(str(_patient(device, {"verb": "call", "command": describe}, tell, wishes)["out"]))
    if machine is None:
        raise DeviceUnfit(f"{device.where}: its Python did not say what machine it is; look at what it prints: {' '.join(python)} ''")
    return Run(device, key, (*python, START, f"{runtime}/packages", *arguments), wishes.journal or _journals() / f"{key}.jsonl", machine)


def _patient(device: Device, request: Json, tell: Tell, wishes: Wishes) -> Json:
    return patiently(lambda: device.answer(request), lambda: 0, tell, wishes.patience)


def _platform(said: Json) -> packing.Platform:
    tags, platforms, abis = (tuple(map(str, cast("list[str]", said[key]))) for key in ("tags", "platforms", "abis"))
    markers, installed = (cast("dict[str, str]", said[key]) for key in ("markers", "installed"))
    return packing.Platform(str(said["implementation"]), tags, platforms, abis, markers, installed)


def _blobs(artifact: Artifact) -> dict[str, Blob]:
    found = {name: Blob(artifact.directory / name, info.sha256, info.bytes) for name, info in artifact.manifest.files.items()}
    signed = [SIGNATURE] if (artifact.directory / SIGNATURE).is_file() else []  # a device may pin a key, too
    return {**found, **{name: packing.blob(artifact.directory / name) for name in (MANIFEST, *signed)}}


def _journals() -> Path:
    folder = cache_folder(os.environ) / "remote" / "journals"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _measure(run: Run, wishes: Wishes, tell: Tell) -> int:
    """Until it has ended there; its exit code."""
    vanished, seen = 0, -1
    while True:
        code = patiently(lambda: _attend(run, tell), lambda: _size(run.journal), tell, wishes.patience)
        if code is not None:
            return code
        vanished = vanished + 1 if _size(run.journal) == seen else 1
        seen = _size(run.journal)
        if vanished == BEGINNINGS:
            raise DeviceUnfit(
                f"{run.device.where}: the measuring ended there {BEGINNINGS} times without a word, as when the device starts anew or its "
                "memory runs out"
            )
        tell(f"{run.device.where}: the run has vanished, as when the device starts anew; going on after {_lines(run.journal)} measurements")


def _attend(run: Run, tell: Tell) -> int | None:
    """Begins the run if it is not there, and follows it. None where it vanished."""
    known = run.journal.read_bytes() if run.journal.exists() else b""
    asked: Json = {"verb": "start", "name": run.name, "command": run.command, "journal": base64.b64encode(known).decode()}
    if not run.device.answer(asked)["fresh"]:
        tell(f"{run.device.where}: this run was there already; going on with it")
    for word in run.device.ask({"verb": "follow", "name": run.name, "err": 0, "journal": len(known)}):
        if "journal" in word:
            _append(run.journal, base64.b64decode(str(word["journal"])))
        for line in base64.b64decode(str(word.get("err", ""))).decode(errors="replace").splitlines():
            tell(f"{run.device.where}: {last_line(line)}")
        if "done" in word:
            return cast("int | None", cast(Json, word["done"])["code"])
    return None


def _append(path: Path, data: bytes) -> None:
    try:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; give --journal a place that can") from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _lines(path: Path) -> int:
    """Measurements in a journal, whose first line is its head."""
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def _file(run: Run, name: str, folder: Path, wishes: Wishes, tell: Tell) -> bytes:
    source, target = f"{run.device.root}/runs/{run.name}/{name}", folder / name
    patiently(lambda: run.device.transport.fetch(run.device.ask, source, target), lambda: 0, tell, wishes.patience)
    return target.read_bytes()


def _object(text: str | bytes) -> Json | None:
    """What a device printed, if that is a JSON object."""
    try:
        found = strict_json.load(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _understand(device: Device, code: int, out: bytes, err: bytes) -> Json:
    """What ``edge profile`` there printed, or the error it ended with."""
    document = _object(out)
    if document is None:
        said = last_line(err.decode(errors="replace"))
        raise DeviceUnfit(f"{device.where}: edge profile ended there with exit code {code}: {said}") from None
    if "error" in document:
        told = document["error"] if isinstance(document["error"], dict) else {}
        kind = getattr(errors, str(told.get("kind")), None)
        if not (isinstance(kind, type) and issubclass(kind, EdgekitError)):
            kind = errors.EngineError
        raise kind(f"{device.where}: {last_line(str(told.get('message', '')))}")
    return document


def _leave(run: Run, wishes: Wishes, tell: Tell) -> None:
    """Nothing of the run stays; of artifact and runtime what is wished, and that is said."""
    try:
        left = int(cast(int, run.device.answer({"verb": "forget", "name": run.name, "everything": not wishes.keep})["bytes"]))
    except errors.RemoteError as error:
        tell(f"{error}; the report is here, what lies in {run.device.root} there is not cleaned up")
        return
    if left:
        tell(f"{run.device.where}: {left / 1e6:,.0f} MB of artifact and runtime stay in {run.device.root}; --no-keep removes them")
