"""A server on this machine, which gives files and their parts, and goes wrong as it is told."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Request(NamedTuple):
    """What was asked for, the bytes that were sent for it, and by which connection it came."""

    path: str
    range: str | None
    sent: int
    connection: int
    authorization: str | None


class Webserver:
    """Serves `files` by path, with ETags and ranges unless told otherwise.

    Attributes:
        files: content by path, which begins with a slash.
        state: the ETag of a content.
        ranges: whether parts are given; otherwise every answer is a whole file.
        faults: what the next answers are in place of the right ones: a status, or `cut` (half of the bytes), `long` (a
            length that lies), `endless` (no length, and more bytes than asked for).
        redirects: other addresses by path.
        headers: to send with every answer.
        answers: functions that make the content of a path and its query, by the beginning of the path.
        pause: seconds before each answer.
        requests: all that were answered.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.state: Callable[[bytes], str | None] = lambda content: f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self.ranges = True
        self.faults: list[int | str] = []
        self.redirects: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.answers: dict[str, Callable[[str], bytes | None]] = {}
        self.pause = 0.0
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each body waits for an acknowledgement of its headers

            def do_GET(self) -> None:
                server._answer(self)

            def do_HEAD(self) -> None:
                server._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def secured(self, context: ssl.SSLContext) -> str:
        """Speak TLS from now on; gives the address for that."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        return f"https://localhost:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def sent(self) -> int:
        """Bytes of all answers."""
        return sum(request.sent for request in self.requests)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        time.sleep(self.pause)
        parts = urlsplit(handler.path)
        path = unquote(parts.path)
        fault = self.faults.pop(0) if self.faults else None
        content = self.files.get(path)
        for beginning, make in self.answers.items():
            if content is None and path.startswith(beginning):
                content = make(handler.path)
        status, headers, body = 200, dict(self.headers), content or b""
        if isinstance(fault, int):
            status, body = fault, b"a page about it"
        elif path in self.redirects:
            status, body = 302, b""
            headers["Location"] = self.redirects[path]
        elif content is None:
            status, body = 404, b"not here"
        else:
            state = self.state(content)
            headers |= {"ETag": state} if state else {}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
            if wanted and self.ranges:
                first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
                status, body = (206, content[first : last + 1]) if first < len(content) else (416, b"")
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}" if body else f"bytes */{len(content)}"
        self.requests.append(
            Request(
                path, handler.headers.get("Range"), len(body), handler.client_address[1],
                handler.headers.get("Authorization"),
            )
        )  # fmt: skip
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if fault == "endless":
            body *= 1000
        else:
            handler.send_header("Content-Length", str(len(body) + 10**15 * (fault == "long")))
        handler.end_headers()
        if handler.command == "GET":
            try:
                handler.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
            except OSError:  # the reader has had enough
                handler.close_connection = True
        if isinstance(fault, str):
            handler.close_connection = True
