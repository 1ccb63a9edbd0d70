"""Tiny images with several labels: coloured squares on grey, none, one or several of them."""

import numpy as np
from PIL import Image

NAMES = ("amber", "blue", "coral", "dun")
COLOURS = ((250, 190, 0), (30, 30, 240), (250, 90, 90), (110, 80, 40))


def make_tags(folder, train=24, val=12, seed=0):
    """Write train/*.png, val/*.png and labels.csv; return the folder.

    Image k of a part shows the colours of the bits of k % 16, so every sixteenth has no label.
    """
    random, lines = np.random.default_rng(seed), ["path,labels"]
    for part, count in (("train", train), ("val", val)):
        (folder / part).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(100, 156, (40, 44, 3)).astype(np.uint8)
            own = [k for k in range(4) if number % 16 >> k & 1]
            for k in own:
                top, left = 20 * (k // 2), 22 * (k % 2)
                pixels[top : top + 20, left : left + 22] = COLOURS[k]
            Image.fromarray(pixels).save(folder / f"{part}/{number:02}.png")
            lines.append(f"{part}/{number:02}.png,{';'.join(NAMES[k] for k in own)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder
