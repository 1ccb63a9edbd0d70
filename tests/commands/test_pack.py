"""``pack``, and runs on what it writes: stopped, without room, cut short, with a wrong index."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_here, run_train, wait_until
from helpers.commands import TINY, run_outside
from helpers.pictures import fill
from helpers.runs import assert_same, state_of

from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError, DataError

COUNTS = {"train/a": 30, "train/b": 31, "val/a": 5, "val/b": 4}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    fill(root, COUNTS)
    return root


def words(pictures, output, *more):
    return ["--dataset", "folder", "--datadir", pictures, "--output", output, "--shard_mb", 0.02,
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def packed(pictures, tmp_path_factory):
    output = tmp_path_factory.mktemp("packed") / "out"
    done = run_here("pack", *words(pictures, output))
    assert done.returncode == 0, done.stderr
    assert f"train with --dataset {output / 'data.yaml'}" in done.stdout
    return output


def contents(folder):
    return {path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def opened(folder):
    return registry.open_dataset(str(folder / "data.yaml"))


# --- Packing that stops -------------------------------------------------------------------------


def test_a_killed_command_continues(pictures, packed, tmp_path):
    output = tmp_path / "out"
    given = [str(word) for word in words(pictures, output)]
    process = subprocess.Popen([sys.executable, "-m", "bit_paddle.pack", *given], cwd=ROOT,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_until(lambda: len(list(output.glob("train/*.tar"))) > 1, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (output / "packing.json").exists()  # else it was too quick, and this tests nothing
    (output / "train/000099.tar.1.part").write_bytes(b"half")
    with pytest.raises(DataError, match="packing was not finished"):
        registry.open_dataset("shards", str(output))
    done = run_here("pack", *words(pictures, output, "--shard_mb", 1))
    assert done.returncode == 2 and "was begun with other images or another" in done.stderr
    first = output / "train/000000.tar"
    before = first.stat().st_mtime_ns
    done = run_here("pack", *words(pictures, output))
    assert done.returncode == 0 and first.stat().st_mtime_ns == before
    assert contents(output) == contents(packed)
    done = run_here("pack", *words(pictures, output))
    assert done.returncode == 2 and "is not empty; name a new folder" in done.stderr


def test_a_full_disk_is_reported_and_the_command_continues(pictures, packed, tmp_path):
    output = tmp_path / "out"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))

    done = run_outside("pack", *words(pictures, output), preexec_fn=limited)
    assert done.returncode == 1 and "000000.tar: cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr and not list(output.rglob("*.tar*"))
    (output / "train/images.npy").mkdir()  # a part of the index cannot be written either
    done = run_here("pack", *words(pictures, output))
    assert done.returncode == 1 and "train/images.npy: cannot be written" in done.stderr
    (output / "train/images.npy").rmdir()
    before = (output / "train/000000.tar").stat().st_mtime_ns
    assert run_here("pack", *words(pictures, output)).returncode == 0
    assert (output / "train/000000.tar").stat().st_mtime_ns == before
    assert contents(output) == contents(packed)


def test_unreadable_images(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "images")
    broken = tmp_path / "images/train/a/3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    done = run_here("pack", *words(tmp_path / "images", tmp_path / "out"))
    assert done.returncode == 2 and str(broken) in done.stderr and "skip" in done.stderr
    done = run_here("pack", *words(tmp_path / "images", tmp_path / "out", "--on_bad_image", "skip"))
    assert done.returncode == 0 and f"skipped: {broken}" in done.stderr
    assert len(opened(tmp_path / "out").train) == 60


def test_shards_are_packed_anew(packed, tmp_path):
    given = ["--dataset", packed / "data.yaml", "--output", tmp_path / "out", "--split", "val"]
    assert run_here("pack", *given).returncode == 0
    (tmp_path / "out/val").rename(tmp_path / "out/train")
    one, other = opened(packed).val, registry.open_dataset("shards", str(tmp_path / "out"))
    found = {part.inner_name(k): part.content(k) for part in (other.train, other.val)
             for k in range(len(part))}  # fmt: skip
    assert found == {one.inner_name(k): one.content(k) for k in range(len(one))}


# --- Shards and an index that are not what they were --------------------------------------------


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def test_a_shard_that_is_cut_or_missing_is_named(copy):
    path = copy / "train/000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-1024])
    sizes = rf"000001\.tar: has {len(content) - 1024:,} bytes, expected {len(content):,}"
    with pytest.raises(DataError, match=sizes):
        opened(copy)
    path.unlink()
    with pytest.raises(DataError, match=r"000001\.tar: cannot be read \(No such file"):
        opened(copy)


def test_a_damaged_image_is_named_when_it_is_read(copy):
    path = copy / "train/000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1  # within its first image
    path.write_bytes(content)
    train = opened(copy).train
    first = int(np.flatnonzero(train.index.images["shard"] == 1)[0])
    train.image(first - 1)
    train.image(first + 1)
    fault = rf"000001\.tar: the image {train.inner_name(first)} at byte 512 is not that of the"
    with pytest.raises(DataError, match=fault):
        train.image(first)
    with pytest.raises(DataError, match=fault):
        train.size(first)


@pytest.mark.parametrize("name", ["images", "label_starts", "labels", "name_starts", "names"])
def test_a_damaged_index_is_refused(name, copy):
    path = copy / f"train/{name}.npy"
    content = path.read_bytes()
    damaged = [content[:-8], b""]
    if not name.startswith("name"):  # names decide nothing: only their lengths are compared
        damaged.append(content[:-1] + bytes([content[-1] ^ 1]))
    for other in damaged:
        path.write_bytes(other)
        with pytest.raises(DataError, match=rf"{name}\.npy: is not the file of this index"):
            opened(copy)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}\.npy: .* cannot be read"):
        opened(copy)


def test_a_damaged_header_is_refused(copy):
    """Of the names alone, whose content is not compared with a checksum."""
    path = copy / "train/names.npy"
    content = path.read_bytes()
    for old, new in ((b"{'descr'", b"(((('descr"), (b"'shape': (", b"'shape': 1/")):
        path.write_bytes(content.replace(old, new[: len(old)].ljust(len(old))))
        with pytest.raises(DataError, match=r"names\.npy: is not the file of this index"):
            opened(copy)


def test_an_index_of_other_shards_is_refused(copy):
    (copy / "train/index.json").write_bytes((copy / "val/index.json").read_bytes())
    with pytest.raises(DataError, match=r"train/images\.npy: is not the file of this index"):
        opened(copy)
    for path in (copy / "val").glob("*.np*"):
        shutil.copy(path, copy / "train")
    with pytest.raises(DataError, match=r"0000\d\d\.tar: has .* bytes, expected"):
        opened(copy)
    for text in ("", "[]", '{"format": 2}', '{"format": 1}'):
        (copy / "train/index.json").write_text(text)
        with pytest.raises(DataError, match=r"train/index\.json: (is damaged|has the format 2)"):
            opened(copy)


@pytest.mark.parametrize("name", ["../000000.tar", "/etc/passwd", "..", "", ".x", "a\\b", "a\0"])
def test_a_name_that_leads_elsewhere_is_refused(name, copy):
    path = copy / "val/index.json"
    content = json.loads(path.read_text())
    content["shards"][0]["name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"index\.json: names a shard .*expected the name of a file"
    ):
        opened(copy)


def test_what_has_no_paths_takes_no_group(packed):
    for option in ({"group": "(a)"}, {"exclude": "x"}, {"fold": (1, 2)}):
        with pytest.raises(ConfigError, match="is not for shards"):
            registry.open_dataset(str(packed / "data.yaml"), **option)


# --- Runs ---------------------------------------------------------------------------------------


def test_the_plan_states_the_memory(packed):
    given = ["--model", "R14x0.5", "--from_scratch", "--dataset", packed / "data.yaml"]
    done = run_here("plan", *given)
    assert done.returncode == 0, done.stderr
    size = sum(path.stat().st_size for path in packed.glob("*/*.npy"))
    line = next(line for line in done.stdout.splitlines() if line.startswith("index"))
    assert " 0.0 MB of files, which are mapped" in line and size < 50_000
    assert f"Each process holds {(4 * 61 + 9) * 8 / 1e6:,.1f} MB itself" in line


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_a_run_on_shards_ends_with_the_bits_of_one_on_files(count, pictures, packed, tmp_path):
    """And so does one that was killed in the middle of an epoch, which has 8 steps."""
    common = [*TINY, "--batch", 8, "--steps", 12, "--save_every", 5, "--keep", 9, "--workers", 2,
              "--logdir", tmp_path, *(["--nproc", count] if count > 1 else [])]  # fmt: skip
    files = ["--dataset", "folder", "--datadir", pictures]
    shards = ["--dataset", packed / "data.yaml"]
    for name, data in (("files", files), ("shards", shards)):
        done = run_train(*common, *data, "--name", name)
        assert done.returncode == 0, done.stderr
    assert_same(state_of(tmp_path / "shards"), state_of(tmp_path / "files"))
    folder = tmp_path / "shards"  # as if it had been killed after step 5
    for path in (folder / "checkpoints").glob("*.npz"):
        if path.name != "step-00000005.npz":
            path.unlink()
    for name in ("result.json", "model.npz"):
        (folder / name).unlink()
    done = run_train(*common, *shards, "--name", "shards", "--workers", 4)
    assert done.returncode == 0 and "resumes after step 5" in done.stdout
    assert_same(state_of(folder), state_of(tmp_path / "files"))
