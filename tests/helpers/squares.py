"""A tiny data set with boxes: coloured squares on grey, in COCO's format."""

import json

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"blue": (40, 40, 220), "red": (220, 40, 40)}


def make_squares(folder, count=6, size=(96, 128), sides=(20, 44), seed=0):
    """Write ``count`` images of ``size`` (height, width) and boxes.json; return the folder.

    Each image has a square of every colour, with a side between ``sides``, but the first has none.
    """
    random, images, boxes = np.random.default_rng(seed), [], []
    (folder / "images").mkdir(parents=True)
    height, width = size
    for number in range(count):
        picture = Image.new("RGB", (width, height), (128, 128, 128))
        draw = ImageDraw.Draw(picture)
        for category, colour in enumerate(COLOURS.values(), 1):
            if not number:
                continue
            side = int(random.integers(*sides))
            x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
            draw.rectangle([x, y, x + side - 1, y + side - 1], colour)
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": category,
                          "bbox": [x, y, side, side], "area": side**2, "iscrowd": 0})  # fmt: skip
        picture.save(folder / f"images/{number}.png")
        images.append(
            {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS, 1)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder
