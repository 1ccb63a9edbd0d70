"""The page in a real browser, at a real server: what people do with it, by mouse and by keys."""

import json
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from helpers import browser as tools
from helpers.browser import drop, png
from helpers.pictures import cloud
from helpers.serving import running
from PIL import Image

import bit_paddle
from bit_paddle.inference.calibration import NOTE, Calibration
from bit_paddle.models import npz
from bit_paddle.models.checkpoint import CheckpointFile

for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(name)

PAGE = Path(bit_paddle.__file__).parent / "serving" / "page"

KEY = "开门 ünïcode"

PIXELS = """image => {
    const canvas = document.createElement("canvas");
    canvas.getContext("2d").drawImage(image, 0, 0, 300, 150);
    return canvas.toDataURL();
}"""

SIZES = {"narrow": 400, "wide": 1280}

WAIT = 60_000  # milliseconds; nothing waits so long unless the machine is very busy


@pytest.fixture(scope="module")
def chromium():
    with tools.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """BiT-Mini with a calibration by which about half of the made pictures are unknown."""
    path = tmp_path_factory.mktemp("model") / "mini.npz"
    mini = bit_paddle.load("BiT-Mini")
    shutil.copy(mini.file.path, path)
    from bit_paddle.inference import confidence

    values = confidence.score(confidence.UNKNOWN, mini.logits(pictures()), mini.file.loss)
    middle = float(np.median(values))
    found = Calibration(
        *(1.5, confidence.UNKNOWN, tuple(np.linspace(middle - 0.05, middle + 0.95, 201).tolist())),
        *(100, "made", (), mini.file.preprocessing.crop),
    )
    with CheckpointFile(path) as file:
        notes = {**file.notes(), "settings": None}
    npz.replace_notes(path, {**notes, NOTE: asdict(found)})
    return bit_paddle.load(path)


@pytest.fixture(scope="module")
def address(chromium, model):
    with running(model=model.file.path) as server:
        yield f"{server.address}/"


@pytest.fixture
def visit(chromium):
    """Return a function that opens a page; at the end no page has reported an error."""
    contexts, faults = [], []

    def open_page(address, width=1280, **options):
        settings = {"viewport": {"width": width, "height": 900}, "locale": "en-GB", **options}
        context = chromium.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: line.type == "error" and faults.append(line.text))
        page.on("filechooser", lambda _: None)  # catches dialogs from the start: a key is quick
        page.goto(address)
        page.locator("#model").get_by_text("·").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    expected = re.compile("Failed to load resource: (the server responded with a status of 4|net)")
    assert [text for text in faults if not expected.match(text)] == []


def pictures() -> list[Image.Image]:
    return [cloud(seed) for seed in range(12)]


def named_pictures() -> dict[str, bytes]:
    return {f"{seed}.png": png(image) for seed, image in enumerate(pictures())}


def tinted(color: str, seed: int) -> bytes:
    """A picture of one of two kinds that are easily told apart."""
    noise = np.random.default_rng(seed).integers(0, 120, (40, 50, 3))
    noise[..., {"red": 0, "blue": 2}[color]] += 120
    return png(Image.fromarray(noise.astype(np.uint8)))


def percent(text: str) -> float:
    return float(text.rstrip("%")) / 100


def until(check):
    """Wait for what the page shows of itself; its policy forbids Playwright's own waiting."""
    end = time.monotonic() + WAIT / 1000
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def check_fits(page):
    """Nothing is wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- Classify -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES.values(), ids=SIZES)
def test_a_dropped_picture_gets_bars_and_maps(visit, address, model, width, scheme):
    page = visit(address, width, color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 380) == (scheme == "dark")
    check_fits(page)
    name = f"{'cloud' * 30}.png"  # names may be longer than the page is wide
    drop(page, "#look", {name: png(cloud(3))})
    page.locator(".bars li").nth(4).wait_for()
    assert page.locator(".bars .percent").first.bounding_box()["x"] < width
    expected = model(cloud(3), top=5, calibrated=True)
    rows = [row.inner_text().split("\n") for row in page.locator(".bars .bar").all()]
    assert [name for name, _ in rows] == [name for name, _ in expected]
    for (_, share), (_, probability) in zip(rows, expected):
        assert percent(share) == pytest.approx(probability, abs=0.00051)
    widths = [bar.bounding_box()["width"] for bar in page.locator(".bars .track > span").all()]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[4]
    seen = []
    for number in (0, 1):
        page.locator(".bars .bar").nth(number).click()
        page.locator("#map-note").get_by_text(f"“{expected[number][0]}”").wait_for()
        place = page.locator(".photo .map")
        place.evaluate("image => image.decode()")
        seen.append(place.evaluate(PIXELS))
        photo = page.locator(".photo img").first.bounding_box()
        assert place.bounding_box() == photo
    assert seen[0] != seen[1]  # each class has its own map
    page.locator("#strength").fill("30")
    assert place.evaluate("image => image.style.opacity") == "0.3"
    check_fits(page)


def test_a_pasted_picture(visit, address):
    page = visit(address)
    tools.paste(page, "body", {"clip.png": png(cloud(5))})
    page.locator(".bars li").first.wait_for()
    assert page.locator("#detail-name").inner_text() == "clip.png"
    assert "clip.png: " in page.locator("#said").inner_text()


def test_a_photo_of_the_camera(visit, address):
    page = visit(address)
    page.locator("#look-camera").click()
    page.locator("#camera .main:enabled").click()
    page.locator("#camera").get_by_text("1 picture", exact=True).wait_for()
    page.keyboard.press("Escape")
    page.locator(".bars li").first.wait_for()
    assert page.locator("#detail-name").inner_text() == "Photo 1.jpg"
    page.wait_for_function("!document.querySelector('video').srcObject.active")


@pytest.mark.parametrize("width", SIZES.values(), ids=SIZES)
def test_a_folder_is_a_grid_with_filters(visit, address, model, tmp_path, width):
    files = named_pictures()
    folder = tools.write(
        tmp_path / "all",
        {**files, "in/broken.png": b"no picture", "notes.txt": b"text", ".hidden.png": b""},
    )
    page = visit(address, width)
    with page.expect_file_chooser() as chooser:
        page.locator("#look-folder").click()
    chooser.value.set_files(folder)
    tiles = page.locator("#grid > li:not([hidden])")
    page.locator("#shown").get_by_text("13 of 13 pictures").wait_for()
    assert page.locator("#look-note").inner_text() == "1 file is not a picture."
    assert page.locator(".tile.broken").count() == 1
    check_fits(page)

    found = {
        name: (model(image, top=1, calibrated=True)[0], not model(image, unknown="5%"))
        for name, image in zip(files, pictures())
    }
    known = {name: best for name, (best, unknown) in found.items() if not unknown}
    assert 0 < len(known) < 12  # so that each filter has an effect

    def names():
        return tiles.locator("img").evaluate_all("images => images.map((image) => image.alt)")

    def wait_for(count):
        page.locator("#shown").get_by_text(f"{count} of 13 pictures", exact=True).wait_for()

    page.locator("#by-unknown").select_option("unknown")
    wait_for(12 - len(known))
    assert set(names()) == set(files) - set(known)
    page.locator("#by-unknown").select_option("known")
    wait_for(len(known))
    classes = [name for name, _ in known.values()]
    most = max(classes, key=classes.count)
    page.locator("#by-unknown").select_option("")
    page.locator("#by-class").select_option(f"={most}")
    wait_for(classes.count(most))
    assert set(names()) == {name for name, (best, _) in known.items() if best == most}
    page.locator("#by-class").select_option("")
    shares = {name: best[1] for name, (best, _) in found.items()}
    least = round(100 * float(np.median(list(shares.values()))))
    page.locator("#by-confidence").fill(str(least))
    expected = {name for name, share in shares.items() if share >= least / 100}
    wait_for(len(expected))
    assert set(names()) == expected and 0 < len(expected) < 12
    page.locator("#by-confidence").fill("0")
    wait_for(13)
    page.locator("#by-order").select_option("most")
    order = sorted(shares, key=shares.get, reverse=True)
    until(lambda: names()[:12] == order)
    page.locator("#clear").click()
    assert page.locator("#found").is_hidden() and page.locator("#grid > li").count() == 0


def test_work_can_be_stopped(visit, address):
    page = visit(address)
    page.route("**/predict*", lambda route: None)  # the network is very slow
    drop(page, "#look", named_pictures())
    page.locator("#shown").get_by_text(re.compile("^0 of 12")).wait_for()
    page.locator("#stop").click()
    page.locator("#shown").get_by_text("12 of 12 pictures").wait_for()
    assert page.locator(".tile.broken").count() == 12
    assert page.locator("#answer").inner_text() == "stopped"


# --- Teach --------------------------------------------------------------------------------------


def teach_two(page, count=4):
    """Name two classes and give each ``count`` pictures."""
    for number, (name, color) in enumerate((("roses", "red"), ("sea, sky", "blue"))):
        page.locator(".class input").nth(number).fill(name)
        files = {f"{color}{seed}.png": tinted(color, seed) for seed in range(count)}
        drop(page, f".class:nth-child({number + 1})", files)
    page.locator("#learned").get_by_text(f"Learned from {2 * count} pictures").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES.values(), ids=SIZES)
def test_teach_and_save(visit, address, tmp_path, width, scheme):
    page = visit(f"{address}#teach", width, color_scheme=scheme)
    check_fits(page)
    assert page.locator("#save").is_disabled()
    teach_two(page)
    assert page.locator("#accuracy").inner_text() == "100.0%"
    assert "8 of 8 pictures are right" in page.locator("#meaning").inner_text()
    assert "4 of 4 right" in page.locator(".class").first.inner_text()
    queries = {"one.png": tinted("blue", 50), "two.png": tinted("red", 51)}
    drop(page, "#try-drop", queries)
    page.locator("#tried > li:nth-child(2) .bars").wait_for()
    check_fits(page)
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "model.npz"
    download.value.save_as(tmp_path / "model.npz")
    page.locator("#saved").get_by_text("bit_paddle predict").wait_for()
    taught = bit_paddle.load(tmp_path / "model.npz")
    assert taught.classes == ["roses", "sea, sky"]
    tools.write(tmp_path, queries)
    for row in page.locator("#tried > li").all():
        name = row.locator("img").get_attribute("alt")
        told = [bar.inner_text().split("\n") for bar in row.locator(".bar").all()]
        expected = taught(tmp_path / name)
        assert [label for label, _ in told] == [label for label, _ in expected]
        for (_, share), (_, probability) in zip(told, expected):
            assert percent(share) == pytest.approx(probability, abs=0.00051)
        assert expected[0][0] == {"one.png": "sea, sky", "two.png": "roses"}[name]


def test_mistakes_are_marked_and_removed(visit, address):
    page = visit(f"{address}#teach")
    teach_two(page)
    drop(page, ".class:nth-child(1)", {"wrong.png": tinted("blue", 77)})
    page.locator("#learned").get_by_text("Learned from 9 pictures").wait_for()
    marked = page.locator(".thumbs .wrong")
    assert marked.count() == 1 and marked.inner_text().startswith("Taken for sea, sky")
    assert page.locator("#accuracy").inner_text() == "88.9%"
    marked.get_by_role("button", name="Remove wrong.png").click()
    page.locator("#accuracy").get_by_text("100.0%").wait_for()
    page.get_by_role("button", name="Remove the class sea, sky").click()
    page.locator("#meaning").get_by_text("Give pictures to two classes").wait_for()
    assert page.locator("#save").is_disabled()


def test_a_folder_of_folders_gives_the_classes(visit, address, tmp_path):
    files = {f"{c}/{k}.png": tinted(c, k) for c in ("red", "blue") for k in range(2)}
    page = visit(f"{address}#teach")
    with page.expect_file_chooser() as chooser:
        page.locator("#teach-folder").click()
    chooser.value.set_files(tools.write(tmp_path / "kinds", files))
    page.locator("#learned").get_by_text("Learned from 4 pictures").wait_for()
    names = [field.input_value() for field in page.locator(".class input").all()]
    assert names == ["blue", "red"]


def test_what_is_not_taught_is_told(visit, address):
    page = visit(f"{address}#teach")
    teach_two(page, 1)
    assert "second picture" in page.locator("#meaning").inner_text()
    page.locator("#add-class").click()
    page.keyboard.type("rest")
    page.locator("#left-out").get_by_text("no pictures yet: rest").wait_for()
    drop(page, ".class:nth-child(3)", {"broken.png": b"no picture"})
    page.locator("#teach-fault").get_by_text("broken.png: ").wait_for()
    drop(page, ".class:nth-child(3)", {"red.png": tinted("red", 3)})
    page.locator("#learned").get_by_text("Learned from 3 pictures").wait_for()
    page.locator(".class input").nth(2).fill("roses")
    page.locator("#teach-fault").get_by_text("Two classes have the name “roses”").wait_for()
    assert page.locator("#save").is_disabled()


def test_a_pasted_picture_goes_to_the_class_with_the_focus(visit, address):
    page = visit(f"{address}#teach")
    tools.paste(page, ".class:nth-child(2) input", {"clip.png": tinted("red", 0)})
    page.locator(".class:nth-child(2)").get_by_text("1 picture", exact=True).wait_for()
    assert page.locator(".class:nth-child(1) .thumbs li").count() == 0


# --- Keys, words, the key, and errors -----------------------------------------------------------


def focused(page) -> list[str]:
    return page.evaluate("(({id, className, ariaLabel}) => [id, className, ariaLabel])"
                         "(document.activeElement)")  # fmt: skip


def tab_to(page, name):
    for _ in range(60):
        page.keyboard.press("Tab")
        if name in focused(page):
            break
    assert name in focused(page)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus can be seen


def test_all_by_keyboard(visit, address, tmp_path):
    folder = tools.write(tmp_path / "all", named_pictures())
    page = visit(address)
    tab_to(page, "look-folder")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(folder)
    page.locator("#shown").get_by_text("12 of 12 pictures").wait_for()
    tab_to(page, "tile")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#detail-name").inner_text() == "2.png"
    page.keyboard.press("End")
    assert page.locator("#detail-name").inner_text() == "11.png"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert page.locator("#detail-name").inner_text() not in ("0.png", "1.png", "11.png")
    page.keyboard.press("Shift+Tab")
    tab_to(page, "tile")
    page.locator("#map-note").get_by_text("Bright places").wait_for()
    tab_to(page, "bar")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator(".bar").nth(1).get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    tab_to(page, "strength")

    page.locator("nav a").nth(1).focus()
    page.keyboard.press("Enter")
    page.locator("nav a[aria-current][href='#teach']").wait_for()
    for number, color in enumerate(("red", "blue")):
        page.locator(".class input").nth(number).focus()
        page.keyboard.press("Control+A")
        page.keyboard.type(color)
        tab_to(page, f"Add pictures to {color}")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(
            [
                {"name": f"{k}.png", "mimeType": "image/png", "buffer": tinted(color, k)}
                for k in range(2)
            ]
        )
    page.locator("#learned").get_by_text("Learned from 4 pictures").wait_for()
    tab_to(page, "save")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_every_control_has_a_name(visit, address):
    page = visit(address)
    drop(page, "#look", named_pictures())
    page.locator("#shown").get_by_text("12 of 12").wait_for()
    for view in ("look", "teach"):
        page.goto(f"{address}#{view}")
        if view == "teach":
            teach_two(page)
            drop(page, "#try-drop", {"one.png": tinted("blue", 50)})
            page.locator("#tried .bars").wait_for()
        text = page.locator("body").aria_snapshot()
        controls = re.findall(
            r"- (?:button|link|combobox|slider|textbox|img|progressbar)\b.*", text
        )
        assert len(controls) > 15
        assert [line for line in controls if '"' not in line] == []


def test_chinese(visit, address):
    page = visit(address, 400, locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    assert page.locator("#look-files").inner_text() == "选择图片"
    drop(page, "#look", {"云.png": png(cloud(3))})
    page.locator("#map-note").get_by_text("明亮的位置").wait_for()
    check_fits(page)
    page.locator("#language").click()
    assert page.locator("#look-files").inner_text() == "Choose pictures"
    assert page.locator("#map-note").inner_text().startswith("Bright places")
    page.reload()
    assert page.locator("#look-files").inner_text() == "Choose pictures"  # the choice is kept


def test_both_languages_have_all_words(visit, address):
    page = visit(address)
    kinds = page.evaluate(
        """import("/page/words.js").then(({words}) => Object.values(words).map((all) =>
            Object.fromEntries(Object.entries(all).map(([key, word]) => [key, word.length *
                (typeof word === "function")]))))"""
    )
    assert kinds[0] == kinds[1]
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(PAGE.glob("*.*")))
    used = set(re.findall(r'data-(?:word|label)="(\w+)"', text))
    used |= set(re.findall(r'(?:say|tell|label)\((?:[^()]|\([^()]*\))*?"(\w+)"', text))
    assert used <= set(kinds[0])
    others = "".join(
        path.read_text(encoding="utf-8") for path in PAGE.glob("*.*") if path.name != "words.js"
    )
    unused = {key for key in kinds[0] if not re.search(rf'"{key}"|\b{key}:', others)}
    assert unused == set()


def test_the_key_is_asked_for(visit, chromium, model):
    with running(model=model.file.path, BIT_PADDLE_API_KEY=KEY) as server:
        page = chromium.new_page()
        page.set_default_timeout(WAIT)
        page.goto(server.address)
        field = page.get_by_label("Key", exact=True)
        field.fill("wrong")
        page.keyboard.press("Enter")
        page.locator("#key").get_by_text("refused this key").wait_for()
        field.fill(KEY)
        page.keyboard.press("Enter")
        drop(page, "#look", {"cloud.png": png(cloud(3))})
        page.locator(".bars li").first.wait_for()
        page.reload()  # the tab keeps the key
        page.locator("#model").get_by_text("·").first.wait_for()
        assert page.locator("#key").is_hidden()
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        page.close()


def test_errors_of_the_server_are_told(visit, model):
    with running("--image_mb", 1, model=model.file.path) as server:
        page = visit(server.address)
        drop(page, "#look", {"large.png": bytes(1_100_000)})
        page.locator("#answer .fault").wait_for()
        assert "more than 1 MB" in page.locator("#answer").inner_text()
        told = page.evaluate(
            """import("/page/server.js").then(({sendJson}) =>
                sendJson("teach", "x".repeat(33e6))).catch((error) => error.message)"""
        )
        assert "more than the server takes at once (32 MB)" in told
        drop(page, "#look", {"broken.png": b"no picture"})
        page.locator("#answer .fault").get_by_text(re.compile("image|read")).wait_for()
        server.stop()
        drop(page, "#look", {"cloud.png": png(cloud(3))})
        page.locator("#answer").get_by_text("The server does not answer").wait_for()


def test_a_busy_server_is_asked_again(visit, address):
    page = visit(address)
    answers = [429, 429]

    def answer(route):
        if answers:
            body = json.dumps({"error": "the queue is full"})
            route.fulfill(status=answers.pop(), headers={"Retry-After": "0"}, body=body)
        else:
            route.fallback()

    page.route("**/predict*", answer)
    drop(page, "#look", {"cloud.png": png(cloud(3))})
    page.locator(".bars li").first.wait_for()
    assert answers == []
