"""Where a network looks: class activation maps as pictures, and their place in the image.

`predictor.class_maps` computes the maps.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from bit_paddle.data.loader import MicroBatch
from bit_paddle.errors import ConfigError, did_you_mean
from bit_paddle.inference.trained import TrainedFile, required_preprocessing
from bit_paddle.models import heads
from bit_paddle.system import files

if TYPE_CHECKING:
    from bit_paddle.inference.inputs import ReadableImages
    from bit_paddle.inference.predictor import ClassMaps

STRIDE = 32  # pixels between two places of a map

SMALLEST, LARGEST = 256, 1024  # of the longer side of a picture, in pixels

INDEX = "maps.csv"


@dataclass(frozen=True)
class Explanation:
    """A class activation map: the contribution of each place of an image to the logit of a class.

    ``map`` float32 [h, w]: its mean plus ``bias`` is ``logits[output]``. The network saw the part
    ``seen`` of the image, (left, top, right, bottom) in pixels. `overlay` and `heat` are pictures;
    bright places raised the logit, dark places did not, or lowered it.

    With ``attention`` the model has a local head, and ``map`` is the attention of the head: the
    weights of the places of stage 3, the same for every class. Their sum is 1.
    """

    label: str  # the class
    output: int  # its number among the outputs
    probability: float
    logits: np.ndarray  # float32 [K]
    map: np.ndarray
    bias: float
    seen: tuple[float, float, float, float]
    crop: int  # side of the network's input in pixels
    image: Image.Image = field(repr=False)
    attention: bool = False

    def overlay(self) -> Image.Image:
        """Return the image in grey under the map in colours, of the image's shape.

        The longer side has 256 to 1,024 pixels. A white frame bounds the part that the network saw,
        if it is not the whole image.
        """
        picture, (left, top, right, bottom) = self._frame()
        colours = overlaid(picture, np.zeros(picture.size[::-1], np.float32))
        inside = overlaid(picture.crop((left, top, right, bottom)), self._heat())
        colours.paste(inside, (left, top))
        if inside.size != picture.size:
            box = (left, top, right - 1, bottom - 1)
            ImageDraw.Draw(colours).rectangle(box, outline="white")
        return colours

    def heat(self) -> Image.Image:
        """Return the map alone in grey, in the size of `overlay`; 255 is its highest value."""
        picture, (left, top, _, _) = self._frame()
        result = Image.new("L", picture.size)
        pixels = (255 * self._heat()).round().astype(np.uint8)
        result.paste(Image.fromarray(pixels), (left, top))
        return result

    def _frame(self) -> tuple[Image.Image, tuple[int, int, int, int]]:
        """Return the image in the size of the pictures, and the box in it that was seen."""
        longer = max(self.image.size)
        scale = min(max(longer, SMALLEST), LARGEST) / longer
        size = [max(1, round(scale * side)) for side in self.image.size]
        picture = self.image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        scales = [side / own for side, own in zip(size, self.image.size)]
        left, top, right, bottom = (
            round(place * factor) for place, factor in zip(self.seen, scales * 2)
        )
        return picture, (left, top, max(left + 1, right), max(top + 1, bottom))

    def _heat(self) -> np.ndarray:
        _, (left, top, right, bottom) = self._frame()
        return placed(self.map, self.crop, (right - left, bottom - top), self.attention)

    def __str__(self) -> str:
        logit = f"{self.label} {self.probability:.1%}: logit {self.logits[self.output]:.3f}"
        if self.attention:
            return f"{logit}; the map is the attention of the head"
        return f"{logit} = mean of the map {self.map.mean():.3f} + bias {self.bias:.3f}"

    def _repr_html_(self) -> str:
        stream = io.BytesIO()
        self.overlay().save(stream, format="PNG")
        data = base64.b64encode(stream.getvalue()).decode()
        return f'<img alt="" src="data:image/png;base64,{data}"><p>{escape(str(self))}</p>'


def output_of(file: TrainedFile, label: object) -> int:
    """Return the output of a class name or number. Raises `ConfigError` for an unknown one.

    It raises that for a model with a local head, too: its map is the same for every class.
    """
    if has_attention(file):
        raise ConfigError(
            f"label: is {label!r}, but {file.path} has a {heads.noun(file.head)}; its map is the "
            "attention of the head, the same for every class; omit the label"
        )
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        if 0 <= label < file.outputs:
            return int(label)
        raise ConfigError(f"label: is {label}, expected 0 to {file.outputs - 1}, or a class name")
    names = [file.class_name(output) for output in range(file.outputs)]
    if label in names:
        return names.index(label)
    hint = did_you_mean(str(label), names)
    raise ConfigError(f"label: is {label!r}, no class of the model: {hint}")


def has_attention(file: TrainedFile) -> bool:
    """Return whether the maps of a model are the attention of its head."""
    return file.head == heads.LOCAL


def explanation(
    file: TrainedFile,
    image: Image.Image,
    logits: np.ndarray,
    map: np.ndarray,
    bias: float,
    output: int | None = None,
) -> Explanation:
    """Return the map of ``output`` (default: the predicted class) with its place in ``image``."""
    view = required_preprocessing(file)
    output = int(logits.argmax()) if output is None else output
    return Explanation(
        label=file.class_name(output),
        output=output,
        probability=float(file.probabilities(logits[None])[0, output]),
        logits=logits,
        map=map,
        bias=float(bias),
        seen=view.seen(*image.size),
        crop=view.crop,
        image=image,
        attention=has_attention(file),
    )


# --- Pictures -----------------------------------------------------------------------------------


def placed(
    map: np.ndarray, crop: int, size: tuple[int, int], attention: bool = False
) -> np.ndarray:
    """Return the positive part of ``map`` [h, w] over its image: float32 of ``size``, 0 to 1.

    ``size`` (width, height) is that of a picture of the network's whole input, which has ``crop``
    pixels per side. The highest value is 1 at its own place. All of the network's convolutions with
    a stride begin at the first pixel; so place i of the map is centred on pixel 32 i, and not in
    the middle of the i-th square. In an ``attention``, a map of stage 3, it is pixel 16 i.
    """
    stride = STRIDE // 2 if attention else STRIDE
    positive = np.pad(np.maximum(map, 0), ((0, 1), (0, 1)), mode="edge").astype(np.float32)
    start = 0.5 - 0.5 / stride  # where the input begins, in places; that of pixel 0 is 0.5
    end = start + crop / stride
    heat = Image.fromarray(positive / (positive.max() or 1))
    heat = heat.resize(size, Image.Resampling.BICUBIC, (start, start, end, end))
    return np.asarray(heat).clip(0, 1)


def overlaid(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Return RGB ``picture`` in grey with the colours of ``heat``, float32 [height, width]."""
    import matplotlib

    colours = matplotlib.colormaps["inferno"](heat)[..., :3]
    grey = np.asarray(picture.convert("L"), np.float32)[..., None] / 255
    mixed = 255 * (0.35 * grey + 0.65 * colours)
    return Image.fromarray(mixed.round().astype(np.uint8))


# --- Files --------------------------------------------------------------------------------------


def write_maps(
    folder: Path,
    file: TrainedFile,
    compute: Callable[[np.ndarray], ClassMaps],
    batches: Iterable[MicroBatch],
    images: ReadableImages,
    names: Sequence[str],
) -> Iterator[tuple[np.ndarray, MicroBatch]]:
    """Write two PNG files per image into ``folder``; yield the logits [N, K] of each batch.

    At the end writes `INDEX`, a table of the ``names`` of the images and of their files. Images
    that cannot be read are left out. Raises `WriteError`.
    """
    rows: list[Sequence[object]] = [("image", "class", "probability", "logit", "heat", "overlay")]
    taken: set[str] = set()
    for part in batches:
        found = compute(part.images)
        for index, *values in zip(part.indices.tolist(), found.logits, found.maps, found.biases):
            if index in images.broken:
                continue
            shown = explanation(file, images.image(index), *values)
            stem = _free_name(names[index], taken)
            written = []
            for kind, picture in (("heat", shown.heat()), ("overlay", shown.overlay())):
                written.append(f"{stem}-{kind}.png")
                files.write(folder / written[-1], partial(picture.save, format="PNG"))
            logit = f"{shown.logits[shown.output]:.6g}"
            rows.append((names[index], shown.label, f"{shown.probability:.6f}", logit, *written))
        yield found.logits, part
    pieces = map(files.csv_line, rows)
    files.write(
        folder / INDEX,
        lambda stream: stream.write("".join(pieces).encode(errors="surrogateescape")),
    )


def _free_name(name: str, taken: set[str]) -> str:
    """Return the stem of a file or address, with a number if it is in ``taken``; add it there."""
    stem = re.sub(r"[^\w.-]", "_", Path(name).stem.split("?")[0])[:100] or "image"
    free = stem
    for number in itertools.count(2):
        if free.lower() not in taken:
            break
        free = f"{stem}-{number}"
    taken.add(free.lower())
    return free
