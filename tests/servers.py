"""A real HTTP server on 127.0.0.1 that publishes files as BiT's does, and misbehaves on demand."""

from __future__ import annotations

import base64
import hashlib
import http.server
import threading
import time

SILENCE = 120  # seconds; no test waits for its end


class Server(http.server.ThreadingHTTPServer):
    """Serves ``published`` {path: bytes}; ``faults`` are taken off one a GET, then it behaves."""

    daemon_threads = True

    def __init__(self, published: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.published, self.faults, self.chunk_pause = published, [], 0.0
        self.no_hashes = False
        self.requests: list[tuple[str, str | None]] = []  # of GET: (path, Range)
        self.bytes_sent: dict[str, int] = dict.fromkeys(published, 0)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Connections that the tests cut are no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Keep the tests' output clean."""

    def answer(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": 0, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_HEAD(self):
        content = self.server.published.get(self.path)
        if content is None:
            self.answer(404)
        else:
            self.answer(200, Content_Length=len(content), x_goog_hash=goog_hash(content))

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        fault = server.faults.pop(0) if server.faults else None
        content = server.published.get(self.path)
        if isinstance(fault, int):
            self.answer(fault)
            return
        if fault == "redirect":
            server.published["/elsewhere"] = content
            server.bytes_sent["/elsewhere"] = 0
            self.answer(302, Location="/elsewhere")
            return
        if fault == "endless":
            self.send_response(200)
            self.end_headers()
            while True:  # until the client closes the connection
                self.wfile.write(bytes(1 << 16))
        if content is None:
            self.answer(404)
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and fault != "ignore range" else 0
        if start >= len(content) and start:
            self.answer(416, Content_Range=f"bytes */{len(content)}")
            return
        body = content[start:]
        told = {"wrong md5": goog_hash(b""), "wrong crc32c": "crc32c=AAAAAA=="}
        headers = {"x_goog_hash": told.get(fault, goog_hash(content)), "Content_Length": len(body)}
        if server.no_hashes:
            del headers["x_goog_hash"]
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if start else 200, **headers)
        if fault == "drop":
            body = body[: len(body) // 2]
        if fault == "wrong bytes":
            body = bytes(len(body))
        if fault == "silent":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(SILENCE)
            self.close_connection = True
            return
        for place in range(0, len(body), 1 << 16):
            self.wfile.write(body[place : place + (1 << 16)])
            server.bytes_sent[self.path] = server.bytes_sent.get(self.path, 0) + len(
                body[place : place + (1 << 16)]
            )
            time.sleep(server.chunk_pause)
        if fault == "drop":
            self.close_connection = True
            self.connection.close()


def goog_hash(content: bytes) -> str:
    """As the bucket's ``x-goog-hash`` is."""
    import crc32c

    crc = crc32c.crc32c(content).to_bytes(4, "big")
    md5 = hashlib.md5(content).digest()
    return f"crc32c={base64.b64encode(crc).decode()},md5={base64.b64encode(md5).decode()}"
