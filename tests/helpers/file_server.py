"""A web server of a folder, or in front of another server, with faults on demand.

It has ranges, listings and version tags, as object stores have them.
"""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

STALL = 3.0
"""Seconds that the fault ``stall`` is silent for."""


class FileServer(ThreadingHTTPServer):
    """Serves the files of a folder, or what another server answers.

    Attributes:
        upstream: the host and port of the other server; none: the folder is served.
        faults: by path the faults of its next GET requests, or of all where the last one is ``always``: ``drop``
            closes the connection amid the body, ``stall`` is silent, ``503`` is that status, ``short`` sends half of
            the body as if it were all, ``whole`` ignores the range.
        requests: the method and path of every request.
        sizes_told: False: answers to HEAD and GET do not say how long they are.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        """Listen on a free port of loopback."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.upstream = folder, ""
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.requests: list[tuple[str, str]] = []
        self.sizes_told = True
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> str | None:
        """Return the fault of a request, which it takes off the list."""
        left = self.faults[path]
        if left[1:] == ["always"]:
            return left[0]
        return left.pop(0) if left else None

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients end connections that stall."""


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        name = unquote(urlsplit(self.path).path)
        path = self.server.folder / name.lstrip("/")
        self.server.requests.append((self.command, name))
        fault = self.server.fault(name) if body else None
        if fault == "stall":
            time.sleep(STALL)
        if fault == "503" or not (self.server.upstream or path.exists()):
            self.send_response(503 if fault == "503" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.server.upstream:
            self._forward(fault, body=body)
            return
        if path.is_dir():
            links = (f'<a href="{each.name}{"/" * each.is_dir()}">x</a>' for each in sorted(path.iterdir()))
            content, tag = "\n".join(links).encode(), ""
        else:
            content, tag = path.read_bytes(), f'"{path.stat().st_mtime_ns}"'
        self._send(content, tag, fault, body=body)

    def _forward(self, fault: str | None, *, body: bool) -> None:
        upstream = HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, headers=dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        sent = content[: len(content) // 2] if fault == "short" else content
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "content-length", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(sent)) if body else answer.headers["Content-Length"] or "0")
        self.end_headers()
        if body:
            self.wfile.write(sent[: len(sent) // 2] if fault == "drop" else sent)
        self.close_connection |= fault == "drop"

    def _send(self, content: bytes, tag: str, fault: str | None, *, body: bool) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        partial = span is not None and fault != "whole"
        if span and partial:
            content = content[int(span[1]) : int(span[2]) + 1]
        content = content[: len(content) // 2] if fault == "short" else content
        self.send_response(206 if partial else 200)
        if self.server.sizes_told:
            self.send_header("Content-Length", str(len(content)))
        else:
            self.close_connection = True
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if fault == "drop" else content)
        self.close_connection |= fault == "drop"


@contextmanager
def serve(folder: Path) -> Iterator[FileServer]:
    """Run a server while the block runs."""
    with FileServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
