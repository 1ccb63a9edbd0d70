"""Download a file so that it is either whole and verified under its name, or not there at all.

Bytes go to ``<name>.part``; whatever interrupts the transfer, the next attempt or the next
process asks the server for the rest alone. Proxies are taken from the environment, as `requests`
does.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import time
from pathlib import Path

from bit_paddle.errors import DownloadError

ATTEMPTS = 6
FIRST_PAUSE = 1.0  # seconds; doubled after each failed attempt
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60  # seconds without an answer, and without a byte
_CHUNK = 1 << 18


class _TryAgain(Exception):
    """The transfer broke off, or the server may do better next time."""


def fetch(url: str, path: str | os.PathLike, md5: str | None = None) -> Path:
    """Return ``path``, downloaded from ``url`` if it is not there yet.

    The result is checked against the server's length, against ``md5`` (hexadecimal) and against
    the md5 in the server's ``x-goog-hash`` where they are given. Processes that ask for one file
    wait for one download. Raises `DownloadError`; nothing is then left under ``path``.
    """
    from filelock import FileLock  # both imported here: most commands download nothing
    from requests import RequestException

    path = Path(path)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            pause = FIRST_PAUSE
            for attempt in range(1, ATTEMPTS + 1):
                if path.is_file():  # another process was faster
                    return path
                try:
                    return _attempt(url, path, md5)
                except (_TryAgain, RequestException) as error:
                    if attempt == ATTEMPTS:
                        raise DownloadError(
                            f"{url}: gave up after {ATTEMPTS} attempts, the last: {error}; "
                            "what has arrived is kept, run the command again to go "
                            "on"
                        ) from error
                time.sleep(pause)
                pause *= 2
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{path}: cannot be written ({error.strerror or error})") from error
    raise AssertionError("the loop returns or raises")


def _attempt(url: str, path: Path, md5: str | None) -> Path:
    import requests
    from tqdm import tqdm

    partial = path.with_name(f"{path.name}.part")
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with requests.get(
        url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)
    ) as answer:
        if answer.status_code == 416:  # nothing beyond what is there: it may be another file's
            partial.unlink()
            raise _TryAgain("the partial file did not belong to the server's; starting over")
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise _TryAgain(f"the server answered {answer.status_code} {answer.reason}")
        if answer.status_code not in (200, 206):
            raise DownloadError(
                f"{url}: the server answered {answer.status_code} {answer.reason}; "
                "check the address and your proxy"
            )
        if answer.status_code == 200:  # the server ignores Range
            start = 0
        total = _total_length(answer.headers, start, answer.status_code)
        if total is not None and total - start > shutil.disk_usage(path.parent).free:
            raise DownloadError(
                f"{path.parent}: too little space: {path.name} needs "
                f"{(total - start) / 1e9:.2f} GB more, "
                f"{shutil.disk_usage(path.parent).free / 1e9:.2f} GB are free"
            )
        with (
            open(partial, "r+b" if start else "wb") as stream,
            tqdm(
                desc=path.name, total=total, initial=start, unit="B", unit_scale=True, disable=None
            ) as bar,
        ):
            stream.seek(start)
            for chunk in answer.iter_content(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        if total is not None and size != total:
            raise _TryAgain(f"{size:,} of {total:,} bytes arrived")
        _verify(partial, url, md5, _goog_md5(answer.headers))
    os.replace(partial, path)
    return path


def _total_length(headers: dict[str, str], start: int, status: int) -> int | None:
    """Return the whole file's length, as far as the server tells it."""
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise _TryAgain(f"asked for bytes from {start}, got {headers.get('Content-Range')!r}")
        return int(match[2]) if match[2] != "*" else None
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _goog_md5(headers: dict[str, str]) -> str | None:
    match = re.search(r"md5=([A-Za-z0-9+/=]+)", headers.get("x-goog-hash", ""))
    return base64.b64decode(match[1]).hex() if match else None


def _verify(partial: Path, url: str, *expected: str | None) -> None:
    expected = [value for value in expected if value]
    if not expected:
        return
    digest = hashlib.md5()
    with open(partial, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    for value in expected:
        if digest.hexdigest() != value:
            partial.unlink()
            raise DownloadError(
                f"{url}: what arrived has md5 {digest.hexdigest()}, expected {value}; "
                "it was removed. Something on the way changes files (a proxy?), or the "
                "published file has changed"
            )
