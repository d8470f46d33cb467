"""A tiny Hugging Face hub on localhost, for tests of downloading: model info, file tree, HEAD and GET with ranges.

    with serve({"org/name": Repo(directory, commit)}) as hub: ...   # hub.url for HF_ENDPOINT; hub.log lists "GET /path [range]"

``python hub_server.py`` is not a command: tests start it in-process and run the client in a subprocess, where HF_ENDPOINT takes effect.
"""

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


@dataclass
class Repo:
    """A model served from ``directory`` as ``commit``. ``cut`` breaks off the first GET of a file after that many bytes."""

    directory: Path
    commit: str = COMMIT
    gated: bool = False
    branches: tuple[str, ...] = ("main",)
    cut: dict[str, int] = field(default_factory=dict)


@dataclass
class Hub:
    url: str
    log: list[str]


@contextmanager
def serve(repos: Mapping[str, Repo]) -> Iterator[Hub]:
    log: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            log.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            api = path.startswith("/api/models/")
            parts = path.removeprefix("/api/models/").strip("/").split("/")
            repo = repos.get("/".join(parts[:2]))
            if repo is None:
                return self.error(401, "RepoNotFound", "Invalid username or password.")
            if api:
                return self.info(repo, parts)
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
            data, start, status = path.read_bytes(), 0, 200
            wanted = self.headers.get("Range")
            if wanted:
                start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            headers = {"ETag": f'"{git_oid(path)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
            if status == 206:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            sent = data[start:]
            if not body:
                return self.send(status, sent, headers, body=False)
            cut = repo.cut.pop(name, None)
            self.send(status, sent, headers, body=True, cut=cut)

        def json(self, status: int, value: object) -> None:
            self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"}, body=self.command == "GET")

        def error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
            text = json.dumps({"error": message}).encode()
            self.send(status, text, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}, body=self.command == "GET")

        def send(self, status: int, data: bytes, headers: Mapping[str, str], body: bool, cut: int | None = None) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data if cut is None else data[:cut])
            if cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_address[1]}", log)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def git_oid(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
