"""Every kind of image file is read as plain Pillow and NumPy say it is, or refused by its name."""

from __future__ import annotations

import os
import struct
import warnings
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile

from bit_paddle.data import check, transforms
from bit_paddle.data.images import FileImages
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import DataError, MissingFileError

BILINEAR = Image.Resampling.BILINEAR


def photo(height, width, seed=0):
    """Smooth colours and a little noise: what a JPEG is made for."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return (np.asarray(smooth) * 0.9 + random.uniform(0, 25, (height, width, 3))).astype(np.uint8)


def images_of(path):
    """Return the one image as a set; it is found below a root, as in a data set."""
    return FileImages([path.name], [0], ["a"], path.parent)


def read(path):
    return np.asarray(images_of(path).image(0))


def grey(values):
    return np.stack([values] * 3, axis=2).astype(np.uint8)


def over_white(rgb, alpha):
    """alpha x rgb + (1 - alpha) x white, rounded, in whole numbers."""
    alpha = np.asarray(alpha, np.int64)[..., None]
    return ((2 * (rgb * alpha + 255 * (255 - alpha)) + 255) // 510).astype(np.uint8)


def of_inks(cmyk):
    """White less black, of which the inks take their parts: Pillow's arithmetic."""
    inks = cmyk.astype(np.int64)
    light = 255 - inks[..., 3:]
    return (light - (2 * inks[..., :3] * light + 255) // 510).astype(np.uint8)


def image(mode, values, palette=None):
    """Return an array as an image of this mode, without any conversion."""
    height, width = values.shape[:2]
    made = Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())
    if palette is not None:
        made.putpalette(palette.tobytes() + bytes(768 - palette.size))
    return made


# --- Files that Pillow cannot write -------------------------------------------------------------


def png(depth, rows, *chunks, size=None):
    """Return a PNG of ``rows``, uint8 [height, bytes] of RGB; ``size`` is what it claims."""
    width, height = size or (rows.shape[1] * 8 // depth // 3, len(rows))
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    lines = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def tiff(order, values, bits, photometric, width=None):
    """Return an uncompressed TIFF of one strip; ``order`` "<" or ">"."""
    height, columns, samples = (*values.shape, 1)[:3]
    width = width or columns
    first = 8 + 2 + 10 * 12 + 4
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric}
    tags.update({273: first + 8, 274: 1, 277: samples, 278: height, 279: values.nbytes})
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, tags[tag]) for tag in tags)
    if samples == 3:  # do not fit into the entry
        several = struct.pack(order + "HHII", 258, 3, 3, first)
        entries = entries.replace(struct.pack(order + "HHII", 258, 4, 1, bits), several)
    head = b"II*\0" if order == "<" else b"MM\0*"
    depths = struct.pack(order + "HHHH", bits, bits, bits, 0)
    return head + struct.pack(order + "IH", 8, 10) + entries + bytes(4) + depths + values.tobytes()


# --- Kinds --------------------------------------------------------------------------------------

RGB = photo(91, 135)
GREY, ALPHA = RGB[..., 1], RGB[::-1, :, 2]
BITS = GREY > 128
INDEX, PALETTE = GREY // 16, photo(1, 16, 1)[0]
HOLES = INDEX != 7  # entry 7 is transparent
CMYK = np.dstack([255 - RGB, GREY // 4])
DEEP = GREY.astype(np.uint16) * 256 + RGB[..., 0]  # 16 bits
DEEP_RGB = RGB.astype(np.uint16) * 256 + RGB[::-1]
TWELVE = DEEP[:, :134] >> 4  # packed, two in three bytes
PACKED = np.stack(
    [
        TWELVE[:, ::2] >> 4,
        (TWELVE[:, ::2] & 15) << 4 | TWELVE[:, 1::2] >> 8,
        TWELVE[:, 1::2] & 255,
    ],
    axis=2,
).astype(np.uint8)

PALETTED, OTHER = image("P", INDEX, PALETTE), image("P", INDEX[::-1], PALETTE)
OPACITIES = bytes(range(240, 0, -15))  # of the palette's 16 entries
GREYS = image("L", GREY)
ONE_BIT = image("L", BITS * np.uint8(255)).convert("1", dither=Image.Dither.NONE)


def frames() -> dict:
    """Return options for two frames; of its own images, on which Pillow's encoders leave traces."""
    return {"save_all": True, "append_images": [image("RGB", RGB[::-1])]}


TRNS_RGB = (b"tRNS", struct.pack(">HHH", *RGB[5, 5]))
IS_HOLE = (RGB[5, 5] == RGB).all(axis=2)

# File's name -> (what to write, Pillow's options, the RGB of a lossless file)
LOSSLESS = {
    "rgb.png": (image("RGB", RGB), {}, RGB),
    "UPPER.PNG": (image("RGB", RGB), {}, RGB),
    "animated.png": (image("RGB", RGB), frames(), RGB),
    "grey.png": (GREYS, {}, grey(GREY)),
    "bits.png": (ONE_BIT, {}, grey(BITS * 255)),
    "palette.png": (PALETTED, {}, PALETTE[INDEX]),
    "alpha.png": (image("RGBA", np.dstack([RGB, ALPHA])), {}, over_white(RGB, ALPHA)),
    "grey-alpha.png": (
        image("LA", np.dstack([GREY, ALPHA])),
        {},
        over_white(grey(GREY), ALPHA),
    ),
    "trns-grey.png": (GREYS, {"transparency": 99}, over_white(grey(GREY), 255 * (GREY != 99))),
    "trns-palette.png": (
        PALETTED,
        {"transparency": 7},
        over_white(PALETTE[INDEX], 255 * HOLES),
    ),
    "trns-alphas.png": (
        PALETTED,
        {"transparency": OPACITIES},
        over_white(PALETTE[INDEX], np.frombuffer(OPACITIES, np.uint8)[INDEX]),
    ),
    "trns-rgb.png": (png(8, RGB.reshape(91, -1), TRNS_RGB), {}, over_white(RGB, 255 * ~IS_HOLE)),
    "sixteen.png": (image("I;16", DEEP), {}, grey(np.round(DEEP / 257))),
    "sixteen-rgb.png": (
        png(16, DEEP_RGB.astype(">u2").view(np.uint8).reshape(91, -1)),
        {},
        DEEP_RGB >> 8,
    ),
    "rgb.bmp": (image("RGB", RGB), {}, RGB),
    "grey.bmp": (GREYS, {}, grey(GREY)),
    "bits.bmp": (ONE_BIT, {}, grey(BITS * 255)),
    "palette.bmp": (PALETTED, {}, PALETTE[INDEX]),
    "grey.gif": (GREYS, {}, grey(GREY)),
    "palette.gif": (PALETTED, {}, PALETTE[INDEX]),
    "transparent.gif": (PALETTED, {"transparency": 7}, over_white(PALETTE[INDEX], 255 * HOLES)),
    "animated.gif": (PALETTED, {"save_all": True, "append_images": [OTHER]}, PALETTE[INDEX]),
    "rgb.webp": (image("RGB", RGB), {"lossless": True}, RGB),
    "alpha.webp": (
        image("RGBA", np.dstack([RGB, ALPHA])),
        {"lossless": True, "exact": True},
        over_white(RGB, ALPHA),
    ),
    "animated.webp": (image("RGB", RGB), {"lossless": True, **frames()}, RGB),
    "rgb.tif": (image("RGB", RGB), {}, RGB),
    "pages.tiff": (image("RGB", RGB), frames(), RGB),
    "lzw.tif": (image("RGB", RGB), {"compression": "tiff_lzw"}, RGB),
    "deflate.tif": (image("RGB", RGB), {"compression": "tiff_adobe_deflate"}, RGB),
    "grey.tif": (GREYS, {}, grey(GREY)),
    "white-is-zero.tif": (tiff("<", GREY, 8, 0), {}, grey(255 - GREY)),
    "bits.tif": (ONE_BIT, {}, grey(BITS * 255)),
    "fax.tif": (ONE_BIT, {"compression": "group4"}, grey(BITS * 255)),
    "palette.tif": (PALETTED, {}, PALETTE[INDEX]),
    "alpha.tif": (image("RGBA", np.dstack([RGB, ALPHA])), {}, over_white(RGB, ALPHA)),
    "grey-alpha.tif": (
        image("LA", np.dstack([GREY, ALPHA])),
        {},
        over_white(grey(GREY), ALPHA),
    ),
    "cmyk.tif": (image("CMYK", CMYK), {}, of_inks(CMYK)),
    "sixteen.tif": (image("I;16", DEEP), {}, grey(np.round(DEEP / 257))),
    "sixteen-lzw.tif": (
        image("I;16", DEEP),
        {"compression": "tiff_lzw"},
        grey(np.round(DEEP / 257)),
    ),
    "sixteen-big.tif": (tiff(">", DEEP.astype(">u2"), 16, 1), {}, grey(np.round(DEEP / 257))),
    "sixteen-white.tif": (tiff("<", DEEP, 16, 0), {}, grey(np.round((65535 - DEEP) / 257))),
    "twelve.tif": (
        tiff("<", PACKED.reshape(91, -1), 12, 1, 134),
        {},
        grey(np.round(TWELVE * (255 / 4095))),
    ),
    "sixteen-rgb.tif": (tiff("<", DEEP_RGB, 16, 2), {}, DEEP_RGB >> 8),
    "sixteen-rgb-big.tif": (tiff(">", DEEP_RGB.astype(">u2"), 16, 2), {}, DEEP_RGB >> 8),
}

# ... and about the RGB of one that is lossy
LOSSY = {
    "rgb.jpg": (image("RGB", RGB), {}, RGB),
    "UPPER.JPEG": (image("RGB", RGB), {}, RGB),
    "full-colour.jpg": (image("RGB", RGB), {"subsampling": 0}, RGB),
    "progressive.jpg": (image("RGB", RGB), {"progressive": True}, RGB),
    "grey.jpg": (GREYS, {}, grey(GREY)),
    "cmyk.jpg": (image("CMYK", CMYK), {}, of_inks(CMYK)),  # inverted, as Adobe does
    "two.mpo": (image("RGB", RGB), frames(), RGB),
    "lossy.webp": (image("RGB", RGB), {"quality": 90}, RGB),
    "ycbcr.tif": (image("RGB", RGB).convert("YCbCr"), {"compression": "tiff_lzw"}, RGB),
    "jpeg.tif": (image("RGB", RGB), {"compression": "jpeg", "quality": 90}, RGB),
}
KINDS = {**LOSSLESS, **LOSSY}
SINCE = {"two.mpo": (9, 3), "sixteen-white.tif": (10, 0)}  # unknown to Pillow before, or
TURNED_SINCE = {"sixteen.tif": (10, 0), "sixteen-lzw.tif": (10, 0)}  # turned by it the wrong way
PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])


def outcome(function, *arguments):
    """Return (what it returns, None) or (None, the `DataError` that it raises)."""
    try:
        return function(*arguments), None
    except DataError as error:
        return None, error


def write(kind, folder, **more):
    """Write a file of ``kind`` with ``more`` options; return its path, and its RGB as stored."""
    since = TURNED_SINCE if more and kind in TURNED_SINCE else SINCE
    if since.get(kind, PILLOW) > PILLOW:
        pytest.skip(f"not with Pillow {PIL.__version__}")
    path = folder / kind
    content, options, expected = KINDS[kind]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path, **options)
    if kind in LOSSY:
        about = expected
        with Image.open(path) as opened:
            stored = np.asarray(opened)
        expected = {"L": grey, "CMYK": of_inks, "RGB": np.asarray}[opened.mode](stored)
        assert np.abs(expected.astype(int) - about).mean() < 8
    if more:
        content.save(path, **options, **more)
    return path, expected


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind, tmp_path):
    path, expected = write(kind, tmp_path)
    images = images_of(path)
    found = images.image(0)
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), expected)
    assert tuple(images.size(0)) == expected.shape[:2]
    assert images.fault(0) is None
    assert images.fault(0, thorough=True) is None


@pytest.mark.parametrize("crop", [32, 37, 160, 203])  # of 91 x 135: down and up, by 8 and not
@pytest.mark.parametrize("kind", ["rgb.png", "grey.jpg", "alpha.png", "sixteen.tif", "cmyk.jpg"])
def test_views_are_those_of_pillow(kind, crop, tmp_path):
    path, expected = write(kind, tmp_path)
    found, plain = images_of(path).image(0), Image.fromarray(expected)

    squashed = np.asarray(plain.resize((crop, crop), BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(transforms.evaluation_view(found, Preprocessing(crop)), squashed)

    side = crop + 11
    larger, pixels = plain.resize((side, side), BILINEAR), transforms.resized(found, (side, side))
    before = pixels.copy()
    for top, left in ((0, 0), (11, 11), (3, 8)):
        for flip in (False, True):
            view = larger.crop((left, top, left + crop, top + crop))
            if flip:
                view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            batch = np.zeros((3, 3, crop, crop), np.uint8)
            out = transforms.training_view(pixels, top, left, flip, batch[1])
            assert np.shares_memory(out, batch)
            assert np.array_equal(batch[1], np.asarray(view).transpose(2, 0, 1))
            assert not batch[[0, 2]].any()
    assert np.array_equal(pixels, before)  # shared between epochs


# --- Orientation --------------------------------------------------------------------------------

# What a viewer does (TIFF 6.0, page 36), on pixels [row, column, colour]
UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels),
}
TURNED = [
    *("rgb.jpg", "grey.jpg", "progressive.jpg", "cmyk.jpg", "two.mpo"),
    *("rgb.png", "sixteen.png", "palette.png", "rgb.webp", "alpha.webp"),
    *("rgb.tif", "lzw.tif", "grey.tif", "palette.tif", "alpha.tif", "cmyk.tif", "sixteen.tif"),
    *("sixteen-lzw.tif", "bits.tif", "fax.tif", "jpeg.tif"),
]


def write_turned(kind, value, folder):
    """Write a file of ``kind`` with this EXIF orientation; return its path and pixels as stored."""
    if kind.endswith(".tif"):
        return write(kind, folder, tiffinfo={0x0112: value})
    exif = Image.Exif()
    exif[0x0112] = value
    return write(kind, folder, exif=exif.tobytes())


@pytest.mark.parametrize("value", UPRIGHT)
@pytest.mark.parametrize("kind", TURNED)
def test_orientation(kind, value, tmp_path):
    path, stored = write_turned(kind, value, tmp_path)
    expected = UPRIGHT[value](stored)
    assert np.array_equal(read(path), expected)
    assert tuple(images_of(path).size(0)) == expected.shape[:2]


@pytest.mark.parametrize("value", [0, 9, 65535])
@pytest.mark.parametrize("kind", ["rgb.png", "rgb.jpg", "rgb.webp", "rgb.tif"])
def test_an_orientation_that_is_none_is_ignored(kind, value, tmp_path):
    path, stored = write_turned(kind, value, tmp_path)
    assert np.array_equal(read(path), stored)
    assert tuple(images_of(path).size(0)) == stored.shape[:2]


ENTRY = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12"  # one, the orientation; its type, count, value:
TEXT, BLOB = b"\0\2\0\0\0\2" + b"6\0\0\0", b"\0\7\0\0\0\1" + b"\6\0\0\0"


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        bytes(50),
        ENTRY + TEXT + bytes(4),
        ENTRY + BLOB + bytes(4),
    ],
    ids=["empty", "beyond", "zeros", "text", "blob"],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["rgb.png", "rgb.jpg", "rgb.webp"])
def test_damaged_exif_is_ignored(kind, exif, tmp_path):
    path, stored = write(kind, tmp_path, exif=exif)
    assert np.array_equal(read(path), stored)
    assert tuple(images_of(path).size(0)) == stored.shape[:2]
    assert images_of(path).fault(0) is None


# --- Truncated and overlong JPEGs ---------------------------------------------------------------


def leniently(path):
    """Return what Pillow itself makes of a truncated file, or None."""
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB"))
    except OSError:
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


JPEGS = ["rgb.jpg", "full-colour.jpg", "progressive.jpg", "grey.jpg", "cmyk.jpg"]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 10, 100])  # 2: the end marker
@pytest.mark.parametrize("kind", JPEGS)
def test_slightly_truncated_jpeg(kind, cut, tmp_path):
    path, complete = write(kind, tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    found = read(path)
    assert np.array_equal(found, leniently(path))
    assert found.shape == complete.shape
    assert np.array_equal(found[:64], complete[:64]) or kind == "progressive.jpg"
    assert images_of(path).fault(0) is None
    assert images_of(path).fault(0, thorough=True) is None


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_cut_anywhere(kind, tmp_path):
    """Refused, or read as Pillow reads it; baseline: refused when an eighth is missing."""
    path, _ = write(kind, tmp_path)
    content, shortest = path.read_bytes(), 1
    for length in range(0, len(content), len(content) // 23):
        path.write_bytes(content[:length])
        found, error = outcome(read, path)
        if error:
            assert str(path) in str(error) and "repair or remove" in str(error)
            assert images_of(path).fault(0) == str(error)
            assert length < len(content) * 0.95
        else:
            assert np.array_equal(found, leniently(path))
            assert images_of(path).fault(0) is None
            shortest = min(shortest, length / len(content))
    assert 0.65 < shortest < 0.87 or kind == "progressive.jpg"


@pytest.mark.parametrize("kind", JPEGS)
def test_half_a_jpeg(kind, tmp_path):
    path, _ = write(kind, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    if kind == "progressive.jpg":  # all rows, less sharp
        path.write_bytes(content[: content.rindex(b"\xff\xda") + 50])  # in the last scan
        assert np.array_equal(read(path), leniently(path))
        return
    with pytest.raises(DataError, match=rf"{kind}: .*truncated: [3-7]\d% of its rows"):
        read(path)


@pytest.mark.parametrize("colour", ["white", "black", "red"])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_plain_bottom_is_no_damage(colour, cut, tmp_path):
    """A scanned page that is empty below, whole but for the end marker, is not truncated."""
    page = Image.new("RGB", (135, 182), colour)
    page.paste(image("RGB", RGB))
    path = tmp_path / "page.jpg"
    page.save(path)
    with Image.open(path) as opened:
        expected = np.asarray(opened)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    assert np.array_equal(read(path), expected)
    assert images_of(path).fault(0) is None


@pytest.mark.parametrize("extra", [b"\0", b"\n", bytes(5000), b"\xff\xd8\xff\xe0 a second"])
@pytest.mark.parametrize("kind", JPEGS)
def test_bytes_after_the_end_of_a_jpeg(kind, extra, tmp_path):
    path, expected = write(kind, tmp_path)
    path.write_bytes(path.read_bytes() + extra)
    assert np.array_equal(read(path), expected)
    assert images_of(path).fault(0) is None


@pytest.mark.parametrize("length", [2, 3, 10, 100, 300, 600])
def test_jpeg_cut_in_its_header(length, tmp_path):
    path, _ = write("rgb.jpg", tmp_path)
    content = path.read_bytes()
    assert content.index(b"\xff\xda") > 600  # where the pixels begin
    path.write_bytes(content[:length])
    with pytest.raises(DataError, match=r"rgb\.jpg"):
        read(path)
    assert str(path) in images_of(path).fault(0)


# --- Faults -------------------------------------------------------------------------------------


def half(kind):
    def damage(path):
        content = write(kind, path.parent)[0].read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return damage


def flipped_in_idat(path):
    content = bytearray(write("rgb.png", path.parent)[0].read_bytes())
    content[content.index(b"IDAT") + 1000] ^= 1
    path.write_bytes(content)


def unreadable(path):
    write("rgb.jpg", path.parent)[0].rename(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")


def immense(path):
    path.write_bytes(png(8, RGB.reshape(91, -1), size=(30000, 30000)))


def spider(path):
    """Something that Pillow takes for an image within a stack, at which it stumbles."""
    header = np.zeros(27, ">f4")
    header[[1, 4, 11, 12, 21, 22, 26]] = 3, 1, 3, 1, 108, 108, 1
    path.write_bytes(header.tobytes() + bytes(36))


BAD = {
    "empty.jpg": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("<html>404 Not Found</html>"),
    "zeros.png": lambda path: path.write_bytes(bytes(4000)),
    "missing.jpg": lambda path: None,
    "folder.jpg": lambda path: path.mkdir(),
    "unreadable.jpg": unreadable,
    "immense.png": immense,
    "spider.jpg": spider,
    "flipped.png": flipped_in_idat,
    "float.tif": lambda path: image("F", DEEP.astype(np.float32)).save(path),
    **{
        f"half-{kind}": half(kind)
        for kind in (
            *("rgb.jpg", "grey.jpg", "cmyk.jpg", "rgb.png", "sixteen.png"),
            *("palette.gif", "rgb.webp", "lossy.webp", "rgb.bmp", "rgb.tif", "lzw.tif"),
        )
    },
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_named(name, tmp_path):
    path = tmp_path / name
    BAD[name](path)
    images = images_of(path)
    kind = MissingFileError if name == "missing.jpg" else DataError
    with pytest.raises(kind) as error:
        images.image(0)
    assert isinstance(error.value, FileNotFoundError if name == "missing.jpg" else ValueError)
    for fault in (str(error.value), images.fault(0), images.fault(0, thorough=True)):
        assert str(path) in fault
    if name != "missing.jpg":  # from the header, which may be right
        _, fault = outcome(images.size, 0)
        assert fault is None or str(path) in str(fault)


def test_immense_image(tmp_path, monkeypatch):
    """More pixels than Pillow allows: refused; more than half of that: its warning."""
    path, _ = write("rgb.jpg", tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 91 * 135 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        assert images_of(path).image(0).size == (135, 91)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"rgb\.jpg.*12285 pixels"):
            images_of(path).image(0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    for function in (FileImages.image, FileImages.size):
        with pytest.raises(DataError, match=r"rgb\.jpg.*12285 pixels"):
            function(images_of(path), 0)
    assert "12285 pixels" in images_of(path).fault(0, thorough=True)


def test_png_whose_pixels_are_whole(tmp_path):
    """A wrong checksum alone, or a missing end, is looked into, and is no fault."""
    path, expected = write("rgb.png", tmp_path)
    content = path.read_bytes()
    checksum = content.index(b"IEND") - 8
    wrong = content[:checksum] + bytes(4) + content[checksum + 4 :]
    for damaged in (wrong, content[:-12], content[:-3]):
        path.write_bytes(damaged)
        assert np.array_equal(read(path), expected)
        assert images_of(path).fault(0) is None
        assert images_of(path).fault(0, thorough=True) is None


# --- Fuzz ---------------------------------------------------------------------------------------

SMALL = photo(20, 27)


def small_files(folder):
    """Yield files of each format, some hundred bytes long, and of two that are not asked for."""
    Image.init()
    rgb, exif = image("RGB", SMALL), Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [image("RGB", SMALL[::-1])]}
    for name, made, options in (
        ("a.jpg", rgb, {"exif": exif.tobytes()}),
        ("b.jpg", rgb, {"progressive": True}),
        *([("a.mpo", rgb, frames)] if "MPO" in Image.SAVE_ALL else []),
        ("a.png", rgb, {"exif": exif.tobytes()}),
        ("b.png", rgb.quantize(16), {"transparency": b"\0\1\2"}),
        ("a.gif", rgb.quantize(16), {**frames, "transparency": 3}),
        ("a.webp", rgb, {"exif": exif.tobytes()}),
        ("b.webp", rgb, frames),
        ("a.bmp", rgb.quantize(16), {}),
        ("a.tif", rgb, {"tiffinfo": {0x0112: 6}}),
        ("a.dds", rgb, {}),
        *([("a.avif", rgb, {})] if "AVIF" in Image.SAVE else []),
        ("b.tif", image("I;16", SMALL[..., 0] * np.uint16(257)), {"compression": "tiff_lzw"}),
    ):
        made.save(folder / name, **options)
        yield folder / name


def mutated(content, random):
    """Return ``content`` with one to four bytes changed, or a stretch cut, or one inserted."""
    content = bytearray(content)
    if random.random() < 0.5:  # where the structure is
        places = random.integers(0, min(len(content), 200), 4)
    else:
        places = random.integers(0, len(content), 4)
    what = random.integers(0, 4)
    if what == 0:
        del content[places[0] :]
    elif what == 1:
        del content[places[0] : places[0] + random.integers(1, 30)]
    elif what == 2:
        content[places[0] : places[0]] = random.bytes(random.integers(1, 30))
    else:
        for place in places[: random.integers(1, 5)]:
            content[place] = random.choice([0, 1, 127, 128, 255, random.integers(0, 256)])
    return bytes(content)


COUNT = int(os.environ.get("BIT_PADDLE_FUZZ", "30"))  # of each file


def test_damaged_files_are_read_or_refused(tmp_path, monkeypatch):
    """Nothing but the package's own errors comes out, and size, fault and image agree."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow's own: 90 million
    random = np.random.default_rng(int(os.environ.get("BIT_PADDLE_SEED", "0")))
    outcomes = []
    for source in list(small_files(tmp_path)):
        path = tmp_path / f"damaged{source.suffix}"
        images, content = images_of(path), source.read_bytes()
        for _ in range(COUNT):
            path.write_bytes(mutated(content, random))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                size, _ = outcome(images.size, 0)
                found, error = outcome(images.image, 0)
                quick, thorough = images.fault(0), images.fault(0, thorough=True)
            assert thorough == (str(error) if error else None)
            assert error or (found.height, found.width) == tuple(size)
            assert quick in (None, thorough)
            assert error is None or str(path) in str(error)
            outcomes.append(error is None)
    assert 0.1 < np.mean(outcomes) < 0.9  # both happen


def test_a_name_that_no_file_can_have():
    """A damaged list may have a null byte, which the system refuses in another way than a path."""
    images = FileImages(["a\0.jpg"], [0], ["a"])
    with pytest.raises(DataError, match="a\0.jpg"):
        check.require_usable([(images, np.arange(1))], 0)
