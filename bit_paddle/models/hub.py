"""Models in repositories of the Hugging Face hub: ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``.

`bit_paddle.system.hub` transfers the files; the environment variables that count are named there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bit_paddle.errors import CheckpointError, ConfigError, DownloadError, WriteError, printable
from bit_paddle.models.containers import folder as containers
from bit_paddle.system import hub, hub_errors
from bit_paddle.system.fetch import ServerFault
from bit_paddle.system.hub import Repository

_DESCRIPTIONS = ("config.json", "preprocessor_config.json")


def locate(repository: Repository) -> Path | None:
    """Return the folder of a repository in the cache, or None if it is not there; no network.

    Its weights are complete, and have the checksums that the hub named for them.
    """
    folder = hub.snapshot(repository)
    if folder is None:
        return None
    present = {path.name for path in folder.iterdir() if path.is_file()}
    try:
        needed = _wanted(repository, present)
        needed += [shard.name for shard in containers.shards(folder / needed[-1])]
    except (ConfigError, CheckpointError):
        return None
    right = present.issuperset(needed) and all(hub.is_verified(folder / name) for name in needed)
    return folder if right else None


def repository_of(path: Path) -> Repository | None:
    """Return the repository to which a file or folder of the cache belongs; None elsewhere."""
    match = re.search(r"/models--([^/]+?)--([^/]+)/snapshots/", f"{path.absolute()}/")
    return Repository(*match.groups()) if match else None


def weights_in(folder: Path) -> Path:
    """Return the file of a repository's weights, or ``folder`` if they are in several files."""
    weights = containers.weights_in(folder)
    return folder if weights is None or containers.shards(weights) else weights


def check_reachable(repository: Repository) -> None:
    """Raise `DownloadError` or `ConfigError` if the hub does not have a repository."""
    if locate(repository) is None:
        hub.listing(repository)


def download(repository: Repository) -> Path:
    """Return the folder of a repository in the cache, after downloading what is missing.

    It holds the description (``config.json``, ``preprocessor_config.json``) and the weights:
    ``model.safetensors`` (or its index and shards), else ``pytorch_model.bin``, else the only
    ``.npz`` file. No other file is asked for. The hub is asked for the newest commit of a branch;
    if it does not answer, the copy in the cache is used, and a warning says so.

    Errors: `ConfigError` (no such repository or revision, no weights in it, `huggingface_hub` is
    missing), `DownloadError`.
    """
    if hub.is_offline() or repository.is_commit:
        folder = locate(repository)
        if folder is not None:
            return folder
    if hub.is_offline():
        raise DownloadError(
            f"{repository}: is not complete in {hub.cache()}, and HF_HUB_OFFLINE forbids to ask "
            "the hub"
        )
    try:
        commit, sizes, sums = hub.listing(repository)
    except ServerFault as fault:
        folder = locate(repository)
        if folder is None:
            raise
        text = f"warning: {fault}; the copy in the cache is used: {folder}"
        print(printable(text), file=sys.stderr)
        return folder
    folder = hub.storage(repository) / "snapshots" / commit
    wanted = _wanted(repository, filter(_is_plain, sizes))
    for name in wanted:
        hub.transfer(repository, folder, name, sizes[name], sums.get(name))
    for shard in containers.shards(folder / wanted[-1]):
        if shard.name not in sizes:
            raise CheckpointError(f"{repository}: {wanted[-1]} names {shard.name}, but has it not")
        hub.transfer(repository, folder, shard.name, sizes[shard.name], sums.get(shard.name))
    return folder


def instead(address: str | None, fault: ServerFault, call: Callable[[Repository], Any]) -> Any:
    """Return ``call(repository)`` for a repository with the weights of a file that has a ``fault``.

    ``address`` None means that there is no such repository. Raises `DownloadError`.
    """
    if address is None:
        raise fault
    repository = Repository.parse(address)
    if not hub.is_installed():
        raise DownloadError(f"{fault}. {repository} has the same weights: {hub.HINT}") from fault
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
    api = hub.api()
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
