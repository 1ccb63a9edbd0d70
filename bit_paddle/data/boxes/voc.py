"""Pascal VOC's XML: one file per image, with objects of a name and a box.

The files come from others, so a document type, which could define entities, is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from bit_paddle.data.boxes.annotations import BoxedImages, Collector, number_of
from bit_paddle.data.decoding import readable_suffixes
from bit_paddle.data.images import FileImages
from bit_paddle.data.text import is_encoding, read_text
from bit_paddle.errors import DataError, MissingFileError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*\bencoding\s*=\s*["']([\w.-]+)["']""")


def read_voc(
    folder: Path,
    root: Path,
    classes: Sequence[str] | None = None,
    on_bad_box: str = "error",
    only: Path | None = None,
) -> BoxedImages:
    """Return the images of the XML files in ``folder``, whose image files are in ``root``.

    ``classes`` gives the order of the classes; without it they are all names, sorted. ``only`` is a
    list of the files to read, a name without extension per line, as in VOC's ImageSets/Main.
    Corners are taken as they are. Objects marked "difficult" are objects like others.
    ``on_bad_box``: see `Collector.finished`. Errors: `MissingFileError`, `DataError`.
    """
    paths = _paths(folder, only)
    trees: dict[Path, Element] = {}
    faults = []
    for path in paths:
        try:
            trees[path] = parse_xml(path)
        except DataError as error:
            faults.append(str(error))
    names = sorted({one.findtext("name", "").strip() for tree in trees.values()
                    for one in tree.findall("object")})  # fmt: skip
    found = Collector(str(folder), root, names if classes is None else classes)
    for fault in faults:
        found.fault("files that cannot be read", fault)
    files = _Files(root)
    for path, tree in trees.items():
        name = files.of(tree.findtext("filename", "").strip(), path.stem)
        height, width = (number_of(tree.findtext(f"size/{side}")) for side in ("height", "width"))
        if not height or not width:  # some tools leave the size out, or write 0
            height, width = files.size(name)
        image = found.image(name, height, width, path.stem, path.name)
        for number, one in enumerate(tree.findall("object") if image else (), start=1):
            corners = [number_of(one.findtext(f"bndbox/{key}")) for key in _CORNERS]
            label = one.findtext("name", "").strip()
            found.box(image, corners, label, False, f"{path.name}, object {number}")
    return found.finished(on_bad_box)


class _Files:
    """The image files in a folder: by the name in an XML file, or by that of the file itself."""

    def __init__(self, root: Path):
        self.root, suffixes = root, readable_suffixes()
        try:
            names = sorted(os.listdir(root))
        except OSError as error:
            raise MissingFileError(f"{root}: no such folder of images") from error
        self.names = set(names)
        self.by_stem = {
            os.path.splitext(name)[0]: name
            for name in names
            if os.path.splitext(name)[1].lower() in suffixes
        }

    def of(self, filename: str, stem: str) -> str:
        """Return the image's name; many tools keep an old ``filename`` after a renaming."""
        if filename in self.names:
            return filename
        return self.by_stem.get(stem, filename or stem)

    def size(self, name: str) -> tuple[int | None, int | None]:
        """Return the (height, width) of an image file, None if it cannot be opened."""
        try:
            return FileImages([name], [0], [""], self.root).size(0)
        except (DataError, MissingFileError):
            return None, None


def _paths(folder: Path, only: Path | None) -> list[Path]:
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder of XML files")
    if only is not None:
        lines = [line.split() for line in read_text(only).text.splitlines()]
        paths = [folder / f"{words[0]}.xml" for words in lines if words]
    else:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml")
    if not paths:
        raise DataError(f"{only or folder}: names no XML file")
    return paths


def parse_xml(path: Path) -> Element:
    """Return the root element of an XML file. Raises `DataError`, also for a document type."""
    text = read_text(path, _declared_encoding(path)).text
    builder = TreeBuilder()
    parser = expat.ParserCreate(encoding="utf-8", namespace_separator=None)
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_document_type
    try:
        parser.Parse(text.encode("utf-8", errors="replace"), True)
        return builder.close()
    except (expat.ExpatError, AssertionError) as error:
        raise DataError(f"{path}: is not XML ({error})") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _refuse_document_type(*declaration: object) -> None:
    raise DataError("has a document type (<!DOCTYPE …>), which could define entities; remove it")


def _declared_encoding(path: Path) -> str | None:
    """Return the encoding in a file's XML declaration, if it is one that Python knows."""
    try:
        with open(path, "rb") as stream:
            match = _DECLARED.match(stream.read(200))
    except FileNotFoundError:
        raise DataError(f"{path}: is missing") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    name = match[1].decode("ascii") if match else ""
    return name if name and is_encoding(name) and name.lower() not in ("utf-8", "utf8") else None
