"""A real server in a process of its own, and requests to it."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
from PIL import Image

from helpers.commands import wait_until
from helpers.places import ROOT

JPEG = {"Content-Type": "image/jpeg"}


class Running(NamedTuple):
    """A server: its web address, its process, and the file of what it prints as errors."""

    address: str
    process: subprocess.Popen
    log: Path

    @property
    def place(self) -> tuple[str, int]:
        host, port = re.fullmatch(r"http://(.+):(\d+)", self.address).groups()
        return host, int(port)

    def get(self, path: str, **options) -> requests.Response:
        return requests.get(f"{self.address}{path}", timeout=30, **options)

    def post(self, path: str, **options) -> requests.Response:
        return requests.post(f"{self.address}{path}", timeout=30, **options)

    def connect(self, timeout: float = 30) -> socket.socket:
        return socket.create_connection(self.place, timeout)

    def counter(self, name: str) -> float:
        """Return the sum of a counter of the metrics over its labels."""
        text = self.get("/metrics").text
        found = re.findall(rf"^bit_paddle_{name}(?:{{.*}})? (\S+)$", text, re.M)
        return sum(map(float, found))

    def stop(self) -> int:
        """End the server as a supervisor does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running(*flags: object, model: object = "BiT-Mini", workers: int = 1, **variables: str):
    """Start ``bit_paddle serve``, yield it when it is ready, and end it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "out"), Path(folder, "log")
        words = [model, "--port", 0, "--workers", workers, *flags]
        process = subprocess.Popen(
            [sys.executable, "-m", "bit_paddle.serve", *map(str, words)],
            stdout=out.open("wb"),
            stderr=log.open("wb"),
            env=environment,
        )
        try:

            def addresses() -> list[str]:
                assert process.poll() is None, log.read_text()
                return re.findall(r"at (http://\S+?)[; ]", out.read_text())

            wait_until(lambda: len(addresses()) == workers, seconds=120)
            yield Running(addresses()[0], process, log)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def picture(size: tuple[int, int] = (80, 60), seed: int = 0) -> Image.Image:
    """Return a smooth image of its own colours."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    """Return the content of an image file."""
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def answers(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield (status, body) of each answer on a connection, until the server closes it."""
    stream = connection.makefile("rb")
    while line := stream.readline():
        length = 0
        while (header := stream.readline()).strip():
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        yield int(line.split()[1]), stream.read(length)
