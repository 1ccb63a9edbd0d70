"""Broken annotations of any kind end in boxes that can be used, or in one clear error."""

import copy
import json
import time

import numpy as np
import pytest
from helpers.squares import COLOURS, make_squares
from PIL import Image

from bit_paddle.data.boxes.reading import read_boxes
from bit_paddle.errors import BitPaddleError

JUNK = [
    *(None, True, "", "x", "\0", "nan", "1e999", "../0.png", "/etc/passwd", "images", "é\ud800"),
    *([], [1, 2], {}, {"id": 1}, [[]], 0, -1, 0.5, 3, 99, 1e308, -1e308, 10**40, 2**63),
    *(float("nan"), float("inf"), -float("inf")),
]


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """The same boxes as boxes.json, Annotations/*.xml and labels/*.txt, beside images/."""
    folder = make_squares(tmp_path_factory.mktemp("squares"), 4, (32, 48), (8, 16))
    content = json.loads((folder / "boxes.json").read_text())
    names = list(COLOURS)
    for kind in ("Annotations", "labels"):
        (folder / kind).mkdir()
    (folder / "classes.txt").write_text("\n".join(names))
    for image in content["images"]:
        found = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        objects, lines = "", ""
        for one in found:
            x, y, width, height = one["bbox"]
            ends = f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
            objects += f"<object><name>{names[one['category_id'] - 1]}</name><bndbox><xmin>{x}"
            objects += f"</xmin><ymin>{y}</ymin>{ends}</bndbox></object>"
            shares = (x + width / 2) / 48, (y + height / 2) / 32, width / 48, height / 32
            lines += f"{one['category_id'] - 1} {' '.join(f'{one:.6f}' for one in shares)}\n"
        (folder / f"Annotations/{image['id']}.xml").write_text(
            f"<annotation><filename>{image['file_name']}</filename><size><width>48</width>"
            f"<height>32</height></size>{objects}</annotation>"
        )
        (folder / f"labels/{image['id']}.txt").write_text(lines)
    return folder


def outcomes(annotations):
    """Read ``annotations`` in both modes; return how often it was an error. Check what is read."""
    messages = []
    for on_bad_box in ("error", "skip"):
        try:
            found = read_boxes(annotations, on_bad_box=on_bad_box)
        except BitPaddleError as error:
            messages.append(str(error))
            continue
        count = len(found)
        assert count == len(found.boxes) == len(found.labels) == len(found.crowd) == len(found.ids)
        assert len(found.category_ids) == len(found.classes)
        for path, boxes, labels, (height, width) in zip(
            found.paths, found.boxes, found.labels, found.sizes
        ):
            Image.open(found.root / path).close()
            assert boxes.dtype == np.float32 and np.isfinite(boxes).all() and (boxes >= 0).all()
            assert (boxes[:, 2:] <= [width, height]).all()
            assert (boxes[:, :2] < boxes[:, 2:]).all()
            assert len(boxes) == len(labels) and set(labels) <= set(range(len(found.classes)))
    assert all(annotations.name in text and len(text) < 10_000 for text in messages)
    return len(messages)


def bytes_changed(text, random):
    """Return ``text`` with bytes flipped, cut out or doubled, or cut off."""
    broken = bytearray(text)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(broken)))
        end = place + int(random.integers(1, 12))
        kind = random.integers(8)
        if kind < 4:
            broken[place] ^= 1 << int(random.integers(8))
        elif kind < 6:
            del broken[place:end]
        elif kind < 7:
            broken[place:place] = broken[place:end]
        else:
            del broken[max(place, 1) :]
        broken = broken or bytearray(b"0")
    return bytes(broken)


def values_changed(content, random):
    """Return JSON whose values are replaced, removed or doubled at random places."""
    content = copy.deepcopy(content)
    for _ in range(random.integers(1, 4)):
        inner = content
        while True:
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            if not len(keys):
                break
            key = keys[int(random.integers(len(keys)))]
            if isinstance(inner[key], (dict, list)) and random.random() < 0.9:
                inner = inner[key]
                continue
            kind = random.integers(4)
            if kind == 0:
                del inner[key]
            elif kind == 1 and isinstance(inner, list):
                inner.append(copy.deepcopy(inner[key]))
            else:
                inner[key] = JUNK[int(random.integers(len(JUNK)))]
            break
    return json.dumps(content).encode()


def test_json(squares):
    path, random, errors = squares / "mutated.json", np.random.default_rng(7), 0
    text = (squares / "boxes.json").read_bytes()
    content, start = json.loads(text), time.process_time()
    for number in range(500):
        broken = values_changed(content, random) if number % 3 else bytes_changed(text, random)
        path.write_bytes(broken)
        errors += outcomes(path)
    assert 200 < errors < 900
    assert time.process_time() - start < 5


@pytest.mark.parametrize("kind, name", [("Annotations", "2.xml"), ("labels", "2.txt")])
def test_text(squares, kind, name):
    """100 files: every second one with bytes changed, the others with a word replaced."""
    path, random, errors = squares / kind / name, np.random.default_rng(7), 0
    text = path.read_bytes()
    try:
        for number in range(100):
            broken = bytes_changed(text, random)
            if number % 2:
                words = text.replace(b"<", b" <").replace(b">", b"> ").split()
                word = str(JUNK[int(random.integers(len(JUNK)))]).encode(errors="surrogatepass")
                words[int(random.integers(len(words)))] = word
                broken = b" ".join(words)
            path.write_bytes(broken)
            errors += outcomes(squares / kind)
    finally:
        path.write_bytes(text)
    assert 30 < errors < 150
    assert outcomes(squares / kind) == 0
