"""The pages agree with each other, with the files and with the commands; their code runs.

A block after ``<!-- not run: the reason -->`` is not run; its names and flags are checked all the
same. `cheap` makes a command of a page one that needs no network and takes seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT
from helpers.losses import check
from helpers.squares import make_squares
from PIL import Image

from bit_paddle import __version__
from bit_paddle.__main__ import COMMANDS
from bit_paddle.config import detection_cli
from bit_paddle.errors import install_hint
from bit_paddle.inference.formats import FORMATS
from bit_paddle.models import losses

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "configs/README.md")
}
ENGLISH, CHINESE = PAGES["README.md"], PAGES["README.zh-CN.md"]
GUIDES = sorted(name for name in PAGES if name.startswith("docs/") or name == "CONTRIBUTING.md")
CURRENT = sorted(set(PAGES) - {"CHANGELOG.md"})  # which names what is no longer there
FENCE = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\w+)\n(.*?)^```\n", re.M | re.S)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
OFFLINE = {"BIT_PADDLE_BASE_URL": "http://127.0.0.1:9", "NO_PROXY": "*"}
RUN = """\
import importlib, json, sys
from bit_paddle import errors
for name, *words in json.loads(sys.argv[1]):
    print("$", name, *words, flush=True)
    command = importlib.import_module(f"bit_paddle.{name}").main
    if errors.run_command(command, words):
        sys.exit(f"failed: {name} {words}")
"""
SHELLS = ("source", "pip", "eval", "visualdl")


class Block(NamedTuple):
    """A block of code, and why it is not run (if so)."""

    reason: str
    language: str
    code: str


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(PAGES[page])]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def sections(text: str) -> list[str]:
    return re.split(r"^(?=#+ )", prose(text), flags=re.M)[1:]


def words_of(code: str) -> list[list[str]]:
    """Return the commands of a bash block (or of a piece of inline code), comments left out."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """Return (a command of the package or a script, its flags and values); ("", []) for others."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # AMP=bf16
        words = words[1:]
    if words[:2] == ["python", "-m"]:
        module, _, name = words[2].partition(".")
        return (name, words[3:]) if module == "bit_paddle" else ("", [])
    if words[:1] == ["bit_paddle"] and len(words) > 1 and words[1].isidentifier():
        return words[1], words[2:]
    if words[:1] == ["python"]:
        words = words[1:]
    if words and (words[0].startswith((".ci/", "scripts/")) or words[0] == "command.py"):
        return words[0], words[1:]
    return "", []


def spans(page: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(PAGES[page]))


def commands(page: str) -> list[tuple[str, list[str]]]:
    """Return every command that a page names, in its bash blocks and in inline code."""
    code = [block.code for block in blocks(page) if block.language == "bash"]
    begins = r"[A-Z_]+=|python |bit_paddle |scripts/\S+\.(?:py|sh)"
    code += [span for span in spans(page) if re.match(begins, span)]
    found = (command_of(words) for text in code for words in words_of(text))
    return [(name, words) for name, words in found if name]


@lru_cache
def flags_of(command: str) -> frozenset[str]:
    """Return the flags of a command, from its --help, or those that a script's text names."""
    if command not in COMMANDS and command != "download":
        name = "bit_paddle/download.py" if command == "command.py" else command
        text = (ROOT / name).read_text()
        if command.startswith("scripts/benchmarks/"):
            text += (ROOT / "scripts/benchmarks/contenders.py").read_text()
    else:
        inner = [[name] for name in detection_cli.COMMANDS] if command == "detect" else []
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            for words in ([], *inner):
                with contextlib.suppress(SystemExit):
                    importlib.import_module(f"bit_paddle.{command}").main([*words, "--help"])
        text = printed.getvalue()
    found = frozenset(re.findall(r"--[a-z][a-z_-]*", text)) | {"--help"}
    return found | flags_of("train") if command in ("plan", "show") else found


def without_values(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("--")]


# --- What a page is like ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, other",
    [(ENGLISH, "README.zh-CN.md"), (CHINESE, "README.md")],
    ids=["English", "Chinese"],
)
def test_readme_is_short(text, other):
    lines = text.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []
    assert f"]({other})" in lines[2]


@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_begins_with_what_its_reader_can_do(page):
    assert re.match(r"# .+\n\nAfter this page you can ", PAGES[page])


@pytest.mark.parametrize("page", sorted(PAGES))
def test_inline_code_is_not_broken_over_lines(page):
    assert [line for line in prose(PAGES[page]).splitlines() if line.count("`") % 2] == []


@pytest.mark.parametrize("page", sorted(PAGES))
def test_lines_of_prose_fit(page):
    long = [
        line
        for line in prose(PAGES[page]).splitlines()
        if len(LINK.sub("", line)) > 100 and not line.startswith(("|", "    "))
    ]
    assert long == []


def test_the_readmes_are_in_step():
    """Sections, code, figures, links and tables are the same; comments in code may be Chinese."""
    ours, theirs = sections(ENGLISH), sections(CHINESE)
    assert [text.split(" ")[0] for text in ours] == [text.split(" ")[0] for text in theirs]
    plain = [
        [(block.language, re.sub(r" +#.*", "", block.code)) for block in blocks(page)]
        for page in ("README.md", "README.zh-CN.md")
    ]
    assert plain[0] == plain[1]
    for one, other in zip(ours, theirs):
        title = one.splitlines()[0]
        for text in (one, other):
            assert text.count("\n|") == one.count("\n|"), title
        pictures, links, numbers, code = zip(*map(facts, (one, other)))
        assert pictures[0] == pictures[1], title
        assert links[0] == links[1], title
        assert numbers[0] == numbers[1], title
        assert code[0] == code[1], title


def facts(section: str) -> tuple[list[str], Counter, Counter, Counter]:
    """Return the pictures, links, numbers and inline code of a section of a README."""
    links = [target for picture, target in LINK.findall(section) if not picture]
    plain = re.sub(r"\]\([^)]+\)", "]", section)
    return (
        [target for picture, target in LINK.findall(section) if picture],
        Counter(
            link.replace(".zh-CN.ipynb", ".ipynb")  # each README leads to its own language
            for link in links
            if not link.startswith(("#", "README"))
        ),
        Counter(re.findall(r"\d+(?:[.,]\d+)*", plain)),
        Counter(re.findall(r"`[^`\n]+`", plain)),
    )


# --- What a page names is there -----------------------------------------------------------------


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    for _, target in LINK.findall(prose(PAGES[page])):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", CURRENT)
def test_files_are_there(page):
    pattern = r"(?<![\w/.-])(?:scripts|bit_paddle|configs|tests|docs|\.ci)/[\w./*-]*[\w*]"
    names = set(re.findall(pattern, PAGES[page])) - {"bit_paddle/NAME.py"}
    assert [name for name in sorted(names) if not list(ROOT.glob(name))] == []


@pytest.mark.parametrize("page", CURRENT)
def test_commands_and_flags_are_there(page):
    for name, words in commands(page):
        if name.isidentifier():
            assert name in COMMANDS or name == "download", name
        if name != "scripts/test.sh":  # whose arguments are pytest's
            assert set(without_values(words)) <= flags_of(name), (name, words)
    every = frozenset().union(*(flags_of(name) for name in [*COMMANDS, "download"]))
    for span in spans(page):
        if span.startswith("--"):
            assert set(without_values(span.split())) <= every, span
    assert re.findall(r"python -m bit_paddle\.data|bit_paddle\.native\b", PAGES[page]) == []


# --- The commands -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the pages speak of: my_images, scenes, photos, cat.jpg, configs."""
    root = tmp_path_factory.mktemp("pages")
    random = np.random.default_rng(0)
    names = [f"my_images/{part}/{kind}/{k}" for part in ("train", "val") for kind in ("cat", "dog")
             for k in range(4)]  # fmt: skip
    for name in (*names, "photos/cat", "cat"):
        path = root / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 160, (60, 50, 3)).astype(np.uint8)
        pixels[..., "dog" in name] += 90
        Image.fromarray(pixels).save(path)
    lines = [f"{name.removeprefix('my_images/')}.jpg,{'dog;' * ('dog' in name)}{'even' * (k % 2)}"
             for k, name in enumerate(names)]  # fmt: skip
    (root / "my_images/labels.csv").write_text("path,labels\n" + "\n".join(lines) + "\n")
    scenes = make_squares(root / "scenes")
    for part in ("train", "val"):
        shutil.copy(scenes / "boxes.json", scenes / f"{part}.json")
    for name in ("configs", "scripts", "hubconf.py", "bit_paddle"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.fixture(scope="module")
def runs(folder) -> Path:
    """`folder`, in which README's two runs have been made."""
    given = [
        words for name, words in commands("README.md") if name == "train" and "--name" in words
    ]
    run_commands(folder, [("train", words) for words in given])
    return folder


def run(folder: Path, *words: str, package: Path = ROOT) -> None:
    """Run Python in ``folder``, with the bit_paddle of the folder ``package``."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package), "BIT_PADDLE_NATIVE": "0", **OFFLINE},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, (
        f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )


def run_commands(folder: Path, given: list[tuple[str, list[str]]]) -> None:
    """Run what is `cheap` in place of ``given`` commands; one process loads Paddle once."""
    run(folder, "-c", RUN, json.dumps([[name, *cheap(name, words)] for name, words in given]))


def cheap(name: str, words: list[str]) -> list[str]:
    """Return what is run in place of a page's command: no network, small networks, few steps."""
    if name in ("plan", "catalog", "compile"):
        return words
    if name == "download":
        return [*(word for word in words if word != "--verify"), "--dry-run"]
    names = {"cifar10": "digits", "https://example.org/cat.jpg": "cat.jpg"}
    words = ["BiT-Mini" if word.startswith("BiT-M-") else names.get(word, word) for word in words]
    if name == "pretrain":
        return [*words, "--dataset", "digits", "--dry-run"]
    if name == "detect" and words[0] == "train":
        words += ["--batch", "2", "--steps", "2", "--side", "128", "--channels", "32"]
        return words if "--name" in words else [*words, "--dry-run"]
    if name == "train":
        if "--config" in words:
            words += ["--model", "BiT-Mini", "--dataset", "digits"]
        words += ["--batch", "8", "--steps", "2", "--precrop", "40", "--crop", "32"]
        return words if "--name" in words else [*words, "--dry-run"]
    return words


@pytest.mark.parametrize("page", CURRENT)
def test_the_settings_of_training_commands_fit_together(page, folder, monkeypatch, capsys):
    """By `plan`, which takes them without data, checkpoint and Paddle."""
    from bit_paddle import plan

    monkeypatch.chdir(folder)
    for block in blocks(page):
        if block.language != "bash" or block.reason:
            continue
        for name, words in map(command_of, words_of(block.code)):
            if name in ("train", "pretrain"):
                rest = [word for word in words if word != "--dry-run"]
                assert plan.main(rest) == 0, words


def executed(page: str) -> list[tuple[str, list[str]]]:
    """Return the commands of the bash blocks of a page that are run."""
    found = []
    for block in blocks(page):
        if block.language == "bash" and not block.reason:
            for words in words_of(block.code):
                name, rest = command_of(words)
                assert name or words[0] in SHELLS, words
                if name.isidentifier() or "--help" in rest:
                    found.append((name, rest))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in CURRENT if executed(page)])
def test_commands_run(page, runs):
    if page == "README.zh-CN.md":  # the same commands, as test_the_readmes_are_in_step knows
        return
    prefix = page.replace("/", "-")  # an export does not overwrite that of another page
    own = {word: f"{prefix}-{word}" for name, words in executed(page) for word in outputs(words)}
    once = executed("README.md") if page != "README.md" else []
    given = [
        (name, [own.get(word, word) for word in words])
        for name, words in executed(page)
        if (name, words) not in once or outputs(words)
    ]
    run_commands(runs, [one for one in given if one[0].isidentifier()])
    for name, words in given:
        if not name.isidentifier():
            run(runs, name, *words)


def outputs(words: list[str]) -> list[str]:
    return [words[k + 1] for k, word in enumerate(words) if word == "--output"]


PYTHON = [
    page for page in CURRENT if any(block.language == "python" for block in blocks(page))
]  # README.zh-CN.md has the blocks of README.md


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PYTHON if page not in ("README.zh-CN.md", "CONTRIBUTING.md")]
)
def test_python_runs(page, folder, tmp_path):
    """All blocks of a page, in their order, in one process."""
    code = "\n".join(
        block.code for block in blocks(page) if block.language == "python" and not block.reason
    )
    for name in ("my_images", "scenes", "cat.jpg"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "page.py").write_text(code.replace("steps=60", "steps=2"), encoding="utf-8")
    run(tmp_path, "page.py")


# --- The examples of CONTRIBUTING.md ------------------------------------------------------------


def example(text: str) -> str:
    """Return the one Python block of CONTRIBUTING.md that holds ``text``."""
    page = blocks("CONTRIBUTING.md")
    (found,) = (block.code for block in page if block.language == "python" and text in block.code)
    return found


def test_the_example_of_a_loss_is_its_twin_in_numpy():
    names = dict(vars(losses))  # it has no imports: it stands in this module
    exec("from __future__ import annotations\n" + example("class Smoothed"), names)
    loss = names["Smoothed"]()
    for scale in (1.0, 1000.0):
        check(loss, scale)
    by_hand = 0.9 * 1000 + 0.1 * (1000 - 500)  # the label's class, and the mean of both classes
    assert loss.per_image(np.array([[1000.0, 0.0]]), np.array([1]))[0] == by_hand


@pytest.mark.slow
def test_the_examples_work_in_the_package(tmp_path):
    """As a reader of the page writes them: into a copy of the package."""
    package = tmp_path / "bit_paddle"
    shutil.copytree(ROOT / "bit_paddle", package, ignore=shutil.ignore_patterns("__pycache__"))
    readers, registry = package / "data/readers", package / "data/readers/registry.py"
    (readers / "squares.py").write_text(example("def open_squares"))
    insert(registry, "from bit_paddle.data.spec import", example("readers.squares import"))
    insert(registry, '    "oxford_flowers102"', example('"squares": Reader('))
    path = package / "models/losses.py"
    line = next(line for line in path.read_text().splitlines() if line.startswith("LOSSES"))
    insert(path, line, example("class Smoothed") + "\n\n" + example("LOSSES: dict"))
    path.write_text(path.read_text().replace(line + "\n", ""))
    words = ["--model", "BiT-Mini", "--dataset", "squares", "--loss", "smoothed"]
    words += ["--steps", "2", "--batch", "8", "--precrop", "40", "--crop", "32"]
    words += ["--name", "squares"]
    given = [["plan", *words], ["train", *words]]
    given += [["evaluate", "--model", "bit_logs/squares", "--dataset", "squares"]]
    run(tmp_path, "-c", RUN, json.dumps(given), package=tmp_path)
    assert "smoothed" in (tmp_path / "bit_logs/squares/config.yaml").read_text()


def insert(path: Path, before: str, text: str) -> None:
    """Insert ``text`` before the one place where ``before`` stands in a file."""
    content = path.read_text()
    assert content.count(before) == 1
    path.write_text(content.replace(before, text + before))


# --- The packages to install --------------------------------------------------------------------


def test_the_version_is_the_same_everywhere():
    assert re.search(r"^## ([\d.]+)", PAGES["CHANGELOG.md"], re.M)[1] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_page_about_exports_installs_what_their_errors_name():
    extras = {found.extra for found in FORMATS.values()} - {""}
    for extra in extras:
        command = install_hint(extra).split(" in the folder")[0]
        assert f"`{command}`" in PAGES["docs/models-and-weights.md"]


def packages() -> list[tuple[str, str, str]]:
    """Return (name, ">=" or "==" or "", version) of every package in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = text[text.index("\ndependencies = [") : text.index("[project.scripts]")]
    return re.findall(r'"([A-Za-z][\w.-]*)(>=|==|)([\d.]*)[^"]*"', lists)


def test_every_package_has_a_lowest_version():
    assert len(packages()) > 50
    assert [name for name, bound, version in packages() if not bound or not version] == []


def same(name):
    """Return the name of a package in the one form that all its spellings have."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.skipif("LOWEST" not in os.environ, reason="for LOWEST=1 scripts/test.sh")
def test_the_lowest_versions_are_installed():
    """Otherwise a bound is lower than what is tested, because another package needs more."""
    absent = {"paddlepaddle-gpu", "torch", "transformers"}  # too large for a test
    installed = {same(one.metadata["Name"]): one.version for one in metadata.distributions()}
    for name, bound, lowest in packages():
        if bound == ">=" and name not in absent and not name.startswith("types-"):
            assert f"{installed[same(name)]}.".startswith(f"{lowest}."), name
