"""The operators that come with the package: which library is chosen, and what happens to a bad one.

The libraries themselves are made by scripts/build_operators.py.
"""

import ctypes
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import paddle
import pytest
from conftest import ROOT

from bit_paddle.models.native import build, compiler, library, prebuilt
from bit_paddle.models.native.library import Unavailable
from bit_paddle.system import environment

FACTS = {"onednn": "3.6.2", "bf16": True}
OLD = ["sse4_2", "avx", "popcnt"]
HASWELL = [*OLD, "avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe", "xsave"]
KNIGHTS_LANDING = [*HASWELL, "avx512f", "avx512cd", "avx512er", "avx512pf"]
SKYLAKE = [*HASWELL, "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder of two libraries (rubbish) of the present sources, for Paddle 3.3.1."""
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    contents = {}
    for level in prebuilt.LEVELS:
        path = tmp_path / f"3.3.1-{level}.so"
        path.write_text(level)
        contents[path.name] = {
            "paddle": "3.3.1",
            "level": level,
            "sources": compiler.sources_hash(),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    (tmp_path / prebuilt.CONTENTS).write_text(json.dumps(contents))
    return tmp_path


# --- The choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, level",
    [(HASWELL, "x86-64-v3"), (KNIGHTS_LANDING, "x86-64-v3"), (SKYLAKE, "x86-64-v4")],
)
def test_the_best_library_of_the_processor(flags, level, folder):
    path, found = prebuilt.find("3.3.1", flags)
    assert found == level and path == folder / f"3.3.1-{level}.so"


@pytest.mark.parametrize("missing", ["avx2", "fma", "movbe"])
def test_no_library_for_an_old_processor(missing, folder):
    with pytest.raises(Unavailable, match="without AVX2") as raised:
        prebuilt.find("3.3.1", set(SKYLAKE) - {missing})
    assert raised.value.expected


def test_no_library_for_another_paddle(folder):
    with pytest.raises(Unavailable, match=re.escape("for Paddle 3.2.0")) as raised:
        prebuilt.find("3.2.0", SKYLAKE)
    assert raised.value.expected


def test_a_library_of_other_sources_is_not_used(folder, monkeypatch):
    monkeypatch.setattr(compiler, "sources_hash", lambda: "other")
    with pytest.raises(Unavailable, match="present sources") as raised:
        prebuilt.find("3.3.1", SKYLAKE)
    assert raised.value.expected


def test_the_hash_covers_sources_and_flags(tmp_path, monkeypatch):
    hashes = {compiler.sources_hash()}
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-O1"))
    hashes.add(compiler.sources_hash())
    (tmp_path / "operators.cc").write_text("")
    monkeypatch.setattr(compiler, "SOURCES", [tmp_path / "operators.cc"])
    hashes.add(compiler.sources_hash())
    assert len(hashes) == 3


@pytest.mark.parametrize("damage", ["cut off", "missing"])
def test_a_damaged_library_is_reported(damage, folder):
    path = folder / "3.3.1-x86-64-v4.so"
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut off" else path.unlink()
    with pytest.raises(Unavailable, match=re.escape(str(path))) as raised:
        prebuilt.find("3.3.1", SKYLAKE)
    assert not raised.value.expected


def test_damaged_contents_are_reported(folder):
    (folder / prebuilt.CONTENTS).write_text("{")
    with pytest.raises(Unavailable, match=re.escape(prebuilt.CONTENTS)) as raised:
        prebuilt.find("3.3.1", SKYLAKE)
    assert not raised.value.expected


# --- The check ----------------------------------------------------------------------------------


def crash(path):
    ctypes.string_at(0)


def end_by(number):
    def end(path):
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    return end


def fail(path):
    print("details")
    raise RuntimeError("output has a relative error of 1")


@pytest.mark.parametrize(
    "examine, reason",
    [
        (crash, "a crash with"),
        (end_by(signal.SIGILL), "a crash with signal 4"),
        (fail, "output has a relative error of 1"),
        (lambda path: time.sleep(60), "no result within"),
    ],
)
def test_a_bad_library_ends_only_its_own_process(examine, reason, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(library, "examine", examine)
    monkeypatch.setattr(prebuilt, "SECONDS", 60 if reason != "no result within" else 0.1)
    children, fork = [], os.fork

    def recorded():
        children.append(fork())
        return children[-1]

    monkeypatch.setattr(os, "fork", recorded)
    with pytest.raises(Unavailable, match=reason) as raised:
        prebuilt.check(tmp_path / "operators.so")
    assert not raised.value.expected
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ChildProcessError):
        os.waitpid(children[0], os.WNOHANG)


@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.99])
def test_a_library_cut_off_is_reported(part, tmp_path):
    """As far as its contents say that this is right: the hash cannot tell."""
    whole = max(map(Path.read_bytes, prebuilt.FOLDER.glob("*.so")), key=len, default=b"rubbish")
    (tmp_path / "operators.so").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(Unavailable, match="do not work here: "):
        prebuilt.check(tmp_path / "operators.so")


@pytest.fixture
def examined(folder, tmp_path, monkeypatch):
    """Let all parts of `prebuilt.load` succeed; return the list of checks."""
    calls = []
    monkeypatch.setattr(paddle, "__version__", "3.3.1")
    monkeypatch.setattr(environment, "processor", lambda: {"flags": " ".join(HASWELL)})
    monkeypatch.setattr(prebuilt, "check", lambda path: calls.append(path) or FACTS)
    monkeypatch.setattr(library, "load", lambda path: path.name)
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "home"))
    return calls


def test_a_library_is_checked_once(examined, folder, monkeypatch):
    expected = ("3.3.1-x86-64-v3.so", {**FACTS, "made": "prebuilt for AVX2"})
    assert prebuilt.load() == prebuilt.load() == expected
    assert examined == [folder / "3.3.1-x86-64-v3.so"]
    monkeypatch.setattr(environment, "processor", lambda: {"flags": " ".join(SKYLAKE)})
    assert prebuilt.load()[0] == "3.3.1-x86-64-v4.so"  # another machine with the same home
    assert len(examined) == 2


def test_a_cache_that_cannot_be_written_costs_only_the_check(examined, tmp_path):
    (tmp_path / "home").write_text("a file is in the way")
    assert prebuilt.load() == prebuilt.load()
    assert len(examined) == 2


def test_a_library_that_fails_is_no_end(folder, examined, monkeypatch, tmp_path):
    """The next way is taken, with a warning; here there is none but plain operators."""

    def check(path):
        raise Unavailable("that come with bit_paddle do not work here: a crash with signal 4")

    monkeypatch.setattr(prebuilt, "check", check)
    monkeypatch.setattr(build, "_loaded", [])
    monkeypatch.setattr(environment, "keep_memory", lambda: None)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    said = []
    _, named = build.choose("cpu", "off", said.append)
    (warning,) = said
    assert warning.startswith("warning: operators that come with bit_paddle do not work here: ")
    assert named.startswith("Paddle's own (that come") and named.endswith("compiler: /nowhere/g++)")


# --- The libraries of this package --------------------------------------------------------------

VERSIONS = ("2.6.2", "3.3.1")
COMMAND = "run `python scripts/build_operators.py` with each of Paddle " + " and ".join(VERSIONS)


def test_the_libraries_are_those_of_the_present_sources():
    contents = prebuilt.read_contents()
    found = {(about["paddle"], about["level"]) for about in contents.values()}
    assert found == {(one, level) for one in VERSIONS for level in prebuilt.LEVELS}, COMMAND
    old = [name for name, about in contents.items() if about["sources"] != compiler.sources_hash()]
    assert not old, f"operators.cc, onednn.h or the flags have changed since: {COMMAND}"
    files = {path.name: path.read_bytes() for path in prebuilt.FOLDER.glob("*.so")}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert sums == {name: about["sha256"] for name, about in contents.items()}, COMMAND
    assert sum(map(len, files.values())) < 3e6


def test_the_libraries_name_no_folders_and_work_on_old_systems():
    for name in prebuilt.read_contents():
        content = (prebuilt.FOLDER / name).read_bytes()
        assert not re.search(rb"/(work|home|root|tmp|usr)/", content)
        needed = {
            tuple(map(int, digits.split(b".")))
            for digits in re.findall(rb"GLIBC_([\d.]+)\0", content)
        }
        assert max(needed) <= (2, 17)
        assert b"libpaddle.so\0" in content and b"libdnnl.so.3\0" in content


def ours():
    flags = set(environment.processor().get("flags", "").split())
    return [
        name
        for name, about in prebuilt.read_contents().items()
        if about["paddle"] == paddle.__version__ and prebuilt.LEVELS[about["level"]][1] <= flags
    ]


@pytest.mark.skipif(not ours(), reason="none are prebuilt for this Paddle and processor")
def test_every_library_that_can_run_here_is_right():
    """In a process that has no other OpenMP, which other tests may have loaded into this one."""
    code = (
        "import json, sys; import bit_paddle.api; from bit_paddle.models.native import prebuilt; "
        "print(json.dumps(prebuilt.check(prebuilt.FOLDER / sys.argv[1])))"
    )
    for name in ours():
        command = [sys.executable, "-W", "ignore", "-c", code, name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert set(json.loads(done.stdout.splitlines()[-1])) == {"onednn", "bf16"}


@pytest.mark.slow
@pytest.mark.skipif(not ours(), reason="none are prebuilt for this Paddle and processor")
def test_a_new_user_without_a_compiler(tmp_path):
    """An empty PATH and cache; the library must also find those of Paddle without folders."""
    code = (
        "from bit_paddle.models.native import build; print(build.choose('cpu', 'bf16', print)[1])"
    )
    environ = {key: value for key, value in os.environ.items() if key != "CXX"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environ, "PATH": str(tmp_path), "BIT_PADDLE_HOME": str(tmp_path)},
    )
    assert done.stdout.startswith("prebuilt for AVX"), done.stdout + done.stderr
