"""Oxford's 102 flowers and Oxford-IIIT's pets, two of BiT's tasks, from their official files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bit_paddle.data.classes import labels_of
from bit_paddle.data.images import FileImages, Parts, check_labels
from bit_paddle.data.readers.official import Part, official_folder
from bit_paddle.data.spec import DataSpec
from bit_paddle.errors import ConfigError, DataError, MissingFileError, did_you_mean

FLOWERS_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"

FLOWERS = (
    Part("102flowers.tgz", {"md5": "52808999861908f626f3c1f4e79d11fa"}, "jpg"),
    Part("imagelabels.mat", {"md5": "e0620be6f572b9609742df49c70aed4d"}),
    Part("setid.mat", {"md5": "a5357ecc9cb78c4bef273ce3793fc85c"}),
)

FLOWER_LISTS = ("trnid", "valid", "tstid")  # 1,020, 1,020 and 6,149 images


PETS_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"

PETS = (
    Part("images.tar.gz", {"md5": "5c4f3ee8e5d25df40f4fd59a7f44e54c"}, "images"),
    Part("annotations.tar.gz", {"md5": "95a8c909bbe2e81eed6a22bccdf3f68f"}, "annotations"),
)

PET_CLASSES = 37

_PET_LINE = re.compile(r"((\S+)_\S+)\s+(\d{1,4})\s+\d+\s+\d+")  # image, class, species, breed


def open_flowers(spec: DataSpec) -> Parts:
    """Open the 102 flowers; ``train``, ``val``, ``test`` name lists of setid.mat, joined by ``+``.

    The defaults are ``trnid``, ``tstid`` and no test: published accuracies are those of ``tstid``.
    Errors: `ConfigError`, `MissingFileError`,
    `DataError`, `DownloadError`, `WriteError`.
    """
    chosen = {"train": spec.train or "trnid", "val": spec.val or "tstid"}
    chosen.update({"test": spec.test} if spec.test else {})
    for key, lists in chosen.items():
        for name in lists.split("+"):
            if name not in FLOWER_LISTS:
                raise ConfigError(
                    f"{key}: {name!r} is not a list of setid.mat; "
                    f"{did_you_mean(name, FLOWER_LISTS)}, or several joined by +: trnid+valid"
                )
    classes = _classes(spec, [str(number) for number in range(1, 103)])
    root = official_folder(spec, "oxford_flowers102", FLOWERS_URL, FLOWERS)
    labels_file, lists_file = root / "imagelabels.mat", root / "setid.mat"
    labels = _numbers(labels_file, "labels") - 1
    check_labels(labels, classes, f"{labels_file}, counted from 0")

    def split(lists: str) -> FileImages:
        ids = np.concatenate([_numbers(lists_file, name) for name in lists.split("+")])
        outside = ids[(ids < 1) | (ids > len(labels))]
        if len(outside) or not len(ids):
            wrong = f"image {outside[0]}" if len(outside) else "no image"
            raise DataError(
                f"{lists_file}: {lists} lists {wrong}; expected numbers from 1 to {len(labels)}, "
                f"the images with a label in {labels_file.name}"
            )
        paths = [f"jpg/image_{number:05d}.jpg" for number in ids]
        return FileImages(paths, labels[ids - 1], classes, root)

    return Parts(**{part: split(lists) for part, lists in chosen.items()})


def open_pets(spec: DataSpec) -> Parts:
    """Open the 37 pets; ``train``, ``val`` and ``test`` name lists such as annotations/list.txt.

    The defaults are annotations/trainval.txt, annotations/test.txt and no test. Errors: as of
    `open_flowers`.
    """
    root = official_folder(spec, "oxford_iiit_pet", PETS_URL, PETS)
    names = [spec.train or "annotations/trainval.txt", spec.val or "annotations/test.txt"]
    files = [root / name for name in [*names, spec.test] if name]
    breeds: dict[int, str] = {}
    lists = [_pet_list(file, breeds) for file in files]
    numbers = range(1, PET_CLASSES + 1)
    classes = _classes(spec, [breeds.get(number, str(number)) for number in numbers])

    def split(file: Path, images: Sequence[str], labels: Sequence[int]) -> FileImages:
        check_labels(np.array(labels), classes, f"{file}, counted from 0")
        return FileImages([f"images/{image}.jpg" for image in images], labels, classes, root)

    train, val, *test = (split(file, *content) for file, content in zip(files, lists))
    return Parts(train, val, test=test[0] if test else None)


def _pet_list(file: Path, breeds: dict[int, str]) -> tuple[list[str], list[int]]:
    """Return the images of a list and their labels from 0; add the classes' names to ``breeds``."""
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise MissingFileError(f"{file}: the list cannot be read ({error.strerror})") from error
    images, labels = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _PET_LINE.fullmatch(line.strip())
        if match is None or not 1 <= int(match[3]) <= PET_CLASSES:
            raise DataError(
                f"{file}: line {number} is {line[:80]!r}; expected an image, its class 1 … "
                f"{PET_CLASSES}, species and breed, as in 'Abyssinian_100 1 1 1'"
            )
        image, breed, label = match[1], match[2], int(match[3])
        if breeds.setdefault(label, breed) != breed:
            raise DataError(
                f"{file}: line {number}: {image} is of class {label}, which is {breeds[label]} "
                "in earlier lines"
            )
        images.append(image)
        labels.append(label - 1)
    if not images:
        raise DataError(f"{file}: lists no images")
    return images, labels


def _classes(spec: DataSpec, default: list[str]) -> list[str]:
    """Return the labels of the data: ``default``, or a list of as many other names."""
    unknown = [label for label in labels_of(spec.classes) if label not in default]
    if not unknown:
        return default
    if isinstance(spec.classes, Mapping) or len(spec.classes) != len(default):
        raise ConfigError(
            f"classes: {unknown[0]!r} is no class of {spec.reader} "
            f"({did_you_mean(unknown[0], default)}). Names of your own for all its classes need a "
            f"list; it has {len(spec.classes)} names, but {spec.reader} has {len(default)} classes"
        )
    return list(spec.classes)


def _numbers(file: Path, name: str) -> np.ndarray:
    """Return variable ``name`` of a .mat file, int64 [N]. Raises `DataError`."""
    from scipy.io import loadmat  # takes a third of a second to import

    try:
        values = np.ravel(loadmat(file, variable_names=[name])[name])
        with np.errstate(invalid="ignore"):
            numbers = values.astype(np.int64)  # from uint8 or uint16, where 0 - 1 wraps around
        if not np.array_equal(values, numbers):
            raise ValueError("not whole numbers")
    except Exception as error:  # loadmat raises many types for a damaged file
        raise DataError(
            f"{file}: its {name} cannot be read ({type(error).__name__}: {error}); it is damaged "
            "or not the official file, remove it to download it again"
        ) from error
    return numbers
