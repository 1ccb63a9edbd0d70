"""Put load on `bit_paddle serve`: throughput, times of answers, and what hostile requests leave.

    python scripts/benchmarks/load.py
    python scripts/benchmarks/load.py --models BiT-Mini --clients 8 --seconds 5
    python scripts/benchmarks/load.py --hostile --requests 2000

Starts a server on 127.0.0.1 and sends small JPEGs from this process, each client on a connection of
its own, one request after the other. Prints per number of clients: images per second, the median,
the 95th and the 99th percentile of the time of an answer, and the answers by status. Before and
after, a process of its own measures the network alone at several batch sizes, as the evaluation
runs it; the share is that of the best batch before. R50x1 has random weights. --hostile sends
damaged requests and bombs, and prints the statuses and the memory of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hostile
import numpy as np

CROPS = {"R50x1": 224}  # side in pixels; of a packaged model, its own

BATCHES = (1, 8, 16, 32, 64)

_DIFFERENT = 16  # images that are sent in turn

_WARM = 5.0  # seconds of load before it is measured


# --- The network alone --------------------------------------------------------------------------


def network(model: str, crop: int | None, seconds: float) -> dict[int, float]:
    """Return images per second of the network for each batch size, in this process."""
    import bit_paddle

    trained = bit_paddle.load(model, crop=crop)
    compute, found = trained.function(), {}
    side = trained.file.preprocessing.crop
    for batch in BATCHES:
        pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, side, side), np.uint8)
        compute(pixels)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            compute(pixels)
            count += batch
        found[batch] = count / (time.perf_counter() - start)
    return found


def best_alone(model: str, crop: int | None, seconds: float) -> tuple[int, float]:
    """Return the batch size with the most images per second, and these; in another process."""
    words = [sys.executable, __file__, "--network", model, "--seconds", str(seconds)]
    words += ["--crop", str(crop)] if crop else []
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    batch = max(found, key=found.get)
    return int(batch), found[batch]


# --- The server ---------------------------------------------------------------------------------


@contextmanager
def server(model: str, *flags: str) -> Iterator[tuple[str, int, int]]:
    """Start a server; yield its host, its port and the id of its process."""
    words = [sys.executable, "-m", "bit_paddle.serve", model, "--port", "0", *flags]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        host, port = re.search(r"http://(.+?):(\d+)", line).groups()
        yield host, int(port), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def memory(process: int) -> float:
    """Return the megabytes that a process has in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000


def request_of(path: str, headers: dict[str, str], body: bytes) -> bytes:
    """Return a request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def answer_to(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> int:
    """Send a request and return the status of its answer."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"content-length: (\d+)", head, re.I)
    await reader.readexactly(int(length[1]) if length else 0)
    return int(head.split()[1])


# --- Load ---------------------------------------------------------------------------------------


async def load(
    host: str, port: int, clients: int, requests: list[bytes], seconds: float
) -> tuple[Counter, list[float], list[float]]:
    """Return the answers by status within ``seconds``; of those with status 200, ends and times.

    The clients begin `_WARM` seconds earlier, and end after their last answer.
    """
    statuses: Counter = Counter()
    ends: list[float] = []
    times: list[float] = []
    begin = time.perf_counter() + _WARM
    end = begin + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        while time.perf_counter() < end:
            start = time.perf_counter()
            number += 1
            status = await answer_to(reader, writer, requests[number % len(requests)])
            done = time.perf_counter()
            if begin <= done < end:
                statuses[status] += 1
                if status == 200:
                    ends.append(done)
                    times.append(done - start)
            if status != 200:
                await asyncio.sleep(0.05)
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    return statuses, ends, times


def speed(ends: np.ndarray, time: float) -> float:
    """Return answers per second. ``time`` is that of one answer.

    Answers end together, with their batch. So the first batch starts the clock, and the last one
    stops it.
    """
    start = ends.min()
    return np.count_nonzero(ends > start + time / 4) / (ends.max() - start)


def measure(model: str, crop: int | None, flags: argparse.Namespace) -> None:
    """Print the load on a server of one model."""
    side, images = crop or 64, flags.images
    files = [hostile.image(size=(side + k, side), quality=85) for k in range(_DIFFERENT)]
    requests = []
    for k in range(_DIFFERENT):
        headers, body = {"Content-Type": "image/jpeg"}, files[k]
        if images > 1:
            headers, body = hostile.multipart([files[(k + j) % _DIFFERENT] for j in range(images)])
        requests.append(request_of("/predict", headers, body))
    print(f"\n{Path(model).stem}, {images} images per request")
    batch, alone = best_alone(model, crop, flags.seconds / len(BATCHES))
    print(f"the network alone, best at batch {batch}: {alone:.1f} images/s")
    print("clients  images/s  of the network   median      p95      p99  answers by status")
    words = (["--crop", str(crop)] if crop else []) + flags.flags
    with server(model, *words) as (host, port, process):
        for clients in flags.clients:
            statuses, ends, times = asyncio.run(load(host, port, clients, requests, flags.seconds))
            points = np.percentile(times, (50, 95, 99)) * 1000
            rate = images * speed(np.array(ends), np.median(times))
            counts = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
            columns = "  ".join(f"{point:5.0f} ms" for point in points)
            print(
                f"{clients:7}  {rate:8.1f}  {rate / alone:14.2f}  {columns}  {counts}", flush=True
            )
        held = memory(process)
    batch, alone = best_alone(model, crop, flags.seconds / len(BATCHES))
    print(f"the network alone again, best at batch {batch}: {alone:.1f} images/s")
    print(f"memory of the server at the end: {held:,.0f} MB", flush=True)


# --- Hostile requests ---------------------------------------------------------------------------


async def attack(host: str, port: int, requests: list[bytes]) -> Counter:
    """Send each request on a connection of its own; return the statuses, 0 for a cut."""
    statuses: Counter = Counter()
    for request in requests:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            statuses[await answer_to(reader, writer, request)] += 1
        except (OSError, asyncio.IncompleteReadError):
            statuses[0] += 1
        writer.close()
    return statuses


def survive(flags: argparse.Namespace) -> None:
    """Print the statuses of damaged requests and bombs, and the memory that they leave."""
    damaged = [request_of(*one[1:]) for one in hostile.mutations(flags.requests)]
    bombs = [request_of(*one[1:]) for one, _ in hostile.bombs()]
    with server("BiT-Mini", "--allow-urls", *flags.flags) as (host, port, process):
        print(f"memory at the start: {memory(process):,.0f} MB")
        for name, requests in (
            ("a first round", damaged[: flags.requests // 4] + bombs),
            ("damaged requests", damaged),
            ("bombs", bombs),
            ("damaged requests again", damaged),
        ):
            statuses = asyncio.run(attack(host, port, requests))
            counts = ", ".join(f"{key}: {count:,}" for key, count in sorted(statuses.items()))
            print(f"{name}: {counts}; memory {memory(process):,.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["R50x1", "BiT-Mini"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each number of clients")
    parser.add_argument("--images", type=int, default=1, help="per request")
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--requests", type=int, default=2000, help="with --hostile")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of the server")
    parser.add_argument("--network", help=argparse.SUPPRESS)
    parser.add_argument("--crop", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.network:
        print(json.dumps(network(flags.network, flags.crop, flags.seconds)))
        return
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[2]))
    if flags.hostile:
        survive(flags)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in flags.models:
            crop = CROPS.get(name)
            model = name if crop is None else random_model(name, Path(folder))
            measure(model, crop, flags)


def random_model(name: str, folder: Path) -> str:
    """Write a network of random weights with 1,000 classes; return its path."""
    code = (
        "import sys; from bit_paddle import create_model, save_npz; "
        "save_npz(create_model(sys.argv[1], 1000), sys.argv[2])"
    )
    path = folder / f"{name}.npz"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, name, str(path)], check=True)
    return str(path)


if __name__ == "__main__":
    main()
