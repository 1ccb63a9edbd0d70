"""Make images for a detector: drawings pasted onto photographs, with their boxes as COCO files.

    python scripts/make_scenes.py scenes
    python scripts/make_scenes.py scenes --photos clothing --drawings omniglot --classes 8

Writes scenes/train.json, scenes/val.json and scenes/images/. Both folders hold train/<class>/* and
val/<class>/*: the scenes of each part use the photographs and drawings of that part alone. Without
--drawings, scikit-learn's handwritten digits are pasted (extra ``digits``); without --photos, onto
coloured noise. The same seed makes the same scenes.

Each scene has 1 to 5 drawings of a random size, colour and place; their boxes hardly overlap. With
--objects 1 each has one drawing, as photographs of one bird or one car have.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.types import file_path, whole
from bit_paddle.data.images import Images
from bit_paddle.data.readers import registry
from bit_paddle.models.detection.boxes import iou
from bit_paddle.system import files
from bit_paddle.system.progress import progress_bar

SIZES = (0.12, 0.45)  # longer side of a drawing, of the side of the scene
OVERLAP = 0.05  # largest overlap (IoU) of two drawings of a scene
INK = 96  # from this value of the 8-bit mask on a pixel belongs to the box


def main(arguments: Sequence[str]) -> int:
    """Make the scenes of both parts."""
    parser = parsing.Parser("python scripts/make_scenes.py", description=__doc__)
    parser.add_argument("out", type=file_path, help="folder to write into")
    parser.add_argument("--photos", type=file_path, help="photographs (default: coloured noise)")
    parser.add_argument("--drawings", type=file_path, help="drawings (default: digits)")
    parser.add_argument("--classes", type=whole(1), default=8, help="of drawings (default: 8)")
    parser.add_argument("--objects", type=whole(1), default=5, help="most per scene (default: 5)")
    parser.add_argument("--images", type=whole(2), default=2000, help="scenes (default: 2000)")
    parser.add_argument("--side", type=whole(32), default=256, help="in pixels (default: 256)")
    parser.add_argument("--seed", type=whole(0), default=0, help="(default: 0)")
    flags = parser.parse_args(list(arguments))
    photos = _opened(flags.photos) if flags.photos else None
    drawings = _opened(flags.drawings) if flags.drawings else registry.open_dataset("digits")
    names = drawings.train.classes
    if flags.classes > len(names):
        raise errors.ConfigError(f"--classes {flags.classes}: there are {len(names)} classes")
    chosen = np.random.default_rng(flags.seed).permutation(len(names))[: flags.classes]
    chosen = sorted(chosen.tolist())
    counts = {"train": flags.images * 4 // 5, "val": flags.images - flags.images * 4 // 5}
    for number, (part, count) in enumerate(counts.items()):
        behind = getattr(photos, part) if photos else None
        random = np.random.default_rng([flags.seed, number])
        make_part(
            Path(flags.out),
            part,
            count,
            behind,
            getattr(drawings, part),
            chosen,
            flags.objects,
            flags.side,
            random,
        )
    return 0


def _opened(folder: str) -> registry.Dataset:
    return registry.open_dataset("folder", datadir=folder)


def make_part(
    out: Path,
    part: str,
    count: int,
    photos: Images | None,
    drawings: Images,
    chosen: Sequence[int],
    objects: int,
    side: int,
    random: np.random.Generator,
) -> None:
    """Write ``count`` scenes of ``side`` x ``side`` pixels, and ``part``.json with their boxes."""
    folder = out / "images" / part
    files.make_folder(folder, "out")
    by_class = [np.flatnonzero(drawings.labels == label) for label in chosen]
    images, annotations = [], []
    for number in progress_bar(iterable=range(1, count + 1), desc=part, unit="img"):
        scene = background(photos, side, random)
        boxes = np.zeros((0, 4))
        for _ in range(random.integers(1, objects + 1)):
            label = int(random.integers(len(chosen)))
            drawing = drawings.image(int(random.choice(by_class[label])))
            box = paste(scene, drawing, boxes, random)
            if box is None:
                continue
            boxes = np.concatenate([boxes, [box]])
            width, height = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [*map(int, (box[0], box[1], width, height))],
                    "area": int(width * height),
                    "iscrowd": 0,
                }
            )
        name = f"{part}/{number:05}.jpg"
        scene.save(out / "images" / name, quality=95)
        images.append({"id": number, "file_name": name, "height": side, "width": side})
    categories = [
        {"id": number, "name": drawings.classes[label]} for number, label in enumerate(chosen, 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    files.write_text(out / f"{part}.json", files.to_json(content))
    print(f"{out / f'{part}.json'}: {count:,} scenes, {len(annotations):,} boxes")


def background(photos: Images | None, side: int, random: np.random.Generator) -> Image.Image:
    """Return a random square part of a photograph, or coloured noise, of ``side`` pixels."""
    if photos is None:
        noise = random.integers(90, 200, (6, 6, 3)).astype(np.uint8)
        return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    photo = photos.image(int(random.integers(len(photos))))
    part = int(min(photo.size) * random.uniform(0.6, 1))
    left, top = (int(random.integers(size - part + 1)) for size in photo.size)
    return photo.resize(
        (side, side), Image.Resampling.BILINEAR, box=(left, top, left + part, top + part)
    )


def paste(
    scene: Image.Image, drawing: Image.Image, boxes: np.ndarray, random: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Paste ``drawing`` at a free place; return its box, or None if there is hardly any place."""
    mask = ink(drawing)
    longer = scene.width * np.exp(random.uniform(*np.log(SIZES)))
    mask = mask.resize([max(1, round(size * longer / max(mask.size))) for size in mask.size])
    inside = mask.point(lambda value: 255 * (value >= INK)).getbbox()
    for _ in range(20):
        left, top = (int(random.integers(scene.width - size + 1)) for size in mask.size)
        if inside is None:
            return None
        box = (left + inside[0], top + inside[1], left + inside[2], top + inside[3])
        if not len(boxes) or iou(np.array([box], float), boxes).max() <= OVERLAP:
            scene.paste(_colour(scene.crop(box), random), (left, top), mask)
            return box
    return None


def ink(drawing: Image.Image) -> Image.Image:
    """Return the strokes of ``drawing`` as a mask (8 bits), cut to them; strokes are the rarer."""
    grey = np.asarray(drawing.convert("L"))
    dark = (grey < 128).mean() < 0.5
    mask = Image.fromarray(255 - grey if dark else grey)
    if mask.width > 64:  # thin strokes would vanish when made smaller
        mask = mask.filter(ImageFilter.MaxFilter(5))
    else:  # a few coarse pixels: smooth shapes with sharp edges
        mask = mask.resize((64, 64), Image.Resampling.BICUBIC)
        mask = mask.point(lambda value: 4 * value - 384)
    return mask.crop(mask.point(lambda value: 255 * (value >= INK)).getbbox())


def _colour(behind: Image.Image, random: np.random.Generator) -> tuple[int, int, int]:
    """Return a random colour, dark on a light ground and light on a dark one."""
    light = np.asarray(behind.convert("L")).mean() < 128
    low, high = (170, 256) if light else (0, 86)
    return tuple(int(value) for value in random.integers(low, high, 3))


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
