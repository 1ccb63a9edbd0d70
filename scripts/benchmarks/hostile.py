"""Requests that a server must survive: damaged bodies, and bodies that are made to hurt.

Each is (name, path, headers, body). All come from a seed.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

Hostile = tuple[str, str, dict[str, str], bytes]

_BOUNDARY = "a-boundary"

_FORMATS = (("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tiff"))

_PATHS = ("/predict", "/features", "/explain", "/predict?calibrated=true", "/predict?top=3")


def image(format: str = "JPEG", size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    """Return a small image file."""
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize(size).save(stream, format=format, **options)
    return stream.getvalue()


def multipart(files: list[bytes], field: str = "images") -> tuple[dict[str, str], bytes]:
    """Return headers and body of multipart/form-data."""
    pieces = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{k}.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n".encode()
        + file
        + b"\r\n"
        for k, file in enumerate(files)
    ]
    body = b"".join(pieces) + f"--{_BOUNDARY}--\r\n".encode()
    return {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body


def as_json(content: object) -> tuple[dict[str, str], bytes]:
    """Return headers and body of JSON."""
    return {"Content-Type": "application/json"}, json.dumps(content).encode()


def whole() -> list[tuple[dict[str, str], bytes]]:
    """Return headers and body of requests without a fault, of every kind."""
    found = [({"Content-Type": f"image/{kind}"}, image(name)) for name, kind in _FORMATS]
    found.append(({"Content-Type": "image/jpeg"}, image(progressive=True)))
    found.append(multipart([image(), image("PNG")]))
    found.append(as_json({"images": [base64.b64encode(image()).decode()] * 2}))
    found.append(as_json({"urls": ["http://127.0.0.1/a.jpg", "http://[::1]:80/"]}))
    return found


def mutations(count: int, seed: int = 0) -> Iterator[Hostile]:
    """Yield ``count`` damaged requests."""
    chance, requests = random.Random(seed), whole()
    for number in range(count):
        headers, body = chance.choice(requests)
        if chance.random() < 0.1:  # another kind than the body is
            headers = chance.choice(requests)[0]
        name = f"mutation {number} of {headers['Content-Type']}"
        yield name, chance.choice(_PATHS), headers, damaged(body, chance)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a copy with flipped bits, odd numbers, and pieces lost, moved or put in."""
    copy = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place, kind = chance.randrange(len(copy) + 1), chance.randrange(6)
        if kind == 0 and place < len(copy):
            copy[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            copy[place : place + 4] = struct.pack(">I", chance.choice((0, 2**31, 2**32 - 1)))
        elif kind == 2:
            del copy[place : place + chance.choice((1, 4, 100))]
        elif kind == 3:
            copy[place:place] = chance.randbytes(chance.choice((1, 4, 100)))
        elif kind == 4:
            other = chance.randrange(len(copy) + 1)
            copy[place : place + 32] = copy[other : other + 32]
        else:
            del copy[place:]
    return bytes(copy)


# --- Made to hurt -------------------------------------------------------------------------------


def png_bomb(side: int, text: int = 0) -> bytes:
    """Return a black PNG of ``side`` x ``side`` pixels, with ``text`` bytes of compressed text."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        sum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", sum)

    packer, row = zlib.compressobj(9), bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    extra = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(text), 9)) if text else b""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    return start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def scan_bomb(scans: int = 2000, side: int = 3000) -> bytes:
    """Return a small progressive JPEG whose last scan is repeated: each visits all pixels."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, format="JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + b"\xff\xd9"


def bombs() -> list[tuple[Hostile, set[int]]]:
    """Return requests that are small and want much, and the statuses that fit."""
    png, jpeg = {"Content-Type": "image/png"}, {"Content-Type": "image/jpeg"}
    many = multipart([b"x"] * 5000)
    nested = b'{"images": ' + b"[" * 100_000
    packed = {**jpeg, "Content-Encoding": "gzip"}
    long = {"Content-Type": f"multipart/form-data; boundary={'b' * 60_000}"}
    return [
        (("PNG of 400 megapixels", "/predict", png, png_bomb(20_000)), {413}),
        (("PNG of 900 megapixels", "/predict", png, png_bomb(30_000)), {413}),
        (("PNG of 49 megapixels", "/predict", png, png_bomb(7_000)), {200}),
        (("PNG with 50 MB of text", "/predict", png, png_bomb(64, 50_000_000)), {400}),
        (("JPEG with 2,000 scans", "/predict", jpeg, scan_bomb()), {413}),
        (("a compressed body", "/predict", packed, gzip.compress(bytes(10_000_000))), {415}),
        (("5,000 parts", "/predict", *many), {413}),
        (("a long boundary", "/predict", long, b"--b"), {400, 413}),
        (("deep JSON", "/predict", {"Content-Type": "application/json"}, nested), {400}),
        (("1,000 images in JSON", "/predict", *as_json({"images": ["AA=="] * 1000})), {413}),
        (("half of a surrogate", "/predict", *as_json({"urls": ["http://\ud800/"]})), {400}),
        (("a body of another kind", "/teach", *as_json({"features": "AAAA" * 999})), {400, 422}),
    ]
