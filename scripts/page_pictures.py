"""Draw the pictures of docs/page.md: the page of a running server in a browser without a window.

    bit_paddle serve bit_logs/clothing &
    python scripts/page_pictures.py http://127.0.0.1:8000/ clothing10/ docs/

The folder has train/CLASS/*.jpg and val/CLASS/*.jpg. Needs `pip install playwright` and Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

TAUGHT, TRIED = ("dress", "hat", "shoes"), 2  # classes; pictures to try of each

SHOTS = 8  # pictures that teach a class

GRID = 4  # pictures per class in the grid


def main() -> int:
    address, data, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    with sync_playwright() as tools:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])
        views = {
            "look": ({"color_scheme": "light"}, (1280, 860), look),
            "teach": ({"color_scheme": "dark"}, (1280, 860), teach),
            "phone": ({"color_scheme": "light", "locale": "zh-CN"}, (400, 860), look_at_one),
        }
        for name, (options, (width, height), draw) in views.items():
            page = browser.new_page(viewport={"width": width, "height": height}, **options)
            page.goto(address)
            page.locator("#model").get_by_text("·").first.wait_for()
            draw(page, data)
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)  # until bars and maps are drawn
            save(page.screenshot(), output / f"page-{name}.png")
            page.close()
        browser.close()
    return 0


def some(data: Path, part: str, name: str, count: int) -> list[Path]:
    return sorted((data / part / name).iterdir())[:count]


def give(page: Page, button: str, files: list[Path]) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(button).click()
    chooser.value.set_files(files)


def look(page: Page, data: Path) -> None:
    names = sorted(path.name for path in (data / "val").iterdir())
    files = [path for name in names for path in some(data, "val", name, GRID)]
    give(page, "#look-files", files)
    page.locator("#shown[data-word=shown]").wait_for(timeout=300_000)
    page.locator("#by-order").select_option("most")
    page.wait_for_timeout(300)
    page.locator(".tile").nth(1).click()
    page.locator(".photo .map").wait_for()


def look_at_one(page: Page, data: Path) -> None:
    give(page, "#look-files", some(data, "val", TAUGHT[0], 1))
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
    for name in TAUGHT[1:]:
        give(page, "#try-files", some(data, "val", name, 1))
        page.locator("#tried li").first.locator(".bars").wait_for()


def save(screenshot: bytes, path: Path) -> None:
    """Write a screenshot with at most 256 colours, which makes it small."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    sys.exit(main())
