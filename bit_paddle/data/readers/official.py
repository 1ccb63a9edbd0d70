"""Official files of data sets: in --datadir, or downloaded once and verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bit_paddle.data.readers.archives import unpacked
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import MissingFileError
from bit_paddle.system import fetch


class Part(NamedTuple):
    """An official file; for an archive also its unpacked folder."""

    file: str
    expected: dict[str, Any]  # as `checksums.wrong_sum` has them
    folder: str | None = None

    def is_in(self, root: Path) -> bool:
        unpacked_before = self.folder is not None and (root / self.folder).is_dir()
        return unpacked_before or (root / self.file).is_file()


def official_folder(spec: DataSpec, name: str, url: str, parts: Sequence[Part]) -> Path:
    """Return the folder of the official files, unpacked; without --datadir download them."""
    if spec.datadir:
        root = spec.folder
        missing = [
            part.file + (f" (or its folder {part.folder}/)" if part.folder else "")
            for part in parts
            if not part.is_in(root)
        ]
        if missing:
            raise MissingFileError(
                f"--datadir {root}: missing {', '.join(missing)}; leave --datadir out to download "
                f"the files of {spec.reader}"
            )
    else:
        root = fetch.cache_dir() / name
        for part in parts:
            if not part.is_in(root):
                fetch.fetch(url + part.file, root / part.file, expected=part.expected)
    for part in parts:
        if part.folder:
            unpacked(root / part.file, root / part.folder)
    return root
