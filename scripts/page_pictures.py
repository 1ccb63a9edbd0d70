"""Draw the pictures of docs/page.md: the page of a running server in a browser without a window.

    bit_paddle serve bit_logs/clothing &
    python scripts/page_pictures.py http://127.0.0.1:8000/ clothing10/ docs/ look phone

The words at the end are names of `VIEWS`; the default is all. The folder has train/CLASS/*.jpg and
val/CLASS/*.jpg. Needs `pip install playwright` and Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import FilePayload, Page, sync_playwright

TAUGHT = ("hat", "pants", "t-shirt")

SHOTS = 8  # pictures that teach a class

GRID = 4  # pictures per class in the grid


def main() -> int:
    address, data, output, *names = sys.argv[1:]
    with sync_playwright() as tools:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name in names or VIEWS:
            options, (width, height), draw = VIEWS[name]
            page = browser.new_page(viewport={"width": width, "height": height}, **options)
            page.goto(address)
            page.locator("#model").get_by_text("·").first.wait_for()
            draw(page, Path(data))
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)  # until bars and maps are drawn
            save(page.screenshot(), Path(output, f"page-{name}.png"))
            page.close()
        browser.close()
    return 0


def some(data: Path, part: str, name: str, count: int) -> list[FilePayload]:
    """Return the first pictures of a class, with short names."""
    paths = sorted((data / part / name).iterdir())[:count]
    return [
        {"name": f"{name}-{k}.jpg", "mimeType": "image/jpeg", "buffer": path.read_bytes()}
        for k, path in enumerate(paths, 1)
    ]


def give(page: Page, button: str, files: list[FilePayload]) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(button).click()
    chooser.value.set_files(files)


def look(page: Page, data: Path) -> None:
    names = sorted(path.name for path in (data / "val").iterdir())
    files = [picture for name in names for picture in some(data, "val", name, GRID)]
    give(page, "#look-files", files)
    page.locator("#shown[data-word=shown]").wait_for(timeout=300_000)
    page.locator("#by-order").select_option("most")
    page.wait_for_timeout(300)
    page.locator(".tile").nth(3).click()
    page.locator(".photo .map").wait_for()


def look_at_one(page: Page, data: Path) -> None:
    give(page, "#look-files", some(data, "val", "dress", 1))
    page.locator(".photo .map").wait_for()


def teach(page: Page, data: Path) -> None:
    page.locator("nav a").nth(1).click()
    for number, name in enumerate(TAUGHT):
        if number > 1:
            page.locator("#add-class").click()
        page.locator(".class input").nth(number).fill(name)
        files = some(data, "train", name, SHOTS)
        give(page, f".class:nth-child({number + 1}) [data-word=add]", files)
    count = SHOTS * len(TAUGHT)
    page.locator("#learned").get_by_text(f"Learned from {count}").wait_for(timeout=300_000)
    for name in TAUGHT[:2]:
        give(page, "#try-files", some(data, "val", name, 1))
        page.locator("#tried > li").first.locator(".bars").wait_for()
    page.evaluate("scrollTo(0, 0)")


VIEWS = {
    "look": ({"color_scheme": "light"}, (1120, 780), look),
    "teach": ({"color_scheme": "dark"}, (1280, 820), teach),
    "phone": ({"color_scheme": "light", "locale": "zh-CN"}, (400, 800), look_at_one),
}


def save(screenshot: bytes, path: Path) -> None:
    """Write a screenshot with at most 256 colours, which makes it small."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    image.quantize(256).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    sys.exit(main())
