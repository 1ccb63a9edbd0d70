"""Downloads from a real server on 127.0.0.1 that misbehaves in every way we could think of."""

import base64
import hashlib
import http.server
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from bit_paddle import download
from bit_paddle.errors import DownloadError

CONTENT = os.urandom(1 << 20) + b"the end"
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; ``faults`` are taken off one a request, then it behaves."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.requests, self.bytes_sent, self.chunk_pause = [], [], 0, 0.0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/folder/file.npz"

    def handle_error(self, request, client_address):
        pass  # connections that the tests cut


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        fault = server.faults.pop(0) if server.faults else None
        if fault in (500, 503, 429, 404, 403):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and fault != "ignore range" else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        if fault == "wrong hash":
            self.send_header(
                "x-goog-hash", "crc32c=AAAAAA==,md5=" + base64.b64encode(bytes(16)).decode()
            )
        else:
            self.send_header("x-goog-hash", "md5=" + base64.b64encode(bytes.fromhex(MD5)).decode())
        self.end_headers()
        if fault == "drop":
            body = body[: len(body) // 2]
        if fault == "wrong bytes":
            body = bytes(len(body))
        if fault == "silent":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(3)
            return
        for place in range(0, len(body), 1 << 16):
            self.wfile.write(body[place : place + (1 << 16)])
            server.bytes_sent += len(body[place : place + (1 << 16)])
            time.sleep(server.chunk_pause)
        if fault == "drop":
            self.close_connection = True
            self.connection.close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def test_a_good_server(server, tmp_path):
    path = tmp_path / "new" / "folder" / "file.npz"
    assert download.fetch(server.url, path, md5=MD5) == path
    assert path.read_bytes() == CONTENT
    download.fetch(server.url, path, md5=MD5)
    assert server.requests == [None]  # what is there is not asked for again
    assert not path.with_name("file.npz.part").exists()


@pytest.mark.parametrize(
    "faults, requests",
    [
        ([500, 503], 3),
        ([429], 2),
        (["redirect"], 2),
        (["drop"], 2),
        (["drop", "drop", 500, "drop"], 5),
        (["drop", "ignore range"], 2),
    ],
)
def test_faults_that_pass(server, faults, requests, tmp_path):
    server.faults = list(faults)
    assert download.fetch(server.url, tmp_path / "x", md5=MD5).read_bytes() == CONTENT
    assert len(server.requests) == requests


def test_only_the_rest_is_asked_for(server, tmp_path):
    server.faults = ["drop"]
    download.fetch(server.url, tmp_path / "x")
    first, second = server.requests
    assert first is None and int(second[len("bytes=") : -1]) >= len(CONTENT) // 4
    assert server.bytes_sent < len(CONTENT) * 1.3


def test_a_silent_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.3)
    server.faults = ["silent"]
    assert download.fetch(server.url, tmp_path / "x", md5=MD5).read_bytes() == CONTENT


def test_a_partial_file_of_something_longer(server, tmp_path):
    (tmp_path / "x.part").write_bytes(bytes(len(CONTENT) + 5))
    assert download.fetch(server.url, tmp_path / "x", md5=MD5).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "faults, words",
    [
        ([404], "answered 404"),
        ([403], "answered 403"),
        (["wrong hash"], "md5"),
        (["wrong bytes"], "expected " + MD5),
        ([500] * 99, "gave up after 6 attempts.*500"),
    ],
)
def test_faults_that_stay(server, faults, words, tmp_path):
    server.faults = list(faults)
    with pytest.raises(DownloadError, match=words):
        download.fetch(server.url, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    with pytest.raises(DownloadError, match="gave up"):
        download.fetch("http://127.0.0.1:9/x", tmp_path / "x")


def test_a_disk_too_small(server, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 1000))
    with pytest.raises(DownloadError, match="too little space"):
        download.fetch(server.url, tmp_path / "x")


def test_a_folder_that_cannot_be(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot be written"):
        download.fetch(server.url, tmp_path / "file" / "x")


def _fetch(url, path):
    download.fetch(url, path)


def test_many_processes_share_one_download(server, tmp_path):
    server.chunk_pause = 0.02
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_fetch, args=(server.url, tmp_path / "x")) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "x").read_bytes() == CONTENT and server.requests == [None]


def test_killed_in_the_middle(server, tmp_path):
    server.chunk_pause = 0.1
    code = (
        f"from bit_paddle import download; download.fetch({server.url!r}, {str(tmp_path / 'x')!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    partial = tmp_path / "x.part"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (
        partial.exists() and partial.stat().st_size > 1 << 18
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = partial.stat().st_size
    assert not (tmp_path / "x").exists() and there > 0
    server.chunk_pause, server.bytes_sent = 0.0, 0
    assert download.fetch(server.url, tmp_path / "x").read_bytes() == CONTENT
    assert server.bytes_sent == len(CONTENT) - there
