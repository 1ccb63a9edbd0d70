"""Servers of the published files, and what is known about the files' bytes.

``BIT_PADDLE_BASE_URL`` replaces the address of the first server. ``BIT_PADDLE_MIRRORS`` lists more
addresses, separated by commas or blanks. They are asked in this order, each for ``ADDRESS/FILE``. A
mirror need not be trusted: its file must have the checksum that ``pretrained/sums.json`` holds
(written by ``scripts/collect_sums.py``) or, where that file has none, the checksum that the first
server tells. If the first server cannot be reached either, the arrays' names, shapes and CRC-32 are
checked, which finds damage but no malice, and a warning says so.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from bit_paddle.errors import ConfigError, printable
from bit_paddle.system import fetch

BASE_URL = "https://storage.googleapis.com/bit_models/"

SUMS = Path(__file__).parents[1] / "pretrained" / "sums.json"


def addresses(file: str) -> list[str]:
    """Return the addresses of a published file in the order in which they are asked.

    Raises `ConfigError` for a setting that is no list of addresses.
    """
    bases = [("BIT_PADDLE_BASE_URL", os.environ.get("BIT_PADDLE_BASE_URL", "").strip() or BASE_URL)]
    words = re.split(r"[,\s]+", os.environ.get("BIT_PADDLE_MIRRORS", ""))
    bases += [("BIT_PADDLE_MIRRORS", word) for word in words if word]
    for variable, base in bases:
        if not re.match(r"https?://[^/]", base):
            raise ConfigError(
                f"{variable}: {base!r} is no address, expected https://SERVER/FOLDER; "
                "--bit_pretrained_dir or BIT_PADDLE_HOME name a folder of files on this machine"
            )
    return list(dict.fromkeys(f"{base.rstrip('/')}/{file}" for _, base in bases))


@lru_cache(maxsize=1)
def catalogue() -> dict[str, dict[str, Any]]:
    """Return {file: {"bytes": …, "md5": …, "crc32c": …}}, as `checksums.wrong_sum` has them."""
    return json.loads(SUMS.read_text(encoding="utf-8"))


def expected(file: str) -> dict[str, Any]:
    """Return what is known about a published file: the catalogue's sums, or the first server's.

    Raises `fetch.ServerFault` if the first server has to be asked and does not answer.
    """
    if sums := catalogue().get(file):
        return sums
    answer = fetch.ask(addresses(file)[0])
    known = answer.hashes and answer.bytes is not None
    return {**answer.hashes, "bytes": answer.bytes} if known else answer.hashes


def fetch_published(
    file: str,
    path: Path,
    fault_of: Callable[[Path], str | None],
    progress: Callable[[int, int | None], object] | None = None,
) -> Path:
    """Return ``path``, with a published file from the first server or a mirror.

    ``fault_of`` and ``progress`` are those of `fetch.fetch`. Raises `DownloadError`.
    """
    urls, sums, mirrors_only = addresses(file), catalogue().get(file), False
    if not sums and len(urls) > 1 and not path.is_file():
        try:
            sums = expected(file)
        except fetch.Unreachable as fault:  # it need not be waited for twice
            print(printable(f"{fault}; another server is asked"), file=sys.stderr)
            urls, mirrors_only = urls[1:], True
        except fetch.ServerFault:
            sums = {}
    return fetch.fetch(
        urls, path, sums, progress=progress, fault_of=fault_of, mirrors_only=mirrors_only
    )


def check_reachable(file: str) -> None:
    """Raise `fetch.ServerFault` if no server has a published file."""
    faults = []
    for url in addresses(file):
        try:
            fetch.ask(url)
            return
        except fetch.ServerFault as fault:
            faults.append(fault)
    raise faults[0]
