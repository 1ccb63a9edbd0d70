"""Downloads from a real server on 127.0.0.1 that misbehaves in every way we could think of."""

import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from servers import Server

from bit_paddle.errors import DownloadError
from bit_paddle.models import published
from bit_paddle.system import fetch

CONTENT = os.urandom(1 << 20) + b"the end"
MD5 = {"md5": hashlib.md5(CONTENT).hexdigest()}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server({"/folder/file.npz": CONTENT})
    server.url = server.address + "/folder/file.npz"
    yield server
    server.shutdown()
    server.server_close()


def test_a_good_server(server, tmp_path):
    path = tmp_path / "new" / "folder" / "file.npz"
    assert fetch.fetch(server.url, path, expected=MD5) == path
    assert path.read_bytes() == CONTENT
    fetch.fetch(server.url, path, expected=MD5)
    assert server.requests == [("/folder/file.npz", None)]  # what is there is not asked for again
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
    assert fetch.fetch(server.url, tmp_path / "x", expected=MD5).read_bytes() == CONTENT
    assert len(server.requests) == requests


def test_only_the_rest_is_asked_for(server, tmp_path):
    server.faults = ["drop"]
    fetch.fetch(server.url, tmp_path / "x")
    (_, first), (_, second) = server.requests
    assert first is None and int(second[len("bytes=") : -1]) >= len(CONTENT) // 4
    assert sum(server.bytes_sent.values()) < len(CONTENT) * 1.3


def test_a_silent_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "READ_TIMEOUT", 0.3)
    server.faults = ["silent"]
    assert fetch.fetch(server.url, tmp_path / "x", expected=MD5).read_bytes() == CONTENT


def test_a_partial_file_of_something_longer(server, tmp_path):
    (tmp_path / "x.part").write_bytes(bytes(len(CONTENT) + 5))
    assert fetch.fetch(server.url, tmp_path / "x", expected=MD5).read_bytes() == CONTENT


def test_killed_before_the_renaming(server, tmp_path):
    """All bytes are there: nothing but the verdict is asked for."""
    (tmp_path / "x.part").write_bytes(CONTENT)
    assert fetch.fetch(server.url, tmp_path / "x", expected=MD5).read_bytes() == CONTENT
    assert sum(server.bytes_sent.values()) == 0


def test_a_partial_file_of_something_else_is_replaced(server, tmp_path):
    (tmp_path / "x.part").write_bytes(bytes(1000))
    assert fetch.fetch(server.url, tmp_path / "x").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == ["bytes=1000-", None]


def test_a_web_page_instead_of_a_checkpoint(server, tmp_path, monkeypatch):
    """From a mirror without hashes: not kept, so that the next run can do better."""
    server.published["/BiT-M-R50x1.npz"] = b"<html>Please log in</html>"
    server.no_hashes = True
    monkeypatch.setenv("BIT_PADDLE_BASE_URL", server.address)
    with pytest.raises(DownloadError, match="it is a web page"):
        published.obtain(published.find("BiT-M-R50x1"), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_progress_is_told_and_can_stop(server, tmp_path):
    told = []

    def progress(done, total):
        told.append((done, total))
        if len(told) == 2:
            raise InterruptedError

    with pytest.raises((InterruptedError, DownloadError)):
        fetch.fetch(server.url, tmp_path / "x", progress=progress)
    assert told[-1][1] == len(CONTENT) and 0 < told[0][0] < told[1][0]
    fetch.fetch(server.url, tmp_path / "x", expected=MD5)


@pytest.mark.parametrize(
    "faults, words",
    [
        ([404], "answered 404"),
        ([403], "answered 403"),
        (["wrong md5"], "not what was published"),
        (["wrong crc32c"], "its crc32c is"),
        (["wrong bytes"], "not what was published"),
        ([500] * 99, "gave up after 6 attempts.*500"),
    ],
)
def test_faults_that_stay(server, faults, words, tmp_path):
    server.faults = list(faults)
    with pytest.raises(DownloadError, match=words):
        fetch.fetch(server.url, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://nowhere.invalid/x"])
def test_nobody_answers(url, tmp_path, monkeypatch):
    """At once: there is nothing to wait for."""

    def unknown(host, *_, **__):
        raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {host}")

    if "invalid" in url:
        monkeypatch.setattr(socket, "getaddrinfo", unknown)  # some networks answer after seconds
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=pytest.fail))
    with pytest.raises(DownloadError, match="cannot be reached .*HTTPS_PROXY"):
        fetch.fetch(url, tmp_path / "x")


def test_a_disk_too_small(server, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 1000))
    with pytest.raises(DownloadError, match="too little space"):
        fetch.fetch(server.url, tmp_path / "x")


def test_a_folder_that_cannot_be(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch.fetch(server.url, tmp_path / "file" / "x")


def _fetch(url, path):
    fetch.fetch(url, path)


def test_many_processes_share_one_download(server, tmp_path):
    server.chunk_pause = 0.02
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_fetch, args=(server.url, tmp_path / "x")) for _ in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert (tmp_path / "x").read_bytes() == CONTENT and server.requests == [
        ("/folder/file.npz", None)
    ]


def test_killed_in_the_middle(server, tmp_path):
    path = "/folder/file.npz"
    server.chunk_pause = 0.1
    code = (
        f"from bit_paddle.system import fetch; fetch.fetch({server.url!r}, {str(tmp_path / 'x')!r})"
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
    server.chunk_pause = 0.0
    assert fetch.fetch(server.url, tmp_path / "x").read_bytes() == CONTENT
    assert server.requests == [(path, None), (path, f"bytes={there}-")]


@pytest.mark.parametrize(
    "home, xdg, expected",
    [
        ("/home", "/xdg", "/home"),
        ("", "/xdg", "/xdg/bit_paddle"),
        ("", "", "~/.cache/bit_paddle"),
    ],
)
def test_one_cache_for_all(home, xdg, expected, monkeypatch):
    monkeypatch.setenv("BIT_PADDLE_HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert fetch.cache_dir() == Path(expected).expanduser()
