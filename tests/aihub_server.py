"""Qualcomm AI Hub as its real client (qai-hub) sees it: protobuf over HTTP on localhost.

    with serve() as hub:          # QAIHUB_CLIENT_INI=hub.write_ini(folder)

Addresses and messages: qai_hub/public_rest_api.py and public_api_pb2.py of qai-hub 0.56. Jobs take ``looks`` looks to finish.
"""

import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from qai_hub import public_api_pb2 as pb

TOKEN = "secret-token-of-the-test"
DEVICES = {"Snapdragon 8 Elite QRD": "15", "Samsung Galaxy S24": "14"}
KINDS = ("compile_job", "link_job", "inference_job")


@dataclass
class Hub:
    """fail: names of jobs that fail. busy: answers 503 to so many requests. vanish: ends the connection without an answer to every request
    after so many. log: method and path of each request."""

    url: str = ""
    fail: tuple[str, ...] = ()
    busy: int = 0
    vanish: int | None = None
    looks: int = 2
    log: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, "pb.Model"] = field(default_factory=dict)
    jobs: dict[str, "pb.Job"] = field(default_factory=dict)
    looked: dict[str, int] = field(default_factory=dict)

    def write_ini(self, folder: Path, token: str = TOKEN) -> Path:
        path = folder / "client.ini"
        path.write_text(f"[api]\napi_token = {token}\napi_url = {self.url}\nweb_url = {self.url}\nverbose = true\n")
        return path

    def made(self, kind: str) -> list["pb.CompileJob | pb.LinkJob | pb.InferenceJob"]:
        return [getattr(job, kind) for job in self.jobs.values() if job.WhichOneof("job") == kind]

    def add_model(self, model: "pb.Model") -> str:
        model.model_id = f"m{len(self.models)}"
        self.models[model.model_id] = model
        return str(model.model_id)

    def add_job(self, job: "pb.Job") -> str:
        """Its target is known from the start, as ``seed_target_model`` asks."""
        kind, identity = job.WhichOneof("job"), f"j{len(self.jobs)}"
        inner = getattr(job, kind)
        setattr(inner, f"{kind}_id", identity)
        inner.job_state = pb.JOB_STATE_CREATED
        if kind != "inference_job":
            made = pb.MODEL_TYPE_QNN_DLC if kind == "compile_job" else pb.MODEL_TYPE_QNN_CONTEXT_BINARY
            target = pb.Model(name="target", model_type=made, producer_id=identity)
            self.add_model(target)
            inner.target_model.CopyFrom(target)
        self.jobs[identity] = job
        return identity

    def look(self, identity: str) -> "pb.Job":
        job = self.jobs[identity]
        inner = getattr(job, job.WhichOneof("job"))
        self.looked[identity] = self.looked.get(identity, 0) + 1
        if self.looked[identity] > self.looks:
            failed = inner.name in self.fail
            inner.job_state = pb.JOB_STATE_FAILED if failed else pb.JOB_STATE_DONE
            inner.failure_reason = "the converter does not know MatMulNBits" if failed else ""
        elif self.looked[identity] > 1:
            inner.job_state = pb.JOB_STATE_OPTIMIZING_MODEL
        return job

    def unzipped(self, model: str) -> dict[str, bytes]:
        with zipfile.ZipFile(BytesIO(self.files[model])) as archive:
            return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def profile() -> "pb.ProfileDetail":
    """Microseconds and bytes."""
    found = pb.ProfileDetail(major_version=1, minor_version=2, execution_time=2500, cold_load_time=800_000, warm_load_time=300_000)
    found.after_execution_peak_memory = 700_000_000
    found.all_execution_times.extend([2400, 2500, 2900])
    for unit in (pb.COMPUTE_UNIT_NPU, pb.COMPUTE_UNIT_NPU, pb.COMPUTE_UNIT_CPU):
        found.layer_details.add(name="layer", layer_type_name="op", compute_unit=unit)
    return found


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer("GET")

        def do_POST(self) -> None:
            self.answer("POST")

        def do_PUT(self) -> None:
            self.answer("PUT")

        def body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def answer(self, method: str) -> None:
            parts = urlsplit(self.path)
            data = self.body()
            if hub.vanish is not None:
                hub.vanish -= 1
                if hub.vanish < 0:
                    self.close_connection = True
                    return
            hub.log.append(f"{method} {parts.path}")
            if hub.busy:
                hub.busy -= 1
                self.reply(503, b"")
            elif parts.path.startswith("/storage/"):
                hub.files[parts.path.rpartition("/")[2]] = data
                self.reply(200, b"", ETag='"part"')
            elif self.headers.get("Authorization") != f"token {TOKEN}":
                self.reply(401, json.dumps({"detail": "Invalid token."}).encode())
            else:
                self.api(method, parts.path.removeprefix("/api/v1/").strip("/").split("/"), parse_qs(parts.query), data)

        def api(self, method: str, path: list[str], query: dict[str, list[str]], data: bytes) -> None:
            match method, path:
                case "GET", ["devices"]:
                    name = query.get("name", [""])[0]
                    attributes = ["os:android", "framework:qnn", "framework:onnx"]
                    found = [pb.Device(name=key, os=os, attributes=attributes) for key, os in DEVICES.items() if name in ("", key)]
                    self.send(pb.DeviceList(devices=found))
                case "POST", ["models"]:
                    self.send(pb.CreateUpdateResponse(id=hub.add_model(pb.Model.FromString(data))))
                case "GET", ["models", model, "multipart_upload"]:
                    address = pb.FileMultipartUploadURL(urls=[f"{hub.url}/storage/{model}"], upload_id="u", max_part_size=1 << 30)
                    self.send(pb.FileUploadResponse(multipart_url=address))
                case "POST", ["models", model, "multipart_upload"]:
                    assert pb.FileMultipartUploadComplete.FromString(data).etags == ['"part"']
                    self.send(pb.CreateUpdateResponse(id=model))
                case "GET", ["models", model]:
                    self.send(hub.models[model])
                case "POST", ["jobs"]:
                    self.send(pb.CreateUpdateResponse(id=hub.add_job(pb.Job.FromString(data))))
                case "GET", ["jobs", job]:
                    self.send(hub.look(job))
                case "GET", ["jobs", job, "result"]:
                    self.send(pb.JobResult(inference_job_result=pb.InferenceJobResult(inference_job_id=job, detail=profile())))
                case _:
                    self.reply(404, b"")

        def send(self, message: object) -> None:
            self.reply(200, message.SerializeToString(), "application/x-protobuf")  # type: ignore[attr-defined]

        def reply(self, status: int, data: bytes, kind: str = "application/json", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
