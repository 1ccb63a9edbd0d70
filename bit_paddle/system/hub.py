"""Repositories of the Hugging Face hub, ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``.

The package `huggingface_hub` transfers the files and keeps them in its own cache, which other
programs share: ``HF_HUB_CACHE``, else ``HF_HOME``/hub, else ~/.cache/huggingface/hub. It sends the
token ``HF_TOKEN``. ``HF_ENDPOINT`` is the address of a mirror of the hub. With ``HF_HUB_OFFLINE=1``
nothing but the cache is used. The variables count at each call.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bit_paddle.errors import ConfigError, DownloadError, WriteError, install_hint
from bit_paddle.system import files, hub_errors
from bit_paddle.system.checksums import wrong_sum
from bit_paddle.system.fetch import ServerFault, cache_dir

PREFIX = "hf:"

HINT = f"the package huggingface_hub is needed: {install_hint('hub')}"

ENDPOINT = "https://huggingface.co"

COMMIT = r"[0-9a-f]{40}"


class Repository(NamedTuple):
    """A repository of the hub, at a branch, a tag or a commit."""

    owner: str
    name: str
    revision: str = "main"

    kind = "model"
    example = "timm/resnetv2_50x1_bit.goog_in21k"

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Return the repository of ``hf:OWNER/NAME@REVISION``; raise `ConfigError` for other text.

        ``hf:`` and ``@REVISION`` may be missing.
        """
        address, at, revision = text[text.startswith(PREFIX) and len(PREFIX) :].partition("@")
        parts = address.split("/")
        word = r"(?!.*(--|\.\.))\w([\w.-]{0,94}\w)?"
        right = len(parts) == 2 and all(re.fullmatch(word, part, re.ASCII) for part in parts)
        if at:
            right = right and re.fullmatch(r"(?!.*(\.\.|//))\w([\w./-]*\w)?", revision, re.ASCII)
        if not right:
            raise ConfigError(
                f"{text!r} is no repository of the Hugging Face hub; expected hf:OWNER/NAME or "
                "hf:OWNER/NAME@REVISION, such as "
                f"hf:{cls.example}"
            )
        return cls(*parts, *([revision] if at else []))

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def is_commit(self) -> bool:
        return re.fullmatch(COMMIT, self.revision) is not None

    def __str__(self) -> str:
        return f"{PREFIX}{self.id}" + f"@{self.revision}" * (self.revision != "main")


class DataRepository(Repository):
    """A repository that holds a data set; the hub lists these apart from the models."""

    kind = "dataset"
    example = "ylecun/mnist"


class Listing(NamedTuple):
    """The files of a repository at a commit: {file: bytes}, and {file: sha256} of the large."""

    commit: str
    sizes: dict[str, int]
    sums: dict[str, str]


def is_installed() -> bool:
    """Return whether `huggingface_hub` is installed."""
    return importlib.util.find_spec("huggingface_hub") is not None


def is_offline() -> bool:
    """Return whether ``HF_HUB_OFFLINE`` forbids to ask the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def api() -> Any:
    """Return huggingface_hub's interface to the hub."""
    if not is_installed():
        raise ConfigError(HINT)
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from bit_paddle import __version__
    from bit_paddle.system.progress import bars_are_shown

    if not bars_are_shown():  # those of uploads do not look for a terminal themselves
        disable_progress_bars()

    for name in ("httpx", "httpx2"):  # Paddle turns all messages on; these show signed addresses
        logging.getLogger(name).setLevel(logging.WARNING)

    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or ENDPOINT
    if not re.match(r"https?://[^/]", endpoint):
        raise ConfigError(f"HF_ENDPOINT: {endpoint!r} is no address, expected https://SERVER")
    return HfApi(endpoint=endpoint, library_name="bit_paddle", library_version=__version__)


def cache() -> Path:
    """Return the cache of huggingface_hub, by the rules of that package."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(cache)))


def storage(repository: Repository) -> Path:
    """Return the folder of a repository in the cache."""
    return cache() / f"{repository.kind}s--{repository.owner}--{repository.name}"


def snapshot(repository: Repository) -> Path | None:
    """Return the folder of the repository's commit in the cache, or None if it is not there."""
    folder, commit = storage(repository), repository.revision
    with suppress(OSError, ValueError):
        commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
    folder = folder / "snapshots" / commit
    return folder if re.fullmatch(COMMIT, commit) and folder.is_dir() else None


def listing(repository: Repository) -> Listing:
    """Ask the hub for the files of a repository. Errors: those of `hub_errors.translated`."""
    hub = api()
    info = hub_errors.translated(
        lambda: hub.repo_info(
            repository.id,
            repo_type=repository.kind,
            revision=repository.revision,
            files_metadata=True,
            timeout=10,
        ),
        str(repository),
    )
    try:
        named = {file.rfilename: file for file in info.siblings or () if _is_safe(file.rfilename)}
        sums = {name: file.lfs.sha256 for name, file in named.items() if file.lfs}
        sizes = {name: int(file.size or 0) for name, file in named.items()}
        if not all(re.fullmatch(r"[0-9a-f]{64}", value) for value in sums.values()):
            raise ValueError("a sha256 is none")
        if not re.fullmatch(COMMIT, info.sha):
            raise ValueError(f"the commit {info.sha!r} is none")
    except (ValueError, TypeError, AttributeError) as error:
        raise hub_errors.malformed(str(repository), error) from error
    return Listing(info.sha, sizes, sums)


def _is_safe(name: str) -> bool:
    """Return whether a file of a repository stays in its folder, on any system."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)


def transfer(
    repository: Repository, folder: Path, name: str, size: int, sha256: str | None
) -> None:
    """Download the file ``name`` to ``folder`` of the cache, if it is missing or wrong.

    Errors: those of `hub_errors.translated`; `ServerFault` for a wrong sha256; `DownloadError`.
    """
    hub, home, path = api(), cache(), folder / name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{home}: cannot be written ({error.strerror})") from error
    free = shutil.disk_usage(home).free
    if not path.is_file() and size > free:
        raise DownloadError(
            f"{home}: too little space: {name} needs {size / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB are free"
        )
    for _ in range(2):  # the first file may be older, or resumed from an older part
        found = hub_errors.translated(
            lambda: hub.hf_hub_download(
                repository.id,
                name,
                repo_type=repository.kind,
                revision=repository.revision,
                cache_dir=home,
            ),
            f"{repository}: {name}",
        )
        if Path(found) != path:
            raise ServerFault(f"{repository}: has changed during the download; try it again")
        if is_verified(path, sha256):
            return
        for file in (path.resolve(), path):
            file.unlink(missing_ok=True)
    raise ServerFault(
        f"{repository}: {name} does not have the sha256 that the hub names for it; it was "
        "removed. Something on the way changes files (a proxy, or a mirror in HF_ENDPOINT?)"
    )


def is_verified(path: Path, sha256: str | None = None) -> bool:
    """Return whether a file of the cache has its ``sha256``.

    Without ``sha256`` it is the name of the file to which the cache links ``path``; small files
    have none there, and count as verified.

    `huggingface_hub` compares lengths alone, because a sha256 of some GB takes seconds. So does
    this, at each start but the first: the file's length and time of writing are kept in the cache
    of bit_paddle after the verification, and a file that still has them is not read again.
    """
    blob = path.resolve()
    if sha256 is None and path.is_symlink():
        sha256 = Path(os.readlink(path)).name
    if sha256 is None or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return True
    state = blob.stat()
    stamp, marker = f"{state.st_size} {state.st_mtime_ns}", cache_dir() / "verified" / sha256
    with suppress(OSError, ValueError):
        if marker.read_text(encoding="utf-8") == stamp:
            return True
    if wrong_sum(blob, {"sha256": sha256}):
        return False
    with suppress(OSError, WriteError):  # of a cache that cannot be written: verified again later
        marker.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(marker, stamp)
    return True
