"""Where parquet files come from: a folder, a repository of the hub, or the hub's conversion."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from bit_paddle.data.readers import hub_layout
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, DataError, DownloadError, WriteError, printable
from bit_paddle.system import files, hub
from bit_paddle.system.fetch import ServerFault, cache_dir
from bit_paddle.system.hub import DataRepository, Listing


class Source(NamedTuple):
    """Parquet files on the hub or in a folder."""

    title: str  # for messages
    name: str  # of the folder in the cache
    files: Mapping[str, str]  # {relative path: its checksum, or its size and date}
    card: Mapping[str, Any]  # the front matter of README.md
    path: Callable[[str], Path]  # downloads a file that is missing
    converted: bool = False  # whether the files are the hub's own conversion


def local(spec: DataSpec) -> Source:
    """Return the parquet files of --datadir, which is a folder or one such file."""
    root = spec.folder
    if root.is_file():
        names, home = [root.name], root.parent
    else:
        home = root
        found = (path.relative_to(root).as_posix() for path in root.rglob("*.parquet"))
        names = [name for name in sorted(found) if not name.startswith(".") and "/." not in name]
    if not names:
        arrow = next(root.rglob("*.arrow"), None)
        raise DataError(
            f"--datadir {root}: has no parquet files"
            + (f", but {arrow}; write them with Dataset.to_parquet" if arrow else "")
        )
    card: dict[str, Any] = {}
    with suppress(OSError):
        if root.is_dir():
            card = hub_layout.front_matter(_text(home / "README.md"))
    states = {name: (home / name).stat() for name in names}
    marks = {name: f"{state.st_size} {state.st_mtime_ns}" for name, state in states.items()}
    marks = {name: f"{os.path.realpath(home)} {mark}" for name, mark in marks.items()}
    return Source(str(root), root.stem, marks, card, lambda name: home / name)


def on_hub(address: str) -> Source:
    """Return the parquet files of a repository, or of the hub's own conversion of it."""
    repository = DataRepository.parse(address)
    listing = _listing(repository)
    card: dict[str, Any] = {}
    if "README.md" in listing.sizes:
        card = hub_layout.front_matter(_text(_fetch(repository, listing, "README.md")))
    names = [name for name in listing.sizes if name.endswith(".parquet")]
    converted = not names and repository.revision == "main"
    if converted:
        script = f"{repository.name}.py"
        kind = "is a data set by the script " + script if script in listing.sizes else ""
        repository = repository._replace(revision=hub_layout.CONVERTED)
        try:
            listing = _listing(repository)
        except ConfigError:
            listing = Listing("", {}, {})
        names = [name for name in listing.sizes if name.endswith(".parquet")]
        if not names and kind:
            raise DataError(
                f"{address}: {kind}, which is not run: scripts of others are never executed. "
                "Export it with the `datasets` library of its own version (Dataset.to_parquet), "
                "and read that: --dataset hf --datadir FOLDER"
            )
    if not names:
        raise DataError(
            f"{address}: has no parquet files, and the hub has not converted it; download it, and "
            "read its folder: --dataset folder --datadir FOLDER"
        )
    marks = {name: f"{repository.id} {listing.sums.get(name, listing.commit)}" for name in names}
    return Source(
        address,
        f"{repository.owner}-{repository.name}",
        marks,
        card,
        lambda name: _fetch(repository, listing, name),
        converted,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _listing(repository: DataRepository) -> Listing:
    """Return the files of a repository by the hub; if it does not answer, as it last answered."""
    name = f"{repository.owner}--{repository.name}"
    record = cache_dir() / "hub" / name / f"{quote(repository.revision, safe='')}.json"
    last = None
    with suppress(OSError, ValueError, TypeError):
        last = Listing(**json.loads(record.read_text(encoding="utf-8")))
    if last and (repository.is_commit or hub.is_offline()):
        return last
    if hub.is_offline():
        raise DownloadError(
            f"{repository}: is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
        )
    try:
        listing = hub.listing(repository)
    except ServerFault as fault:
        if last is None:
            raise
        print(printable(f"warning: {fault}; the copy in the cache is used"), file=sys.stderr)
        return last
    with suppress(OSError, WriteError):  # a cache that cannot be written serves no offline use
        record.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(record, json.dumps(listing._asdict()))
    return listing


def _fetch(repository: DataRepository, listing: Listing, name: str) -> Path:
    """Return a file of the hub's cache, downloaded if it is missing or damaged."""
    folder = hub.storage(repository) / "snapshots" / listing.commit
    sha256 = listing.sums.get(name)
    if not (folder / name).is_file() or not hub.is_verified(folder / name, sha256):
        hub.transfer(repository, folder, name, listing.sizes[name], sha256)
    return folder / name
