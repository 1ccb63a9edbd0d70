"""Checksums of files: what a server tells, and whether a file has them."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def told_by(headers: Mapping[str, str]) -> dict[str, str]:
    """Return {"md5": …, "crc32c": …} in hexadecimal, as far as ``x-goog-hash`` has them."""
    pairs = re.findall(r"(md5|crc32c)=([A-Za-z0-9+/=]+)", headers.get("x-goog-hash", ""))
    told = {}
    for kind, value in pairs:
        with suppress(ValueError):  # no base64: nothing is told
            told[kind] = base64.b64decode(value, validate=True).hex()
    return told


def wrong_sum(path: Path, expected: Mapping[str, Any]) -> str | None:
    """Return which of ``expected`` a file does not have, or None.

    ``expected`` has "bytes", an int, and "md5", "sha256" and "crc32c", hexadecimal, as far as they
    are known.
    """
    import crc32c

    size, crc = 0, 0
    digests = {kind: hashlib.new(kind) for kind in ("md5", "sha256") if kind in expected}
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            size += len(chunk)
            crc = crc32c.crc32c(chunk, crc) if "crc32c" in expected else 0
            for digest in digests.values():
                digest.update(chunk)
    found = {kind: digest.hexdigest() for kind, digest in digests.items()}
    found.update(bytes=size, crc32c=f"{crc:08x}")
    for kind, value in expected.items():
        if found[kind] != value:
            name = "length" if kind == "bytes" else kind
            return f"its {name} is {found[kind]}, expected {value}"
    return None
