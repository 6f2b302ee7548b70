"""A stand-in for the Hugging Face hub on 127.0.0.1: just the requests that a file download makes."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants, file_download

COMMIT = "c0ffee" + "0" * 34


@dataclass
class StandinHub:
    """Serves `files` ("owner/repo/file" -> bytes). `requests` records (method, path, headers).

    What goes wrong: `announce` and `size` lie about a sha256 and a size; `status` answers every request with an error,
    `statuses` one GET each; `wait` is their Retry-After, `code` their X-Error-Code. Of a body, `cut` drops the
    connection after so many bytes, `ends` says no length and ends there, `drip` waits for so many seconds before each
    so many bytes (bytes, seconds), `ranges` off heeds no Range. `elsewhere` redirects to that address, followed by the
    path, as the hub does to its storage.
    """

    files: dict[str, bytes]
    announce: str | None = None
    size: int | None = None
    status: int | None = None
    statuses: list[int] = field(default_factory=list)
    wait: str | None = None
    code: str | None = None
    cut: int | None = None
    ends: bool = False
    drip: tuple[int, float] | None = None
    ranges: bool = True
    elsewhere: str | None = None
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

    def asked_by(self, monkeypatch) -> None:
        """Have huggingface_hub, in this process, ask this one."""
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        for module in (constants, file_download):  # older versions use the one in file_download
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)

    def gets(self) -> list[dict[str, str]]:
        """The headers of the requests for bodies."""
        return [headers for method, _, headers in self.requests if method == "GET"]

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
        if with_body and self.statuses:
            error = self.statuses.pop(0)
        code = self.code or {401: "RepoNotFound", 403: "GatedRepo"}.get(error)
        if error is None and body is None:
            error, code = 404, "EntryNotFound"
        elif error is None and revision not in ("main", "v2", COMMIT):
            error, code = 404, "RevisionNotFound"
        if error is not None:
            more = {"X-Error-Code": code, "Retry-After": self.wait, "Content-Length": "0"}
            self.head(request, error, more)
            return
        sha256 = self.announce or hashlib.sha256(body).hexdigest()
        fields = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(self.size or len(body))}
        if self.elsewhere:
            self.head(request, 302, {**fields, "Location": self.elsewhere + request.path, "Content-Length": "0"})
            return
        start = 0
        if (span := request.headers.get("Range")) and with_body and self.ranges:
            start = int(span.removeprefix("bytes=").split("-")[0])
            if start >= len(body):
                self.head(request, 416, {"Content-Length": "0", "Content-Range": f"bytes */{len(body)}"})
                return
        fields["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}" if start else None
        fields["Content-Length"] = None if self.ends else str(len(body) - start)
        fields["Connection"] = "close" if self.ends else None
        self.head(request, 206 if start else 200, {**fields, "ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
        if with_body:
            self.body(request, body[start:] if self.cut is None else body[start : start + self.cut])

    @staticmethod
    def head(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str | None]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            if value is not None:
                request.send_header(name, value)
        request.end_headers()

    def body(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        try:
            many, seconds = self.drip or (max(1, len(data)), 0)
            for i in range(0, len(data), many):
                time.sleep(seconds)
                request.wfile.write(data[i : i + many])
        except OSError:  # the other side has had enough
            pass
        if self.cut is not None or self.ends:
            request.close_connection = True
