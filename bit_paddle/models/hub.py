"""Models in repositories of the Hugging Face hub: ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``.

The package `huggingface_hub` transfers the files and keeps them in its own cache, which other
programs share: ``HF_HUB_CACHE``, else ``HF_HOME``/hub, else ~/.cache/huggingface/hub. It sends the
token ``HF_TOKEN``. ``HF_ENDPOINT`` is the address of a mirror of the hub. With ``HF_HUB_OFFLINE=1``
nothing but the cache is used. The variables count at each call.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bit_paddle.errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    WriteError,
    install_hint,
)
from bit_paddle.models import hub_errors
from bit_paddle.models.containers import folder as containers
from bit_paddle.system import files
from bit_paddle.system.checksums import wrong_sum
from bit_paddle.system.fetch import ServerFault, cache_dir

PREFIX = "hf:"

HINT = f"the package huggingface_hub is needed: {install_hint('hub')}"

ENDPOINT = "https://huggingface.co"

_COMMIT = r"[0-9a-f]{40}"

_DESCRIPTIONS = ("config.json", "preprocessor_config.json")


class Repository(NamedTuple):
    """A repository of the hub, at a branch, a tag or a commit."""

    owner: str
    name: str
    revision: str = "main"

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
                "hf:OWNER/NAME@REVISION, such as hf:timm/resnetv2_50x1_bit.goog_in21k"
            )
        return cls(*parts, *([revision] if at else []))

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        return f"{PREFIX}{self.id}" + f"@{self.revision}" * (self.revision != "main")


def is_installed() -> bool:
    """Return whether `huggingface_hub` is installed."""
    return importlib.util.find_spec("huggingface_hub") is not None


def locate(repository: Repository) -> Path | None:
    """Return the folder of a repository in the cache, or None if it is not there; no network.

    Its weights are complete, and have the checksums that the hub named for them.
    """
    storage = _storage(repository)
    commit = repository.revision
    with suppress(OSError, ValueError):
        commit = (storage / "refs" / commit).read_text(encoding="utf-8").strip()
    folder = storage / "snapshots" / commit
    if not re.fullmatch(_COMMIT, commit) or not folder.is_dir():
        return None
    present = {path.name for path in folder.iterdir() if path.is_file()}
    try:
        needed = _wanted(repository, present)
        needed += [shard.name for shard in containers.shards(folder / needed[-1])]
    except (ConfigError, CheckpointError):
        return None
    right = present.issuperset(needed) and all(_is_verified(folder / name) for name in needed)
    return folder if right else None


def weights_in(folder: Path) -> Path:
    """Return the file of a repository's weights, or ``folder`` if they are in several files."""
    weights = containers.weights_in(folder)
    return folder if weights is None or containers.shards(weights) else weights


def check_reachable(repository: Repository) -> None:
    """Raise `DownloadError` or `ConfigError` if the hub does not have a repository."""
    if locate(repository) is None:
        _listing(repository)


def download(repository: Repository) -> Path:
    """Return the folder of a repository in the cache, after downloading what is missing.

    It holds the description (``config.json``, ``preprocessor_config.json``) and the weights:
    ``model.safetensors`` (or its index and shards), else ``pytorch_model.bin``, else the only
    ``.npz`` file. No other file is asked for. The hub is asked for the newest commit of a branch;
    if it does not answer, the copy in the cache is used, and a warning says so.

    Errors: `ConfigError` (no such repository or revision, no weights in it, `huggingface_hub` is
    missing), `DownloadError`.
    """
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    is_commit = re.fullmatch(_COMMIT, repository.revision)
    if offline or is_commit:
        folder = locate(repository)
        if folder is not None:
            return folder
    if offline:
        raise DownloadError(
            f"{repository}: is not complete in {_cache()}, and HF_HUB_OFFLINE forbids to ask the "
            "hub"
        )
    try:
        commit, sizes, sums = _listing(repository)
    except ServerFault as fault:
        folder = locate(repository)
        if folder is None:
            raise
        print(f"warning: {fault}; the copy in the cache is used: {folder}", file=sys.stderr)
        return folder
    folder = _storage(repository) / "snapshots" / commit
    wanted = _wanted(repository, sizes)
    for name in wanted:
        _transfer(repository, folder / name, sizes[name], sums.get(name))
    for shard in containers.shards(folder / wanted[-1]):
        if shard.name not in sizes:
            raise CheckpointError(f"{repository}: {wanted[-1]} names {shard.name}, but has it not")
        _transfer(repository, shard, sizes[shard.name], sums.get(shard.name))
    return folder


def instead(address: str | None, fault: ServerFault, call: Callable[[Repository], Any]) -> Any:
    """Return ``call(repository)`` for a repository with the weights of a file that has a ``fault``.

    ``address`` None means that there is no such repository. Raises `DownloadError`.
    """
    if address is None:
        raise fault
    repository = Repository.parse(address)
    if not is_installed():
        raise DownloadError(f"{fault}. {repository} has the same weights: {HINT}") from fault
    try:
        return call(repository)
    except (ConfigError, DownloadError) as error:
        raise DownloadError(f"{fault}\n  {error}") from error


def upload(folder: Path, name: str, private: bool = False) -> str:
    """Upload all files of ``folder`` to the repository ``name``; return its address.

    The repository OWNER/NAME is created if it is missing, and is then visible to everyone unless
    it is ``private``. Errors: `ConfigError` (a wrong name, `huggingface_hub` is missing),
    `WriteError`.
    """
    repository = Repository.parse(name)
    api = _api()
    title = f"{repository}: cannot be written"

    def create() -> Any:
        return api.create_repo(repository.id, private=private, exist_ok=True)

    def send() -> Any:
        return api.upload_folder(
            repo_id=repository.id,
            folder_path=folder,
            revision=repository.revision,
            commit_message="Upload a model of bit_paddle",
        )

    try:
        address = hub_errors.translated(create, title)
        hub_errors.translated(send, title, attempts=1)  # huggingface_hub repeats each request
    except DownloadError as error:
        raise WriteError(str(error)) from error
    return str(address)


def _api() -> Any:
    """Return huggingface_hub's interface to the hub."""
    if not is_installed():
        raise ConfigError(HINT)
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from bit_paddle import __version__
    from bit_paddle.system.progress import bars_are_shown

    if not bars_are_shown():  # those of uploads do not look for a terminal themselves
        disable_progress_bars()

    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or ENDPOINT
    if not re.match(r"https?://[^/]", endpoint):
        raise ConfigError(f"HF_ENDPOINT: {endpoint!r} is no address, expected https://SERVER")
    return HfApi(endpoint=endpoint, library_name="bit_paddle", library_version=__version__)


def _cache() -> Path:
    """Return the cache of huggingface_hub, by the rules of that package."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(cache)))


def _storage(repository: Repository) -> Path:
    return _cache() / f"models--{repository.owner}--{repository.name}"


def _listing(repository: Repository) -> tuple[str, dict[str, int], dict[str, str]]:
    """Ask the hub; return the commit, {file: bytes}, and {file: sha256} of the large files."""
    api = _api()
    info = hub_errors.translated(
        lambda: api.model_info(
            repository.id, revision=repository.revision, files_metadata=True, timeout=10
        ),
        str(repository),
    )
    try:
        named = {file.rfilename: file for file in info.siblings or () if _is_plain(file.rfilename)}
        sums = {name: file.lfs.sha256 for name, file in named.items() if file.lfs}
        sizes = {name: int(file.size or 0) for name, file in named.items()}
        if not all(re.fullmatch(r"[0-9a-f]{64}", value) for value in sums.values()):
            raise ValueError("a sha256 is none")
        if not re.fullmatch(_COMMIT, info.sha):
            raise ValueError(f"the commit {info.sha!r} is none")
    except (ValueError, TypeError, AttributeError) as error:
        raise hub_errors.malformed(str(repository), error) from error
    return info.sha, sizes, sums


def _is_plain(name: str) -> bool:
    """Return whether a file of a repository is in its main folder, with letters of any system."""
    return re.fullmatch(r"\w[\w.-]*", name) is not None


def _wanted(repository: Repository, names: Iterable[str]) -> list[str]:
    """Return the files that a model needs of a repository's files ``names``, weights last."""
    names = sorted(names)
    weights = next((name for name in containers.WEIGHTS if name in names), None)
    if weights is None:
        weights, *more = [name for name in names if name.endswith(".npz")] or [None]
        if weights is None or more:
            raise ConfigError(
                f"{repository}: expected model.safetensors, pytorch_model.bin or one .npz file, "
                f"found {', '.join(names) or 'no files'}"
            )
    return [name for name in _DESCRIPTIONS if name in names] + [weights]


def _transfer(repository: Repository, path: Path, size: int, sha256: str | None) -> None:
    """Download the file ``path`` of the cache, if it is missing or wrong."""
    api, cache = _api(), _cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{cache}: cannot be written ({error.strerror})") from error
    free = shutil.disk_usage(cache).free
    if not path.is_file() and size > free:
        raise DownloadError(
            f"{cache}: too little space: {path.name} needs {size / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB are free"
        )
    for _ in range(2):  # the first file may be older, or resumed from an older part
        found = hub_errors.translated(
            lambda: api.hf_hub_download(
                repository.id, path.name, revision=repository.revision, cache_dir=cache
            ),
            f"{repository}: {path.name}",
        )
        if Path(found) != path:
            raise ServerFault(f"{repository}: has changed during the download; try it again")
        if _is_verified(path, sha256):
            return
        for file in (path.resolve(), path):
            file.unlink(missing_ok=True)
    raise ServerFault(
        f"{repository}: {path.name} does not have the sha256 that the hub names for it; it was "
        "removed. Something on the way changes files (a proxy, or a mirror in HF_ENDPOINT?)"
    )


def _is_verified(path: Path, sha256: str | None = None) -> bool:
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
