"""Files at addresses: ``https://`` by `system.fetch`, others (``s3://`` …) by fsspec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bit_paddle.errors import ConfigError, DownloadError, install_hint
from bit_paddle.system import fetch as downloads
from bit_paddle.system.checksums import wrong_sum
from bit_paddle.system.progress import progress_bar

_WEB = ("http://", "https://")

_CHUNK = 1 << 20


def is_address(text: str) -> bool:
    """Return whether ``text`` is an address, not a path."""
    return "://" in text


def fetch(address: str, path: Path, expected: Mapping[str, Any] | None = None) -> Path:
    """Return ``path``, transferred from ``address`` if it is not there yet.

    The rest of an interrupted transfer follows. The result is compared with what is ``expected``,
    as `wrong_sum` has it. If several processes ask for one file, one transfers it. Errors:
    `DownloadError`; `ConfigError` if a package for such addresses is missing.
    """
    if address.startswith(_WEB):
        return downloads.fetch(address, path, expected, temporary=True)
    from filelock import FileLock  # imported here: most data sets are files

    source = _source(address)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                _transfer(source, address, path, expected or {})
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{address}: cannot be copied to {path} ({error})") from error
    except Exception as error:  # each service has its own
        raise DownloadError(f"{address}: cannot be read ({error})") from error
    return path


def _source(address: str) -> Any:
    """Return the file at ``address`` for `open`. Raises `ConfigError`."""
    try:
        import fsspec
    except ImportError:
        raise ConfigError(f"{address}: needs fsspec: {install_hint('remote')}") from None
    try:
        return fsspec.open(address, "rb")
    except (ImportError, ValueError) as error:  # s3fs is missing, or no such protocol
        raise ConfigError(f"{address}: {error}") from error


def _transfer(source: Any, address: str, path: Path, expected: Mapping[str, Any]) -> None:
    partial = downloads.partial_file(path)
    start = partial.stat().st_size if partial.exists() else 0
    size = source.fs.size(source.path)
    if None not in (size, expected.get("bytes")) and size != expected["bytes"]:
        raise DownloadError(f"{address}: has {size:,} bytes, expected {expected['bytes']:,}")
    with (
        source as stream,
        open(partial, "ab") as sink,
        progress_bar(desc=path.name, total=size, initial=start, unit="B", unit_scale=True) as bar,
    ):
        stream.seek(start)
        while chunk := stream.read(_CHUNK):
            sink.write(chunk)
            bar.update(len(chunk))
        sink.flush()
        os.fsync(sink.fileno())
    fault = wrong_sum(partial, {"bytes": size, **expected} if size is not None else expected)
    if fault:
        partial.unlink()
        raise DownloadError(
            f"{address}: what arrived is not what was published, {fault}; it was removed. The same "
            "command transfers it again"
        )
    os.replace(partial, path)
