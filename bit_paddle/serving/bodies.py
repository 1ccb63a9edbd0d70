"""From the body of a request to image files, in a thread: nothing here waits or decodes an image.

A body is an image, JSON with images in base64 or with web addresses, or multipart/form-data.
"""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

from bit_paddle.errors import DataError
from bit_paddle.serving.settings import ServerSettings

JSON, MULTIPART, BYTES = "application/json", "multipart/form-data", "application/octet-stream"

FIELD = "images"  # the name of a part with an image

_LONGEST_NAME = 200  # characters


class TooLarge(DataError):
    """A body, a file or an image is larger than the server accepts."""


class UnknownType(DataError):
    """The type of a body is none that the server reads."""


class Given(NamedTuple):
    """One image of a request. ``content`` None: ``name`` is the web address to fetch it from."""

    name: str
    content: bytes | None


def type_of(header: str) -> str:
    """Return the media type of a Content-Type header, in lower case."""
    return header.partition(";")[0].strip().lower()


def is_image(kind: str) -> bool:
    """Return whether a body of this media type is one image file."""
    return kind.startswith("image/") or kind == BYTES


def read(body: bytes, header: str, settings: ServerSettings) -> list[Given]:
    """Return the images of a body; ``header`` is its Content-Type.

    Raises `DataError`; `TooLarge` and `UnknownType` are kinds of it.
    """
    kind = type_of(header)
    if is_image(kind):
        found = [Given("image", body)]
    elif kind == JSON:
        found = _of_json(body, settings)
    elif kind == MULTIPART:
        found = _of_multipart(body, header, settings)
    else:
        raise UnknownType(
            f"Content-Type: is {kind or 'missing'!r}; expected image/jpeg (or another image type), "
            f"{MULTIPART} or {JSON}"
        )
    if not found:
        raise DataError("the request has no image")
    for image in found:
        if image.content is not None and len(image.content) > settings.image_mb * 1e6:
            raise TooLarge(f"{image.name}: has more than {settings.image_mb} MB")
    return found


def _check_count(count: int, settings: ServerSettings) -> None:
    if count > settings.images:
        raise TooLarge(f"the request has more than {settings.images} images")


# --- JSON ---------------------------------------------------------------------------------------


def _of_json(body: bytes, settings: ServerSettings) -> list[Given]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON ({type(error).__name__})") from error
    names = [FIELD, "urls"] if settings.allow_urls else [FIELD]
    key = next(iter(content)) if isinstance(content, dict) and len(content) == 1 else None
    if key == "urls" and not settings.allow_urls:
        raise DataError("urls: this server fetches no web addresses; send the images themselves")
    if key not in names:
        raise DataError(f'the body is not {{"{FIELD}": ["<base64>", …]}}')
    words = content[key]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{key}: is not a list of texts")
    _check_count(len(words), settings)
    if key == "urls":
        return [Given(word, None) for word in words]
    return [Given(f"{FIELD}[{k}]", _decoded(word, k)) for k, word in enumerate(words)]


def _decoded(word: str, number: int) -> bytes:
    """Return the bytes of base64, perhaps after ``data:image/png;base64,``."""
    if word.startswith("data:"):
        start, _, word = word.partition(",")
        if not start.endswith(";base64"):
            raise DataError(f"{FIELD}[{number}]: is a data: address that is not in base64")
    try:
        return base64.b64decode("".join(word.split()), validate=True)
    except ValueError as error:
        raise DataError(f"{FIELD}[{number}]: is not base64 ({error})") from error


# --- multipart/form-data ------------------------------------------------------------------------


class _Parts:
    """Collects the parts of a body; its methods are the parser's callbacks."""

    def __init__(self, settings: ServerSettings):
        self.settings, self.found, self.complete = settings, [], False
        self._start()

    def _start(self) -> None:
        self._disposition, self._field, self._value = b"", b"", b""
        self._name, self._content = "", bytearray()

    def on_part_begin(self) -> None:
        _check_count(len(self.found) + 1, self.settings)
        self._start()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field, self._value = b"", b""

    def on_headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != FIELD.encode():
            raise DataError(f"a part is not named {FIELD}; name all parts with an image so")
        name = options.get(b"filename", b"").decode(errors="replace")[:_LONGEST_NAME]
        self._name = name or f"{FIELD}[{len(self.found)}]"

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def on_part_end(self) -> None:
        self.found.append(Given(self._name, bytes(self._content)))

    def on_end(self) -> None:
        self.complete = True

    def callbacks(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}


def _of_multipart(body: bytes, header: str, settings: ServerSettings) -> list[Given]:
    from python_multipart import MultipartParser
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(header)[1].get(b"boundary", b"")
    if not boundary:
        raise DataError("Content-Type: has no boundary of the parts")
    parts = _Parts(settings)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise DataError(f"the body is not multipart/form-data ({error})") from error
    if not parts.complete:
        raise DataError("the body ends before its last part does")
    return parts.found
