"""Downloads: a file under its name is always complete and verified.

Bytes first go to ``<name>.part``. After an interruption the next attempt, or the next process,
downloads only the rest. Proxies come from the environment, as `requests` does it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Callable, NamedTuple

from bit_paddle.errors import DownloadError


def cache_dir() -> Path:
    """Return the folder of downloads, lists of images and compiled operators.

    ``BIT_PADDLE_HOME``, else ``XDG_CACHE_HOME``/bit_paddle, else ``~/.cache/bit_paddle``.
    """
    if home := os.environ.get("BIT_PADDLE_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bit_paddle"


ATTEMPTS = 6

FIRST_PAUSE = 1.0  # seconds; doubled after each failed attempt

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60  # seconds without an answer, and without a byte

_CHUNK = 1 << 18


class _TryAgain(Exception):
    """The transfer broke off, or the server may do better next time."""


def fetch(
    url: str,
    path: str | os.PathLike,
    md5: str | None = None,
    progress: Callable[[int, int | None], object] | None = None,
    fault_of: Callable[[Path], str | None] = lambda path: None,
    temporary: bool = False,
) -> Path:
    """Return ``path``, downloaded from ``url`` if it is not there yet.

    The result is checked against the server's length, against ``md5`` (hexadecimal) and against the
    server's ``x-goog-hash`` (md5 and crc32c), as far as these are known. Where there is no hash,
    ``fault_of(path)`` returns what is wrong with the content, or None. If several processes ask for
    one file, one downloads it and the others wait. ``progress(bytes so far, all bytes or None)``
    replaces the progress bar; an exception in it ends the transfer. Raises `DownloadError`, and
    leaves no file at ``path`` then. Unless ``path`` is ``temporary``, the message names it, for a
    file that the user downloads in another way.
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
                    return _attempt(url, path, md5, progress, fault_of)
                except (_TryAgain, RequestException) as error:
                    if attempt == 1 and _never_answered(error):
                        raise DownloadError(
                            f"{url}: cannot be reached ({_root_cause(error)}); is there a network, "
                            "or a proxy to name in HTTPS_PROXY?"
                            + f" A file downloaded elsewhere goes to {path}"
                            * (not temporary)
                        ) from error
                    if attempt == ATTEMPTS:
                        raise DownloadError(
                            f"{url}: gave up after {ATTEMPTS} attempts; the last error: {error}. "
                            "The same command resumes the download"
                        ) from error
                time.sleep(pause)
                pause *= 2
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{path}: cannot be written ({error.strerror or error})") from error
    raise AssertionError("the loop returns or raises")


class Answer(NamedTuple):
    """What the server tells about a file without sending it."""

    bytes: int | None
    hashes: dict[str, str]  # as `published_hashes` has them


def ask(url: str) -> Answer:
    """Return length and hashes of a file. Raises `DownloadError` if the server has no such file."""
    import requests

    try:
        answer = requests.head(
            url,
            headers={"Accept-Encoding": "identity"},
            allow_redirects=True,
            timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
        )
    except requests.RequestException as error:
        raise DownloadError(
            f"{url}: cannot be reached ({_root_cause(error)}); is there a network, or a proxy "
            "to name in HTTPS_PROXY?"
        ) from error
    if answer.status_code not in (200, 405, 501):  # the latter two: a mirror that has no HEAD
        raise DownloadError(f"{url}: the server answered {answer.status_code} {answer.reason}")
    length = answer.headers.get("Content-Length", "") if answer.status_code == 200 else ""
    return Answer(int(length) if length.isdigit() else None, published_hashes(answer.headers))


def partial_file(path: Path) -> Path:
    """Return the file that holds an unfinished download of ``path``."""
    return path.with_name(f"{path.name}.part")


def _attempt(
    url: str,
    path: Path,
    md5: str | None,
    progress: Callable | None,
    fault_of: Callable[[Path], str | None],
) -> Path:
    import requests

    from bit_paddle.system.progress import progress_bar

    partial = partial_file(path)
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with requests.get(
        url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)
    ) as answer:
        if answer.status_code == 416:  # no more bytes: complete, or another file
            if answer.headers.get("Content-Range") == f"bytes */{start}":
                _verify(partial, url, md5, answer.headers, resumed=True)
                os.replace(partial, path)
                return path
            partial.unlink()
            raise _TryAgain("the partial file is of another file; the download starts again")
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
        bar = progress_bar(
            desc=path.name,
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            leave=True,
            **({"disable": True} if progress else {}),
        )
        with bar, open(partial, "r+b" if start else "wb") as stream:
            stream.seek(start)
            for chunk in answer.iter_content(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
                if progress:
                    progress(stream.tell(), total)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        if total is not None and size != total:
            raise _TryAgain(f"{size:,} of {total:,} bytes arrived")
        _verify(partial, url, md5, answer.headers, resumed=start > 0)
        fault = None if md5 or published_hashes(answer.headers) else fault_of(partial)
        if fault:
            partial.unlink()
            raise DownloadError(
                f"{url}: the server sent something else: {fault}. The file was removed. "
                "Did a login page or a proxy answer instead?"
            )
    os.replace(partial, path)
    return path


def _never_answered(error: BaseException) -> bool:
    """Return whether there was no connection at all, so that a new attempt would not help."""
    from urllib3.exceptions import NewConnectionError, ProxyError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, (NewConnectionError, ProxyError))


def _root_cause(error: BaseException) -> str:
    return str(getattr(error.args[0], "reason", error)).split(": ", 1)[-1]


def _total_length(headers: dict[str, str], start: int, status: int) -> int | None:
    """Return the length of the whole file, or None if the server does not tell it."""
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise _TryAgain(f"asked for bytes from {start}, got {headers.get('Content-Range')!r}")
        return int(match[2]) if match[2] != "*" else None
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def published_hashes(headers: Mapping[str, str]) -> dict[str, str]:
    """Return {"md5": …, "crc32c": …} in hexadecimal, as far as ``x-goog-hash`` has them."""
    pairs = re.findall(r"(md5|crc32c)=([A-Za-z0-9+/=]+)", headers.get("x-goog-hash", ""))
    return {kind: base64.b64decode(value).hex() for kind, value in pairs}


def wrong_hash(path: Path, expected: Mapping[str, str]) -> str | None:
    """Return which of ``expected``, "md5" and "crc32c", a file does not have, or None."""
    import crc32c

    md5, crc = hashlib.md5(), 0
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            md5.update(chunk)
            crc = crc32c.crc32c(chunk, crc)
    found = {"md5": md5.hexdigest(), "crc32c": f"{crc:08x}"}
    for kind, value in expected.items():
        if found[kind] != value:
            return f"its {kind} is {found[kind]}, expected {value}"
    return None


def _verify(
    partial: Path, url: str, md5: str | None, headers: Mapping[str, str], resumed: bool
) -> None:
    """Remove ``partial`` and raise if its hash is wrong; a resumed file may mix two versions."""
    hashes = [published_hashes(headers), {"md5": md5} if md5 else {}]
    faults = [wrong_hash(partial, some) for some in hashes if some]
    if any(faults):
        partial.unlink()
        if resumed:
            raise _TryAgain("the hash of the resumed file is wrong; the download starts again")
        raise DownloadError(
            f"{url}: what arrived is not what was published, {next(filter(None, faults))}; "
            "it was removed. Something on the way changes files (a proxy?), or the published file "
            "has changed"
        )
