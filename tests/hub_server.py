"""A tiny Hugging Face hub on localhost, for tests: model info, file tree, HEAD and GET with ranges, commits with LFS; and a bad one.

    with serve({"org/name": Repo(directory, commit)}) as hub: ...   # hub.url for HF_ENDPOINT; hub.log lists "GET /path [range]"
    Repo(directory, faults={"model.safetensors": [Fault(status=503), Fault(cut=1000)], "api": [Fault(status=429)]})
    Repo(directory, storage=other.url)                              # safetensors lie on another host, as on the real hub

``python hub_server.py`` is not a command: tests start it in-process and run the client in a subprocess, where HF_ENDPOINT takes effect.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer. status: this instead (with Retry-After ``after``). cut: the connection ends after that many bytes,
    or with ``hold`` stays open without another. flip: the byte at this place is another. less, more: so many bytes too few or too many,
    and a Content-Length that agrees with them. no_range: the whole is sent whatever part was asked for.
    """

    status: int | None = None
    after: str = "0"
    cut: int | None = None
    hold: bool = False
    flip: int | None = None
    less: int = 0
    more: int = 0
    no_range: bool = False


@dataclass
class Repo:
    """A model served from ``directory`` as ``commit``.

    faults: of the GETs of a file one after the other, or of the answers to API calls ("api"). storage: the address of another server that
    holds the safetensors; with ``late`` only a GET is sent there. etag: instead of every digest.
    """

    directory: Path
    commit: str = COMMIT
    gated: bool = False
    branches: tuple[str, ...] = ("main",)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    storage: str | None = None
    late: bool = False
    etag: str | None = None


@dataclass
class Hub:
    """log: method, path and range of each request. tokens: the Authorization of each."""

    url: str
    log: list[str]
    tokens: list[str | None]


@contextmanager
def serve(repos: Mapping[str, Repo]) -> Iterator[Hub]:
    log: list[str] = []
    tokens: list[str | None] = []
    stored: dict[str, bytes] = {}

    def address() -> str:
        return f"http://127.0.0.1:{server.server_address[1]}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            log.append(f"POST {path}")
            tokens.append(self.headers.get("Authorization"))
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if path == "/api/repos/create":
                asked = json.loads(raw)
                name = f"{asked.get('organization')}/{asked['name']}"
                return self.json(200 if name in repos else 403, {"url": f"{address()}/{name}"})
            parts = path.removeprefix("/api/models/").strip("/").removesuffix("/info/lfs/objects/batch").removesuffix(".git").split("/")
            repo = repos["/".join(parts[:2])]
            if path.endswith("/objects/batch"):
                objects = [self.upload_of(repo, one) for one in json.loads(raw)["objects"]]
                return self.json(200, {"transfer": "basic", "objects": objects})
            if parts[2] == "preupload":
                files = json.loads(raw)["files"]
                rows = [{"path": f["path"], "uploadMode": "lfs" if f["size"] > 10_000 else "regular", "shouldIgnore": False} for f in files]
                return self.json(200, {"files": rows})
            for line in raw.splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    continue
                value, path = entry["value"], repo.directory / entry["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                content = stored[value["oid"]] if entry["key"] == "lfsFile" else base64.b64decode(value["content"])
                path.write_bytes(content)
            url = f"{address()}/{'/'.join(parts[:2])}/commit/{repo.commit}"
            return self.json(200, {"commitUrl": url, "commitOid": repo.commit, "success": True})

        def upload_of(self, repo: Repo, one: dict[str, object]) -> dict[str, object]:
            """Where an object goes; one that is there already needs no action."""
            known = {"oid": one["oid"], "size": one["size"]}
            return (
                known if one["oid"] in stored else known | {"actions": {"upload": {"href": f"{address()}/lfs/{one['oid']}", "header": {}}}}
            )

        def do_PUT(self) -> None:
            log.append(f"PUT {self.path}")
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            assert hashlib.sha256(raw).hexdigest() == self.path.rsplit("/", 1)[1]
            stored[hashlib.sha256(raw).hexdigest()] = raw
            self.send(200, b"", {}, body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            log.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            tokens.append(self.headers.get("Authorization"))
            api = path.startswith("/api/models/")
            parts = path.removeprefix("/api/models/").strip("/").split("/")
            repo = repos.get("/".join(parts[:2]))
            if repo is None:
                return self.error(401, "RepoNotFound", "Invalid username or password.")
            if api:
                return self.refuse(fault) if (fault := next_fault(repo, "api")) else self.info(repo, parts)
            if parts[2] != "resolve" or not self.known(repo, parts[3]):
                return self.error(404, "RevisionNotFound", "no such revision")
            if repo.gated:
                return self.error(403, "GatedRepo", "Access to model is restricted")
            return self.file(repo, "/".join(parts[4:]), body)

        def known(self, repo: Repo, revision: str) -> bool:
            return revision == repo.commit or revision in repo.branches

        def info(self, repo: Repo, parts: list[str]) -> None:
            kind, revision = (parts[2], parts[3]) if len(parts) > 3 else ("revision", repo.branches[0])
            if not self.known(repo, revision):
                return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            files = sorted(p for p in repo.directory.rglob("*") if p.is_file())
            names = [p.relative_to(repo.directory).as_posix() for p in files]
            if kind == "tree":
                rows = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": git_oid(p)} for n, p in zip(names, files, strict=True)]
                return self.json(200, rows)
            model = "/".join(parts[:2])
            return self.json(
                200, {"_id": "0", "id": model, "modelId": model, "sha": repo.commit, "siblings": [{"rfilename": n} for n in names]}
            )

        def file(self, repo: Repo, name: str, body: bool) -> None:
            path = repo.directory / name
            if not path.is_file():
                return self.error(404, "EntryNotFound", "no such file", {"X-Repo-Commit": repo.commit})
            data = path.read_bytes()
            large = name.endswith((".safetensors", ".data"))
            etag = repo.etag or (hashlib.sha256(data).hexdigest() if large else git_oid(path))
            headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
            if large and repo.storage is not None and (body or not repo.late):
                headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
                headers |= {"ETag": '"not this one"', "Location": f"{repo.storage}{self.path}?X-Amz-Signature=topsecret"}
                return self.send(302, b"", headers, body=False)
            headers["ETag"] = f'"{etag}"'
            if not body:
                return self.send(200, data, headers, body=False)
            fault = next_fault(repo, name) or Fault()
            if fault.status is not None:
                return self.refuse(fault)
            wanted = None if fault.no_range else self.headers.get("Range")
            first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            if wanted:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                data = data[:stop]
            if fault.flip is not None:
                data = data[: fault.flip] + bytes([data[fault.flip] ^ 1]) + data[fault.flip + 1 :]
            data = data[: len(data) - fault.less] + bytes(fault.more)
            self.send(206 if wanted else 200, data[start:], headers, body=True, cut=fault.cut, hold=fault.hold)

        def refuse(self, fault: Fault) -> None:
            assert fault.status is not None
            self.error(fault.status, "", "busy", {"Retry-After": fault.after} if fault.after else None)

        def json(self, status: int, value: object) -> None:
            self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"}, body=self.command != "HEAD")

        def error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
            text = json.dumps({"error": message}).encode()
            self.send(status, text, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}, body=self.command == "GET")

        def send(
            self, status: int, data: bytes, headers: Mapping[str, str], body: bool, cut: int | None = None, hold: bool = False
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data if cut is None else data[:cut])
            if hold:
                self.connection.recv(1)  # until the other side is gone
            if cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(address(), log, tokens)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def next_fault(repo: Repo, name: str) -> Fault | None:
    return repo.faults[name].pop(0) if repo.faults.get(name) else None


def git_oid(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
