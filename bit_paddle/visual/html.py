"""Parts of the report page: pictures in the HTML itself, and their captions."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import BinaryIO

from PIL import Image

Pictures = dict[str, Callable[[BinaryIO], object]]  # name -> function that writes the PNG


def data_address(picture: Image.Image, photo: bool = False) -> str:
    """Return ``picture`` as an address that contains it: a PNG, or a JPEG of a ``photo``."""
    stream, kind = io.BytesIO(), "jpeg" if photo else "png"
    options = {"quality": 90, "subsampling": 0} if photo else {"optimize": True}
    picture.save(stream, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def tile(pictures: Sequence[Image.Image], title: str, text: str, photo: bool = False) -> str:
    """Return a figure of pictures side by side; its caption has a ``title`` and a ``text``."""
    shown = "".join(f'<img alt="" src="{data_address(one, photo)}">' for one in pictures)
    caption = f"<b>{escape(title)}</b><br>{escape(text)}"
    return f"<figure><div>{shown}</div><figcaption>{caption}</figcaption></figure>"
