"""A stand-in for the Hugging Face hub on 127.0.0.1: just the requests that a file download makes."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


@dataclass
class StandinHub:
    """Serves `files` ("owner/repo/file" -> bytes). Set `announce` to lie about a sha256, `cut` to drop connections
    after so many bytes, `status` to answer every request with an error. `requests` records (method, path, headers)."""

    files: dict[str, bytes]
    announce: str | None = None
    cut: int | None = None
    status: int | None = None
    requests: list = field(default_factory=list)

    def __enter__(self) -> StandinHub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, with_body=False)

            def do_GET(self):
                hub.answer(self, with_body=True)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        if "/resolve/" in request.path:  # huggingface_hub asks for other things too, of its own accord
            self.requests.append((request.command, request.path, {k.title(): v for k, v in request.headers.items()}))
        repo, _, rest = request.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        body = self.files.get(f"{repo}/{name}")
        error = self.status
        code = {401: "RepoNotFound", 403: "GatedRepo"}.get(error)
        if error is None and body is None:
            error, code = 404, "EntryNotFound"
        elif error is None and revision not in ("main", "v2", COMMIT):
            error, code = 404, "RevisionNotFound"
        if error is not None:
            request.send_response(error)
            if code:
                request.send_header("X-Error-Code", code)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        if (span := request.headers.get("Range")) and with_body:
            start = int(span.removeprefix("bytes=").split("-")[0])
            if start >= len(body):
                request.send_response(416)
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
        request.send_response(206 if start else 200)
        sha256 = self.announce or hashlib.sha256(body).hexdigest()
        for header, value in (
            ("X-Repo-Commit", COMMIT),
            ("X-Linked-Etag", f'"{sha256}"'),
            ("X-Linked-Size", str(len(body))),
            ("ETag", f'"{sha256}"'),
            ("Accept-Ranges", "bytes"),
            ("Content-Length", str(len(body) - start)),
        ):
            request.send_header(header, value)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.end_headers()
        if with_body:
            part = body[start:] if self.cut is None else body[start : start + self.cut]
            request.wfile.write(part)
            if self.cut is not None:
                request.wfile.flush()
                request.connection.close()
