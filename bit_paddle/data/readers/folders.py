"""Images in class folders (``folder``), and what readers of files share."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bit_paddle.data import splits
from bit_paddle.data.classes import Classes, labels_of, require
from bit_paddle.data.images import (
    GET_HEIF,
    HEIF_SUFFIXES,
    FileImages,
    Parts,
    heif_is_installed,
    readable_suffixes,
)
from bit_paddle.data.readers import archives, nesting
from bit_paddle.data.readers.listing import Listed, is_left_out, list_images
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, DataError, MissingFileError, did_you_mean

VALIDATION = ("val", "valid", "validation")  # usual folder names, in order of preference

TEST = "test"


def open_folder(spec: DataSpec) -> Parts:
    """Open ``train/<class>/*``, ``val/<class>/*`` and ``test/<class>/*``, or ``<class>/*`` alone.

    Without validation images a part is held out. The classes are the sorted names of the training
    folders, unless ``spec.classes`` names them. A class has all images below its folder, at any
    depth. A single folder in --datadir is entered (`nesting.entered`).
    """
    root, notes = _home(spec)
    train = root / (spec.train or "train")
    if not train.is_dir():
        if spec.train or spec.test or any((root / name).is_dir() for name in VALIDATION):
            raise MissingFileError(
                f"--datadir {root}: has no {train.name}/; expected train/<class>/* and "
                f"val/<class>/*, or <class>/* alone; found {content_of(root)}"
            )
        train = root
    usual = train != root
    val = _beside(root, spec.val, *(VALIDATION if usual else ()))
    test = _beside(root, spec.test, *([TEST] if usual and not spec.val else ()))
    listed = list_images(train)
    images = class_folders(train, listed.images, spec.classes, least=1 if spec.measured else 2)
    check_no_class_is_empty(images, str(train), spec.classes)
    notes += _skipped(train, listed)
    loose = len(listed.images.get("", []))
    if loose:
        notes.append(f"{loose:,} images in {train} are in no class folder, and were skipped")
    if usual:
        read = {part.name for part in (train, val, test) if part}
        others = [entry.name for entry in root.iterdir() if entry.is_dir()]
        others = sorted(name for name in others if name not in read and not is_left_out(name))
        if others:
            notes.append(f"skipped in {root}: the folders {', '.join(others[:5])}")
    if test and not spec.test:
        listed = list_images(test)
        folders = [name for name, paths in listed.images.items() if name and paths]
        if not set(folders) & set(images.classes):
            notes.append(not_measured(f"{test}: no folder in it has the name of a class"))
            test = None
    val, test, more = roles(spec, val, test)
    notes += more
    parts = []
    for part in (val, test):
        listed = list_images(part) if part else None
        parts.append(listed and class_folders(part, listed.images, spec.classes, images.classes))
        notes += _skipped(part, listed) if listed else []
    if val is None:
        return held_out(images, spec, notes, parts[1])
    check_fraction_is_needed(spec, f"{val} exists")
    return with_notes(images, parts[0], notes, str(val), parts[1])


def _home(spec: DataSpec) -> tuple[Path, list[str]]:
    """Return the folder that holds the parts or the class folders, and notes."""
    given = folder_of(spec)
    names = [spec.train or "train", *VALIDATION, TEST]
    names += [name for name in (spec.val, spec.test) if name]

    def has_data(folder: Path) -> bool:
        if any((folder / name).is_dir() for name in names):
            return True
        return not spec.train and nesting.has_class_folders(folder)

    root, notes = nesting.entered(given, has_data)
    if not has_data(given):
        nesting.check_no_list(given)
    return root, notes


def _beside(root: Path, given: str | None, *usual: str) -> Path | None:
    """Return the folder ``given`` in ``root``, which must exist, or the first of ``usual``."""
    names = [given] if given else usual
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if given and folder is None:
        raise MissingFileError(f"--datadir {root}: has no {given}/; found {content_of(root)}")
    return folder


def roles(
    spec: DataSpec, val: Path | None, test: Path | None
) -> tuple[Path | None, Path | None, list[str]]:
    """Return the places of the validation and the test images (None: there are none), and notes.

    Without validation images, a ``test`` of the usual name is used for validation, unless
    --val_fraction or --folds asks for images to be held out.
    """
    if val or not test or spec.test or spec.val_fraction is not None or spec.fold:
        return val, test, []
    name = test.stem
    note = (
        f"there are no validation images, so the images of {test} are used for validation: they "
        f"choose the best model, and no test images are left. Cure: name it {VALIDATION[0]} "
        f"instead of {name}; or give --val_fraction, which holds validation images out of the "
        f"training images and keeps {name} for the end of the run"
    )
    return test, None, [note]


def not_measured(fault: str) -> str:
    """Return the note on test images that are not measured because of ``fault``."""
    return f"{fault}, so its images are not measured at the end of a run"


def class_folders(
    folder: Path,
    listed: Mapping[str, list[str]],
    given: Classes | None,
    training: Sequence[str] | None = None,
    least: int = 2,
) -> FileImages:
    """Return the ``listed`` images; the first folder of a path below ``folder`` is its class.

    The classes are the sorted folders, those of ``given`` first. For other images than those of
    ``training`` they are its classes; then a folder without a class is allowed only with ``given``,
    which leaves it out (`classes.select`). Otherwise `DataError` is raised, and also for fewer
    classes to train on than ``least``.
    """
    names = sorted(name for name in listed if name)
    if not given and training is None and len(names) < least:
        loose = len(listed.get("", []))
        only = f" ({names[0]})" if names else ""
        advice = ""
        if loose:
            advice = f". It holds {loose:,} images: put each into the folder of its class"
            advice += ", or take --dataset unlabelled for --rule distill"
        raise DataError(f"{folder}: {len(names)} class folders{only}; expected two or more{advice}")
    classes = labels_of(given) if training is None else training
    if given or training is None:
        classes = list(dict.fromkeys([*classes, *names]))
    for name in names:
        if name not in classes and listed[name]:
            raise DataError(
                f"{folder}: class {name!r} is not in training ({did_you_mean(name, classes)}); "
                "the head has one output per training class"
            )
    paths = [listed.get(name, []) for name in classes]
    labels = np.repeat(np.arange(len(classes)), list(map(len, paths)))
    return FileImages(itertools.chain(*paths), labels, classes, folder)


def held_out(
    images: FileImages, spec: DataSpec, notes: Sequence[str], test: FileImages | None = None
) -> Parts:
    """Return ``images`` split by `splits.held_out`; for --folds they are not split yet."""
    if spec.fold:
        return Parts(images, images.subset(np.arange(0)), tuple(notes), test)
    train, val, note = splits.held_out(images, spec)
    if not len(val):  # a trained model may measure what is left
        return Parts(train, val, (note, *notes), test)
    return with_notes(train, val, [note, *notes], str(images.root), test)


def _skipped(folder: Path, listed: Listed) -> list[str]:
    """Return notes on the files of ``folder`` that are not read; no note if there are none."""
    notes, others, left_out = [], listed.others, listed.left_out
    if others:
        kinds = _counted({suffix or "none": count for suffix, count in others.items()})
        heif = set(others) & HEIF_SUFFIXES
        notes.append(
            f"{sum(others.values()):,} files in the class folders of {folder} have no known image "
            f"extension and were skipped ({kinds})" + (f". {GET_HEIF}" if heif else "")
        )
    if left_out:
        notes.append(
            f"{sum(left_out.values()):,} hidden or system files and folders in {folder} were left "
            f"out ({_counted(left_out)})"
        )
    return notes


def _counted(counts: Mapping[str, int]) -> str:
    """Return the five largest of ``counts``."""
    return ", ".join(f"{name} {count:,}" for name, count in Counter(counts).most_common(5))


def _extensions() -> str:
    """Return the end of the error for a folder without images."""
    heif = "" if heif_is_installed() else f" ({GET_HEIF})"
    return f"known extensions: {' '.join(sorted(readable_suffixes()))}{heif}"


def with_notes(
    train: FileImages,
    val: FileImages,
    notes: Sequence[str],
    title: str,
    test: FileImages | None = None,
) -> Parts:
    """Return the parts, with ``notes``.

    Raises `DataError` if ``val`` or ``test`` is empty; ``title`` is the place of ``val``.
    """
    for images in (val, test):
        if images is not None and not len(images):
            raise DataError(
                f"{title if images is val else images.root}: no images in its class folders; "
                f"{_extensions()}"
            )
    return Parts(train, val, tuple(notes), test)


def check_no_class_is_empty(images: FileImages, title: str, given: Classes | None) -> None:
    """Raise `DataError` if a class has no image; with ``given``, only its labels count.

    Raises `ConfigError` if a label of ``given`` has no folder in the folder ``title``.
    """
    counts = np.bincount(images.labels, minlength=len(images.classes))
    empty = [images.classes[label] for label in np.flatnonzero(counts == 0)]
    if given:
        wanted = labels_of(given)
        filled = (images.classes[label] for label in np.flatnonzero(counts))
        require(wanted, {*filled, *(name for name in empty if (Path(title) / name).is_dir())})
        empty = [name for name in empty if name in wanted]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise DataError(f"{title}: no images in {', '.join(empty[:5])}{more}; {_extensions()}")


def check_fraction_is_needed(spec: DataSpec, why_not: str) -> None:
    """Raise `ConfigError` if --val_fraction is given together with validation images."""
    if spec.val_fraction is not None:
        raise ConfigError(f"--val_fraction: nothing is held out for validation, because {why_not}")


def folder_of(spec: DataSpec) -> Path:
    """Return --datadir. Raises `MissingFileError` if it is no folder."""
    if spec.folder.is_file():
        raise MissingFileError(
            f"--datadir {spec.datadir}: is a file, expected a folder or an archive "
            f"({' '.join(archives.SUFFIXES)})"
        )
    return spec.folder


def content_of(folder: Path) -> str:
    """Return the first names in ``folder``, for a message."""
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
