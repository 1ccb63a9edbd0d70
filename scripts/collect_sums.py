"""Ask the first server for the checksums of all published files; write them into the package.

    python scripts/collect_sums.py

No file is downloaded: the sums are those of the server's ``x-goog-hash``. Files that the server
does not answer for keep their entries. ``crc32c`` alone finds damage, ``md5`` also finds a file
that somebody has replaced; the server has no md5 of files that were uploaded in parts.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bit_paddle.errors import DownloadError
from bit_paddle.models import mirrors, published
from bit_paddle.system import fetch, files


def collect(path: Path = mirrors.SUMS) -> list[str]:
    """Write the sums into ``path``; return the faults of the files without an answer."""
    names = [entry.file for entry in published.CATALOG.values() if not entry.packaged]
    names += published.LEMMAS.values()
    known, faults = json.loads(path.read_text(encoding="utf-8")), []

    def ask(name: str) -> tuple[str, dict | str]:
        try:
            answer = fetch.ask(mirrors.addresses(name)[0])
        except DownloadError as error:
            return name, str(error)
        if answer.bytes is None or not answer.hashes:
            return name, f"{name}: the server tells no checksum"
        return name, {"bytes": answer.bytes, **answer.hashes}

    with ThreadPoolExecutor(8) as pool:
        for name, found in pool.map(ask, names):
            if isinstance(found, dict):
                known[name] = found
            else:
                faults.append(found)
    files.write_text(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(f"{len(names) - len(faults)} of {len(names)} files have checksums in {path}")
    return faults


if __name__ == "__main__":
    faults = collect()
    print("\n".join(faults), file=sys.stderr)
    sys.exit(1 if faults else 0)
