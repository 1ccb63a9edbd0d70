"""Text files of other people: lists and class names in any usual encoding."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bit_paddle.errors import DataError

_MARKS = (  # of UTF-32 first, because its mark starts with that of UTF-16
    *((mark, "utf-32") for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    *((mark, "utf-16") for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)

_SINGLE = ("cp1252", "latin-1")  # for texts with single accented letters

_COMMON = 0.5  # of the Chinese characters: the usual ones of GB 2312 are far more than half


class Text(NamedTuple):
    """The text of a file, and its encoding unless that is UTF-8."""

    text: str
    encoding: str | None = None


def read_text(path: Path, encoding: str | None = None) -> Text:
    """Return the text of ``path``; without ``encoding`` its bytes tell the encoding.

    These are tried in this order: the mark at its start, UTF-8, and the encoding that the bytes
    suggest. The last one is a guess, so callers must show `Text.encoding`. Raises `DataError`.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read as text ({error.strerror})") from error
    if encoding is not None:
        try:
            return Text(raw.decode(encoding).lstrip("\ufeff"), encoding)
        except UnicodeError as error:
            raise DataError(f"{path}: is not in the given encoding {encoding} ({error})") from error
    if raw.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(
            f"{path}: is not a text file, but an Excel workbook or an archive; in Excel save it "
            "as 'CSV UTF-8'"
        )
    for candidate in _candidates(raw):
        try:
            text = raw.decode(candidate)
        except (UnicodeError, LookupError):
            continue
        return Text(text, None if candidate == "utf-8-sig" else candidate)
    raise DataError(
        f"{path}: cannot be read as text, because its encoding is unknown; save it as UTF-8, or "
        "name its encoding in a data set's .yaml file (encoding: gb18030)"
    )


def is_encoding(name: str) -> bool:
    """Return whether ``name`` is a text encoding that Python knows."""
    try:
        "".encode(name)
    except (LookupError, ValueError):  # ValueError: a zero byte in the name
        return False
    return True


def encoding_of_names(names: Iterable[bytes], otherwise: str) -> str:
    """Return the encoding that the names of files suggest: UTF-8, a guess, or ``otherwise``."""
    raw = b"\n".join(names)
    for candidate in ("utf-8", *_guesses(raw)):
        if candidate in _SINGLE:  # accented letters alone
            break
        try:
            raw.decode(candidate)
        except (UnicodeError, LookupError):
            continue
        return candidate
    return otherwise


def _candidates(raw: bytes) -> list[str]:
    """Return names of encodings that ``raw`` may have, the most likely first."""
    marked = [name for mark, name in _MARKS if raw.startswith(mark)]
    if marked:
        return marked
    if b"\0" in raw:  # UTF-16 without a mark: one byte of each Latin letter is zero
        little = raw[1::2].count(0) >= raw[0::2].count(0)
        return ["utf-16-le" if little else "utf-16-be"]
    return ["utf-8-sig", *_guesses(raw)]


def _guesses(raw: bytes) -> list[str]:
    """Return guesses for bytes that are not UTF-8, from each of their words once.

    Class names are too short for the statistics of charset-normalizer: it takes 合格, 不合格 for
    Korean. So two cases are decided before: usual Chinese characters, and single accented letters.
    """
    words = dict.fromkeys(word for word in re.split(rb"[\x00-\x3f]+", raw) if not word.isascii())
    sample = b"\n".join(words)[:100_000]
    if _is_chinese(sample):
        return ["gb18030"]
    if not re.search(rb"[\x80-\xff]{2}", sample):
        return list(_SINGLE)
    import charset_normalizer  # needed by few files

    return [match.encoding for match in charset_normalizer.from_bytes(sample)]


def _is_chinese(sample: bytes) -> bool:
    """Return whether most characters are among the 3,755 most usual ones of GB 2312.

    Their first byte is 0xB0 to 0xD7, and their second one is 0xA1 or more.
    """
    pairs = re.findall(rb"[\x81-\xfe][\x40-\xfe]", sample)
    usual = sum(0xB0 <= first <= 0xD7 and second >= 0xA1 for first, second in pairs)
    alone = re.sub(rb"[\x81-\xfe][\x40-\xfe]", b"", sample)
    return alone.isascii() and usual > _COMMON * len(pairs)
