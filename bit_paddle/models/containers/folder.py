"""A folder of a model as transformers, timm and the Hugging Face hub keep it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bit_paddle.errors import CheckpointError, MissingFileError
from bit_paddle.models.containers.base import Container

_INDEX = ".index.json"  # of a model in several files

WEIGHTS = (  # in the order in which transformers prefers them
    "model.safetensors",
    f"model.safetensors{_INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{_INDEX}",
)


_MOST = 1 << 25  # bytes of a JSON file; the names of 21,843 classes need two million


def weights_in(folder: Path) -> Path | None:
    """Return the file, or the index of the files, with the weights in ``folder``; None without."""
    present = [folder / name for name in WEIGHTS if os.path.isfile(folder / name)]
    archives = sorted(folder.glob("*.npz"))
    return present[0] if present else archives[0] if len(archives) == 1 else None


class ModelFolder(Container):
    """The arrays of a model's folder, which are in one file, or in several that an index names.

    ``open_file`` opens one of them. Raises `MissingFileError` if a file is not there.
    """

    def __init__(self, path: Path, open_file: Callable[[Path], Container]):
        super().__init__(path)
        weights = weights_in(path)
        if weights is None:
            raise MissingFileError(
                f"{path}: is a folder without a model; expected {', '.join(WEIGHTS)} or one .npz"
            )
        paths = shards(weights) or [weights]
        self._files: list[Container] = []
        self._file_of: dict[str, Container] = {}
        try:
            for part in paths:
                self._files.append(open_file(part))
                for name in self._files[-1].arrays:
                    if name in self._file_of:
                        raise CheckpointError(f"{path}: {name} is in two of its files")
                    self._file_of[name] = self._files[-1]
        except BaseException:
            self.close()
            raise
        self.arrays = {name: file.arrays[name] for name, file in self._file_of.items()}

    def read(self, name: str) -> np.ndarray:
        return self._file_of[name].read(name)

    def notes(self) -> dict[str, Any]:
        return self._files[0].notes() if len(self._files) == 1 else {}

    def close(self) -> None:
        for file in self._files:
            file.close()


def shards(index: Path) -> list[Path]:
    """Return the files that an index names, which must be in its own folder; [] if it is none."""
    if not index.name.endswith(_INDEX):
        return []
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: has no weight_map with the names of files")
    files = sorted({str(name) for name in names.values()})
    for name in files:
        if name in ("", "..") or Path(name).name != name or name.endswith(_INDEX):
            raise CheckpointError(
                f"{index}: names the file {name!r}; expected files in its own folder"
            )
    return [index.with_name(name) for name in files]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `CheckpointError` if it holds none."""
    try:
        if path.stat().st_size > _MOST:
            raise ValueError(f"it has more than {_MOST:,} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: is no JSON object ({error})") from error
    return content
