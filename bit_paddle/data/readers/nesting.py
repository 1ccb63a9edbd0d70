"""Data that an archive unpacked one or more folders deeper, such as my_data/flower_photos/…"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from bit_paddle.data.decoding import HEIF_SUFFIXES, SUFFIXES
from bit_paddle.data.readers.listing import is_left_out
from bit_paddle.errors import DataError

_DEEPEST = 3  # folders that are entered at most

_LIST = re.compile(r"train(_list)?\.(csv|tsv|txt)", re.IGNORECASE)


def entered(root: Path, has_data: Callable[[Path], bool]) -> tuple[Path, list[str]]:
    """Return the folder of the data, and a note if it is not ``root``.

    If ``root`` has no data by ``has_data``, but one single folder and no image, that folder is
    entered, and so on. If there are no data at the end, the result is ``root``.
    """
    folder = root
    for _ in range(_DEEPEST):
        if has_data(folder):
            break
        inner = _only_folder(folder)
        if inner is None:
            return root, []
        folder = inner
    if folder == root or not has_data(folder):
        return root, []
    return folder, [note(root, folder)]


def note(root: Path, folder: Path) -> str:
    """Return the note that the data of ``root`` are in ``folder``."""
    return f"{root} holds a single folder, so the data are read from {folder}"


def has_class_folders(folder: Path) -> bool:
    """Return whether there are two folders or more, hidden and system folders not counted."""
    with os.scandir(folder) as entries:
        folders = (entry for entry in entries if entry.is_dir() and not is_left_out(entry.name))
        return next(folders, None) is not None and next(folders, None) is not None


def check_no_list(folder: Path) -> None:
    """Raise `DataError` if a list of training images lies in ``folder``."""
    name = next((name for name in os.listdir(folder) if _LIST.fullmatch(name)), None)
    if name:
        raise DataError(
            f"--datadir {folder}: holds no class folders, but the list {name}; to read the list, "
            f"write --dataset list"
        )


def _only_folder(folder: Path) -> Path | None:
    """Return the only visible folder in ``folder``; None if there are others or images."""
    inner = None
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_left_out(entry.name):
                continue
            if entry.is_dir():
                if inner is not None:
                    return None
                inner = entry.name
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES | HEIF_SUFFIXES:
                return None
    return None if inner is None else folder / inner
