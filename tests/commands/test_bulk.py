"""``python command.py`` against a real server with a small stand-in for each of the 285 files."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, namedtuple

import pytest
from conftest import ROOT, arrays_of
from servers import Server

from bit_paddle import download
from bit_paddle.errors import DownloadError
from bit_paddle.models import npz, published, vtab
from bit_paddle.system import fetch

FILES = [entry.file for entry in published.CATALOG.values() if entry.file.startswith("vtab/")]


@pytest.fixture
def server(monkeypatch):
    """285 files of 20 to 60 kB, no two alike."""
    source = random.Random(0)
    server = Server(
        {f"/{file}": source.randbytes(source.randrange(20_000, 60_000)) for file in FILES}
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("BIT_PADDLE_BASE_URL", server.address)
    yield server
    server.shutdown()
    server.server_close()


def command(folder, *arguments, name=("command.py",)):
    words = [
        sys.executable,
        *name,
        "--bit_pretrained_dir",
        str(folder),
        *map(str, arguments),
    ]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def complete(folder):
    return [path for path in folder.glob("*.npz") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_all_files_interrupted_once(number, server, tmp_path):
    """What was there before the interruption is not fetched again, and nothing is fetched twice."""
    server.chunk_pause = 0.02
    process = command(tmp_path, "--jobs", 8)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(complete(tmp_path)) < 60:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[number]
    before = len(complete(tmp_path))
    assert 60 <= before < 285
    server.chunk_pause = 0.0
    again = command(tmp_path, "--jobs", 8)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert out.splitlines()[:3] == [
        f"already present {before:4}",
        f"downloaded      {285 - before:4}",
        "missing            0",
    ]
    for file in FILES:
        assert (tmp_path / file.split("/")[1]).read_bytes() == server.published[f"/{file}"]
    whole = Counter(path for path, wanted in server.requests if wanted is None)
    assert max(whole.values()) <= 2 and sum(whole.values()) <= 285 + 8  # those that were under way
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ["command.py", "-m bit_paddle.download", "-m bit_paddle download"])
def test_interrupted_while_the_server_is_silent(name, server, tmp_path):
    server.faults = ["silent"] * 100
    process = command(tmp_path, "--jobs", 2, name=name.split())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not list(tmp_path.glob("*.part")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    process.communicate(timeout=90)
    assert process.returncode == 130 and time.monotonic() - start < fetch.READ_TIMEOUT / 2


def test_filters_and_dry_run(server, tmp_path):
    chosen = ("--models", "R50x1", "R152x4", "--runs", 1, "--tasks", "svhn", "clevr-count")
    process = command(tmp_path / "new", *chosen, "--dry-run")
    out, _ = process.communicate(timeout=60)
    *rows, total = out.splitlines()
    tasks = ("svhn", "clevr-count")
    names = [f"BiT-M-{model}-run1-{task}" for model in ("R50x1", "R152x4") for task in tasks]
    assert [row.split()[0] for row in rows] == names
    size = sum(len(server.published[f"/vtab/{name}.npz"]) for name in names)
    assert total == f"4 of 4 files to download: {size / 1e9:.2f} GB"
    assert not (tmp_path / "new").exists() and not server.requests
    process = command(tmp_path / "new", *chosen)
    assert process.wait(60) == 0
    assert sorted(path.stem for path in complete(tmp_path / "new")) == sorted(names)


def test_what_is_missing_on_the_server(server, tmp_path):
    del server.published["/vtab/BiT-M-R50x1-run0-dtd.npz"]
    process = command(tmp_path, "--models", "R50x1", "--runs", 0)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "downloaded        18" in out and "missing            1" in out
    assert "BiT-M-R50x1-run0-dtd: " in out and "answered 404" in out


def test_a_disk_too_small(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 1_000_000))
    with pytest.raises(DownloadError, match=r"285 files need 0\.01 GB, 0\.00 GB are free"):
        download.main(["--bit_pretrained_dir", str(tmp_path / "new")])
    assert not server.requests


@pytest.mark.slow
def test_verify(server, tmp_path, capsys):
    """A right file, one with a flipped bit, one of another head, one of other weights, none."""
    entries = vtab.select(["R50x1"], [0], ["svhn", "dtd", "eurosat", "sun397", "caltech101"])
    paths = {entry.name.split("-")[-1]: tmp_path / f"{entry.name}.npz" for entry in entries}
    for task, classes in (("svhn", 10), ("dtd", 47), ("eurosat", 11), ("sun397", 397)):
        npz.write(paths[task], arrays_of(50, 1, classes, 0).items())
        server.published[f"/vtab/{paths[task].name}"] = paths[task].read_bytes()
    content = bytearray(paths["dtd"].read_bytes())
    content[len(content) // 2] ^= 1
    paths["dtd"].write_bytes(content)
    npz.write(paths["sun397"], arrays_of(50, 1, 397, 1).items())
    arguments = ["--models", "R50x1", "--runs", "0", "--tasks", *paths, "--verify"]
    assert download.main([*arguments, "--bit_pretrained_dir", str(tmp_path)]) == 1
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[:-1])
    assert rows["BiT-M-R50x1-run0-svhn"] == "right"
    assert "is damaged" in rows["BiT-M-R50x1-run0-dtd"]
    assert "not those of R50x1 with 10 outputs" in rows["BiT-M-R50x1-run0-eurosat"]
    assert "expected" in rows["BiT-M-R50x1-run0-sun397"]
    assert rows["BiT-M-R50x1-run0-caltech101"] == "missing"
    good = ["--models", "R50x1", "--runs", "0", "--tasks", "svhn", "--verify"]
    assert download.main([*good, "--bit_pretrained_dir", str(tmp_path)]) == 0


def test_misspelt_task():
    done = subprocess.run(
        [sys.executable, "command.py", "--tasks", "cifar10"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 2 and "cifar100" in done.stderr and "Traceback" not in done.stderr
