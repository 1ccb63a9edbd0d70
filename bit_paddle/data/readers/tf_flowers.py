"""TensorFlow's five kinds of flowers, 3,670 photos without an official split."""

from __future__ import annotations

from dataclasses import replace

from bit_paddle.data.images import Parts
from bit_paddle.data.readers.folders import open_folder
from bit_paddle.data.readers.official import Part, official_folder
from bit_paddle.data.spec import DataSpec

URL = "https://storage.googleapis.com/download.tensorflow.org/example_images/"

# Length and checksum as in TensorFlow Datasets, url_checksums/tf_flowers.txt
ARCHIVE = Part(
    "flower_photos.tgz",
    {
        "bytes": 228_813_984,
        "sha256": "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
    },
    "flower_photos",
)

CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def open_tf_flowers(spec: DataSpec) -> Parts:
    """Open the flowers; ``spec.val_fraction`` of each class is held out for validation.

    --datadir has the archive or its folder flower_photos/, or is that folder. Errors:
    `MissingFileError`, `DataError`, `DownloadError`, `WriteError`.
    """
    if spec.datadir and all((spec.folder / name).is_dir() for name in CLASSES):
        root = spec.folder
    else:
        root = official_folder(spec, "tf_flowers", URL, [ARCHIVE]) / "flower_photos"
    return open_folder(replace(spec, datadir=str(root)))
