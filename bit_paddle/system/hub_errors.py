"""Failures of `huggingface_hub`: which deserve another attempt, and what the user reads.

Its versions speak HTTP by different packages (requests in 0.x, httpx in 1.x, httpx2 in 2.x). The
base class of its own errors is the base class of that package's errors in each of them.
"""

from __future__ import annotations

import errno
import re
import time
from typing import Any, Callable

from bit_paddle.errors import BitPaddleError, ConfigError, DownloadError
from bit_paddle.system.fetch import FIRST_PAUSE, ServerFault, Unreachable, root_cause

ATTEMPTS = 4  # huggingface_hub makes attempts of its own within each

LONGEST_PAUSE = 300  # seconds; the hub counts requests in windows of five minutes

_MALFORMED = (ValueError, TypeError, LookupError, AttributeError)  # an answer that is no hub's

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def translated(call: Callable[[], Any], title: str, attempts: int = ATTEMPTS) -> Any:
    """Return ``call()``, which uses `huggingface_hub`; repeat it if another attempt may help.

    Errors, whose messages begin with ``title``: `ConfigError` (no such repository or revision),
    `Unreachable`, `ServerFault` (the hub sends errors), `DownloadError`.
    """
    from huggingface_hub import errors

    failures = (
        errors.HfHubHTTPError.__bases__[0],
        errors.EntryNotFoundError,
        getattr(errors, "XetDownloadError", OSError),
        OSError,
        RuntimeError,
        *_MALFORMED,
    )
    pause = FIRST_PAUSE
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except BitPaddleError:
            raise
        except failures as error:
            cause = _cause(error)
            wait = _wait(cause, pause)
            if wait is None or wait > LONGEST_PAUSE or attempt == attempts:
                raise _translation(cause, title, wait) from error
        time.sleep(wait)
        pause *= 2
    raise AssertionError("the loop returns or raises")


def _cause(error: BaseException) -> BaseException:
    """Return what made the hub unable to answer; `huggingface_hub` may hide it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    hidden = isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None
    return error.__cause__ if hidden else error


def _wait(error: BaseException, pause: float) -> float | None:
    """Return the seconds until another attempt, or None if none would help."""
    from huggingface_hub import errors

    status = _status(error)
    if status == 429:
        asked = error.response.headers.get("Retry-After", "")
        return float(asked) if re.fullmatch(r"[0-9]{1,18}", asked) else pause
    if status is not None:
        return pause if status >= 500 or status == 408 else None
    final = (errors.EntryNotFoundError, errors.OfflineModeIsEnabled, *_MALFORMED)
    if isinstance(error, final) or _is_unreachable(error) or _of_the_disk(error):
        return None
    return pause


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_unreachable(error: BaseException) -> bool:
    """Return whether there was no connection, in the words of requests or httpx."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    names = {type(error).__name__, type(reason).__name__}
    return bool(
        names & {"ConnectError", "ConnectTimeout", "ProxyError", "NewConnectionError"}
        or names & {"NameResolutionError", "ConnectTimeoutError", "UnsupportedProtocol"}
    )


def _of_the_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def _translation(error: BaseException, title: str, wait: float | None) -> BitPaddleError:
    """Return the error for the user."""
    from huggingface_hub import errors

    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{title}: is gated: accept its conditions on the page of the repository, and set "
            "HF_TOKEN to a token of that account"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigError(
            f"{title}: the hub has no such repository, or it is private and HF_TOKEN is not the "
            "token of a reader"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigError(f"{title}: the repository has no such revision (branch, tag or commit)")
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return DownloadError(f"{title}: the repository has no such file")
    if status in (401, 403):
        return DownloadError(
            f"{title}: the hub refuses it ({status}); HF_TOKEN must be a token with that permission"
        )
    if status == 429 and wait and wait > LONGEST_PAUSE:
        return ServerFault(f"{title}: too many requests; the hub asks to wait for {wait:.0f} s")
    if status is not None:
        return ServerFault(f"{title}: the hub answered {status}; try again later")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return DownloadError(f"{title}: HF_HUB_OFFLINE forbids to ask the hub")
    if _of_the_disk(error):
        return DownloadError(f"{title}: the cache cannot be written ({error})")
    text = " ".join(root_cause(error).split()) or type(error).__name__
    if _is_unreachable(error):
        return Unreachable(
            f"{title}: the hub cannot be reached ({text}); HF_ENDPOINT names a mirror of the hub, "
            "HTTPS_PROXY a proxy"
        )
    if isinstance(error, _MALFORMED):
        return malformed(title, error)
    return ServerFault(f"{title}: the transfer failed ({text}); the same command tries it again")


def malformed(title: str, error: BaseException) -> ServerFault:
    """Return the error for an answer that huggingface_hub or this package cannot understand."""
    return ServerFault(
        f"{title}: the answer is not that of a hub ({root_cause(error)}); is HF_ENDPOINT right, or "
        "did a login page or a proxy answer?"
    )
