"""Commands on consoles that cannot show the names of classes and files, as users start them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import commands
from helpers.pictures import fill

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
PLAIN = {"BIT_PADDLE_NATIVE": "0"}
DOG = "狗"


def run(command, *arguments, **environment):
    """Return (exit status, bytes of stdout, bytes of stderr)."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bit_paddle", command, *map(str, arguments)],
        cwd=ROOT, capture_output=True, timeout=120,
        env=commands.environment_with(**PLAIN, **environment),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    fill(folder, {f"{part}/{name}": 3 for part in ("train", "val") for name in ("café", DOG, "🐕")})
    return folder


@pytest.fixture(scope="module")
def trained(pictures):
    """A whole run on an ASCII console: its folder and what it printed."""
    logs = pictures.parent / f"{pictures.name}-{DOG}"
    status, out, err = run(
        "train", *commands.TINY, "--dataset", "folder", "--datadir", pictures, "--steps", 2,
        "--batch", 4, "--logdir", logs, "--name", "dogs", **ASCII,
    )  # fmt: skip
    assert status == 0, err
    return logs / "dogs", out


def test_a_run_ends_and_its_log_is_utf_8(trained):
    folder, out = trained
    assert rb"3 classes (caf\u00e9, \u72d7, \ud83d\udc15)" in out and out.isascii()
    assert f"3 classes (café, {DOG}, 🐕)" in (folder / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "encoding, shown",
    [
        ("ascii", rb"(caf\u00e9, \u72d7, \ud83d\udc15)"),
        ("latin-1", b"(caf\xe9, \\u72d7, \\ud83d\\udc15)"),
        ("cp1252", b"(caf\xe9, \\u72d7, \\ud83d\\udc15)"),
        ("gbk", "(café, 狗, ".encode("gbk") + rb"\ud83d\udc15)"),
        ("utf-8", "(café, 狗, 🐕)".encode()),
    ],
)
def test_the_plan_is_shown_in_each_encoding(encoding, shown, pictures):
    status, out, err = run(
        "train", *commands.TINY, "--datadir", pictures, "--dataset", "folder", "--dry-run",
        PYTHONIOENCODING=encoding,
    )  # fmt: skip
    assert status == 0 and b"3 classes " + shown in out, err


def test_printed_json_stays_json(trained, pictures):
    image = next((pictures / "val" / DOG).iterdir())
    status, out, _ = run("predict", image, "--model", trained[0], "--format", "json", **ASCII)
    assert status == 0 and out.isascii()
    [found] = json.loads(out)  # the escapes are those of JSON
    assert found["image"] == str(image)
    assert {row["class"] for row in found["classes"]} == {"café", DOG, "🐕"}


def test_measuring_and_looking(trained, pictures, tmp_path):
    status, out, err = run("evaluate", "--model", trained[0], "--dataset", pictures, **ASCII)
    assert status == 0 and b"9 images" in out, err
    status, out, err = run(
        "audit", "--dataset", "folder", "--datadir", pictures, "--output", tmp_path / DOG, **ASCII
    )
    assert status == 0 and rb"\u72d7" in out, err


def test_mistakes_keep_their_exit_status(pictures):
    status, _, err = run("predict", f"{DOG}.jpg", "--model", "BiT-Mini", **ASCII)
    assert (status, err) == (2, b"error: \\u72d7.jpg: no such image or folder\n")
    status, _, err = run("train", f"--{DOG}", **ASCII)
    assert status == 2 and rb"--\u72d7" in err


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes only on Linux")
def test_a_name_that_is_in_no_encoding(tmp_path):
    paths = fill(tmp_path, {f"{part}/{name}": 2 for part in ("train", "val") for name in "ab"})
    for part in ("train", "val"):
        os.rename(tmp_path / part / "b", os.fsencode(tmp_path / part) + b"/\xff")
    assert len(paths) == 8
    for encoding in ("utf-8", "gbk"):
        status, out, err = run(
            "show", "--dataset", "folder", "--datadir", tmp_path, "--dry-run",
            PYTHONIOENCODING=encoding,
        )  # fmt: skip
        assert status == 0 and rb"2 classes (a, \udcff)" in out, err


@pytest.mark.skipif(sys.platform != "linux", reason="the locale decides only on Linux")
def test_a_list_remembered_in_another_locale(pictures, tmp_path):
    arguments = ("train", *commands.TINY, "--dataset", "folder", "--datadir", pictures, "--dry-run")
    home = {"BIT_PADDLE_HOME": str(tmp_path)}
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment in ({"PYTHONUTF8": "1"}, bare, {"PYTHONUTF8": "1"}):
        status, out, err = run(*arguments, **environment, **home)
        assert status == 0 and b"9 training images" in out, err


def test_a_python_call_leaves_the_streams_of_its_program(trained, pictures):
    """The finished run is asked for again: the call prints its folder, whose name is not ASCII."""
    folder, _ = trained
    code = f"""
import sys, bit_paddle
run = bit_paddle.fine_tune(
    "R14x0.5", {str(pictures)!r}, from_scratch=True, precrop=36, crop=32, batch=4, steps=2,
    logdir={str(folder.parent)!r}, name="dogs",
)
print(run.complete, sys.stdout.errors)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, cwd=ROOT, timeout=120,
        env=commands.environment_with(**PLAIN, PYTHONIOENCODING="ascii"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rb"-\u72d7/dogs" in done.stdout and done.stdout.endswith(b"True strict\n")


def test_every_text_file_names_its_encoding():
    """Without it, Python takes the encoding of the machine."""
    calls = re.compile(r"(?<![\w.])open\(|\.(?:read|write)_text\(|text=True")
    unnamed = []
    for path in sorted((Path(ROOT) / "bit_paddle").rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            call = " ".join(lines[number : number + 3])
            named = "encoding" in call or re.search(r'"(r\+)?[rwa]b"|files\.write_text', call)
            if calls.search(line) and not line.lstrip().startswith("def ") and not named:
                unnamed.append(f"{path}:{number + 1}")
    assert not unnamed
