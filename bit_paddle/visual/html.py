"""Parts of the report page: pictures in the HTML itself, and their captions."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import BinaryIO

from PIL import Image

Pictures = dict[str, Callable[[BinaryIO], object]]  # name -> function that writes the PNG


def data_address(picture: Image.Image) -> str:
    """Return ``picture`` as an address that contains it, a PNG."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def tile(pictures: Sequence[Image.Image], title: str, text: str) -> str:
    """Return a figure of pictures side by side; its caption has a ``title`` and a ``text``."""
    shown = "".join(f'<img alt="" src="{data_address(picture)}">' for picture in pictures)
    caption = f"<b>{escape(title)}</b><br>{escape(text)}"
    return f"<figure><div>{shown}</div><figcaption>{caption}</figcaption></figure>"
