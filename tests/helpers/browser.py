"""A real Chromium without a window, and what users do with pictures in it."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a camera that shows a test picture
    "--use-fake-ui-for-media-stream",
)


@contextmanager
def chromium() -> Iterator:
    """Yield a browser; skip where Playwright or Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def transfer(page, files: dict[str, bytes], kind: str = "image/png"):
    """Return a DataTransfer of the page that holds ``files``."""
    content = [[name, base64.b64encode(data).decode(), kind] for name, data in files.items()]
    return page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, text, type] of files) {
                const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, {type}));
            }
            return transfer;
        }""",
        content,
    )


def drop(page, place: str, files: dict[str, bytes], kind: str = "image/png") -> None:
    """Drop ``files`` on the element ``place``."""
    target, given = page.locator(place), transfer(page, files, kind)
    for event in ("dragenter", "dragover", "drop"):
        target.dispatch_event(event, {"dataTransfer": given})


def paste(page, place: str, files: dict[str, bytes]) -> None:
    """Paste ``files`` while ``place`` has the focus."""
    page.locator(place).evaluate(
        """(element, clipboardData) => element.dispatchEvent(
            new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}))""",
        transfer(page, files),
    )


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write ``files`` below ``folder``; their names may have folders."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
