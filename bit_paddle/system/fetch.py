"""Downloads: a file under its name is always complete and verified.

Bytes first go to ``<name>.part``. After an interruption the next attempt, or the next process,
downloads only the rest. Proxies come from the environment, as `requests` does it.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from bit_paddle.errors import DownloadError, printable
from bit_paddle.system.checksums import told_by, wrong_sum


def cache_dir() -> Path:
    """Return the folder of downloads, lists of images and compiled operators.

    ``BIT_PADDLE_HOME``, else ``XDG_CACHE_HOME``/bit_paddle, else ``~/.cache/bit_paddle``.
    """
    if home := os.environ.get("BIT_PADDLE_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bit_paddle"


ATTEMPTS = 6

FIRST_PAUSE = 1.0  # seconds; doubled after each failed attempt

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 20  # seconds without an answer, and without a byte

_CHUNK = 1 << 18


class ServerFault(DownloadError):
    """A server cannot be reached, or sends an error or wrong bytes; another may do better."""


class Unreachable(ServerFault):
    """There is no connection to a server."""


class _TryAgain(Exception):
    """The transfer broke off, or the server may do better next time."""


def fetch(
    urls: str | Sequence[str],
    path: str | os.PathLike,
    expected: Mapping[str, Any] | None = None,
    progress: Callable[[int, int | None], object] | None = None,
    fault_of: Callable[[Path], str | None] = lambda path: None,
    temporary: bool = False,
    mirrors_only: bool = False,
) -> Path:
    """Return ``path``, downloaded from the first of ``urls`` that sends it, if it is not there yet.

    The result is checked against the server's length, against what is ``expected`` (as `wrong_sum`
    has it) and against the server's ``x-goog-hash`` (md5 and crc32c), as far as these are known.
    Where there is no hash, ``fault_of(path)`` returns what is wrong with the content, or None. All
    ``urls`` but the first (with ``mirrors_only``, all) are mirrors: what they say about their own
    file proves nothing. If nothing is ``expected``, ``fault_of`` checks their file, and a warning
    names the mirror.

    Each server has one attempt before any has a second, up to `ATTEMPTS`. A server has no further
    attempt if it cannot be reached, has no such file or sends wrong bytes. Standard error tells the
    fault of a server before another one is asked.

    If several processes ask for one file, one downloads it and the others wait. ``progress(bytes so
    far, all bytes or None)`` replaces the progress bar; an exception in it ends the transfer.
    Raises `DownloadError` (a `ServerFault` if other servers might do better), and leaves no file at
    ``path`` then. Unless ``path`` is ``temporary``, the message names it, for a file that the user
    downloads in another way.
    """
    from filelock import FileLock  # imported here: most commands download nothing

    path = Path(path)
    if path.is_file():
        return path
    urls = [urls] if isinstance(urls, str) else list(urls)
    advice = "" if temporary else f". A file downloaded elsewhere goes to {path}"

    def attempt(url: str) -> Path:
        mirror = mirrors_only or url != urls[0]
        return _attempt(url, path, expected or {}, progress, fault_of, mirror)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.is_file():  # another process was faster
                return path
            return _ask_in_turn(urls, attempt, advice)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{path}: cannot be written ({error.strerror or error})") from error


def _ask_in_turn(urls: list[str], attempt: Callable[[str], Path], advice: str) -> Path:
    """Return ``attempt(url)`` of the first of ``urls`` that succeeds, as `fetch` describes it."""
    from requests import RequestException

    remaining, pause = list(urls), FIRST_PAUSE
    faults: dict[str, Exception] = {}
    for number in range(1, ATTEMPTS + 1):
        for url in list(remaining):
            try:
                return attempt(url)
            except ServerFault as error:
                faults[url] = error
                remaining.remove(url)
            except (_TryAgain, RequestException) as error:
                faults[url] = error
                if _never_answered(error, number, alone=len(urls) == 1):
                    faults[url] = _unreachable(url, error, advice * (len(urls) == 1))
                    remaining.remove(url)
            if len(urls) > 1 and remaining:
                line = f"{_line(url, faults[url])}; another server is asked"
                print(printable(line), file=sys.stderr)
        if not remaining:
            break
        if number < ATTEMPTS:
            if len(urls) == 1:
                line = f"{_line(urls[0], faults[urls[0]])}; attempt {number + 1} of {ATTEMPTS}"
                print(printable(f"{line} in {pause:.2g} s"), file=sys.stderr)
            time.sleep(pause)
            pause *= 2
    for url in remaining:
        faults[url] = ServerFault(
            f"{url}: gave up after {ATTEMPTS} attempts; the last error: {faults[url]}. "
            "The same command resumes the download"
        )
    if len(urls) == 1:
        raise faults[urls[0]]
    lines = "".join(f"\n  {faults[url]}" for url in urls)
    kind = Unreachable if all(isinstance(f, Unreachable) for f in faults.values()) else ServerFault
    raise kind(f"none of {len(urls)} servers sent the file{advice}{lines}")


def _line(url: str, fault: Exception) -> str:
    return str(fault) if isinstance(fault, ServerFault) else f"{url}: {root_cause(fault)}"


def _unreachable(url: str, error: Exception, advice: str = "") -> Unreachable:
    return Unreachable(
        f"{url}: cannot be reached ({root_cause(error)}); is there a network, or a proxy "
        f"to name in HTTPS_PROXY? BIT_PADDLE_MIRRORS names other servers.{advice.lstrip('.')}"
    )


class Answer(NamedTuple):
    """What the server tells about a file without sending it."""

    bytes: int | None
    hashes: dict[str, str]  # as `checksums.told_by` has them


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
        raise _unreachable(url, error) from error
    if answer.status_code not in (200, 405, 501):  # the latter two: a mirror that has no HEAD
        raise ServerFault(f"{url}: the server answered {answer.status_code} {answer.reason}")
    length = _length(answer.headers) if answer.status_code == 200 else None
    return Answer(length, told_by(answer.headers))


def partial_file(path: Path) -> Path:
    """Return the file that holds an unfinished download of ``path``."""
    return path.with_name(f"{path.name}.part")


def _attempt(
    url: str,
    path: Path,
    expected: Mapping[str, Any],
    progress: Callable | None,
    fault_of: Callable[[Path], str | None],
    mirror: bool,
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
                _verify(partial, url, expected, answer.headers, fault_of, mirror, resumed=True)
                os.replace(partial, path)
                return path
            partial.unlink()
            raise _TryAgain("the partial file is of another file; the download starts again")
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise _TryAgain(f"the server answered {answer.status_code} {answer.reason}")
        if answer.status_code not in (200, 206):
            raise ServerFault(
                f"{url}: the server answered {answer.status_code} {answer.reason}; "
                "check the address and your proxy"
            )
        if answer.status_code == 200:  # the server ignores Range
            start = 0
        total = _total_length(answer.headers, start, answer.status_code)
        if None not in (total, expected.get("bytes")) and total != expected["bytes"]:
            raise ServerFault(f"{url}: has {total:,} bytes, expected {expected['bytes']:,}")
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
                if stream.tell() > expected.get("bytes", math.inf):
                    partial.unlink()
                    raise ServerFault(f"{url}: sends more than {expected['bytes']:,} bytes")
                bar.update(len(chunk))
                if progress:
                    progress(stream.tell(), total)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        if total is not None and size != total:
            raise _TryAgain(f"{size:,} of {total:,} bytes arrived")
        _verify(partial, url, expected, answer.headers, fault_of, mirror, resumed=start > 0)
    os.replace(partial, path)
    return path


def _never_answered(error: BaseException, number: int, alone: bool) -> bool:
    """Return whether there was no connection at all, so that a new attempt would not help.

    A server that is ``alone`` may need more time than `CONNECT_TIMEOUT` once.
    """
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(reason, (NewConnectionError, ProxyError)):
        return number == 1
    return isinstance(reason, ConnectTimeoutError) and number == (2 if alone else 1)


def root_cause(error: BaseException) -> str:
    """Return the words of `requests` or httpx for a failure, without the wrapping."""
    reason = getattr(error.args[0], "reason", error) if error.args else error
    return str(reason).split(": ", 1)[-1]


def _total_length(headers: dict[str, str], start: int, status: int) -> int | None:
    """Return the length of the whole file, or None if the server does not tell it."""
    if status == 206:
        number = r"[0-9]{1,18}"
        text = headers.get("Content-Range", "")
        match = re.fullmatch(rf"bytes ({number})-{number}/({number}|\*)", text)
        if match is None or int(match[1]) != start:
            raise _TryAgain(f"asked for bytes from {start}, got {text!r}")
        return int(match[2]) if match[2] != "*" else None
    return _length(headers)


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _verify(
    partial: Path,
    url: str,
    expected: Mapping[str, Any],
    headers: Mapping[str, str],
    fault_of: Callable[[Path], str | None],
    mirror: bool,
    resumed: bool,
) -> None:
    """Remove ``partial`` and raise if its content is wrong; a resumed file may mix two versions."""
    told = told_by(headers)
    fault = next(filter(None, (wrong_sum(partial, some) for some in (told, expected) if some)), "")
    if fault:
        fault = (
            f"what arrived is not what was published, {fault}; it was removed. Something on the "
            "way changes files (a proxy?), or the published file has changed"
        )
    elif not expected and (mirror or not told):
        fault = fault_of(partial)
        if fault:
            fault = (
                f"the server sent something else: {fault}. The file was removed. "
                "Did a login page or a proxy answer instead?"
            )
    if fault:
        partial.unlink()
        if resumed:
            raise _TryAgain("the resumed file is wrong; the download starts again")
        raise ServerFault(f"{url}: {fault}")
    if mirror and not expected:
        print(
            f"warning: {url}: no checksum of this file is known, so the mirror had to be trusted",
            file=sys.stderr,
        )
