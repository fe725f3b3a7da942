"""A web server for tests, which can break off, change its file, know no ranges, or lie."""

from __future__ import annotations

import base64
import hashlib
import http.server
from typing import Any


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` for every path that ends in ``.tar``, and notes what was asked for.

    Attributes:
        content: the file.
        requests: path and range of each request.
        broken_off_at: bytes of a response after which the connection ends.
        ranges: whether it knows ranges.
        tagged: whether it states an ETag.
        md5: what it states as the MD5 of the file ("right": the right one; None: none).
        failing: how many requests are answered with status 503 before one is served.
    """

    content = b""
    broken_off_at: int | None = None
    ranges = True
    tagged = True
    md5: str | None = None
    failing = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(f"{self.path} {wanted}")
        if not self.path.endswith(".tar"):
            return self.send_error(404)
        if server.failing:
            server.failing -= 1
            return self.send_error(503)
        tag = f'"{hashlib.sha256(server.content).hexdigest()[:8]}"'
        changed = self.headers.get("If-Range") not in (None, tag)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges and not changed else 0
        size = len(server.content)
        if start and start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if server.tagged:
            self.send_header("ETag", tag)
        if server.md5 is not None:
            right = base64.b64encode(hashlib.md5(server.content).digest()).decode()
            self.send_header("x-ms-blob-content-md5", right if server.md5 == "right" else server.md5)
        self.end_headers()
        self.wfile.write(body if server.broken_off_at is None else body[: server.broken_off_at])

    def log_message(self, *words: Any) -> None:
        pass
