"""The arguments of the Python interface as words of the commands."""

from __future__ import annotations

import os
from pathlib import Path

from bit_paddle.data import spec as specs
from bit_paddle.data.readers import registry
from bit_paddle.data.readers.archives import is_archive
from bit_paddle.errors import BitPaddleError, ConfigError
from bit_paddle.models import published
from bit_paddle.system import files


def address(model: str | os.PathLike) -> str:
    """Return ``model`` as an argument of a command; paths get a separator or end in ``.npz``."""
    if not isinstance(model, (str, os.PathLike)):
        raise ConfigError(f"model: is a {type(model).__name__}, expected a name or a path")
    text = files.expanded(os.fspath(model))
    is_path = isinstance(model, os.PathLike) and not published.is_path(text)
    return os.path.join(".", text) if is_path else text


def data_set(data: str | os.PathLike, datadir: str | os.PathLike | None) -> tuple[str, str | None]:
    """Return the name of the data set, and its folder if there is one."""
    if not isinstance(data, (str, os.PathLike)):
        raise ConfigError(f"data: is a {type(data).__name__}, expected a folder or a name")
    text = files.expanded(os.fspath(data))
    if datadir is None and (Path(text).is_dir() or is_archive(Path(text))):
        try:
            specs.find(text, registry.READERS)
        except BitPaddleError:
            return "folder", text
        if isinstance(data, os.PathLike):
            return "folder", text
    return text, None if datadir is None else os.fspath(datadir)
