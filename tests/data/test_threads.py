"""Memory that does not suffice for all threads that decode images, in a process of its own."""

import os
import subprocess
import sys

import numpy as np
from conftest import ROOT
from PIL import Image

CODE = """
import functools, hashlib, resource, sys, threading
from pathlib import Path
from bit_paddle.data import loader
from bit_paddle.data.boxes import looks
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry

threading.stack_size(2**18)
images = registry.open_dataset("folder", sys.argv[1]).train


def size(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def classified(workers):
    for part in loader.evaluation_batches(images, Preprocessing(32), 8, workers):
        yield part.images


def with_boxes(workers):
    for seen in looks.prepared(images, range(len(images)), looks.Looks(32), workers):
        yield from seen.pixels


for make in (classified, with_boxes):
    # what one thread needs, twice: the second time nothing is loaded or allocated once and kept
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")
        before, expected = size("VmSize"), [one.tobytes() for one in make(1)]
    one_needs = max(size("VmPeak") - before, 2**24)
    resource.setrlimit(resource.RLIMIT_AS, (size("VmSize") + int(2.5 * one_needs), -1))
    found = [one.tobytes() for one in make(8)]
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    print(found == expected, flush=True)
resource.setrlimit(resource.RLIMIT_AS, (size("VmSize") + 2**22, -1))
try:
    list(classified(1))
except MemoryError as error:
    print(error)
"""


def test_images_that_memory_does_not_suffice_for_are_decoded_one_by_one(tmp_path):
    """To the same bits, for classes and for boxes; and if one is too many, that is said."""
    random = np.random.default_rng(0)
    for k in range(24):
        folder = tmp_path / ("train" if k < 16 else "val") / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        small.resize((2000, 1500)).save(folder / f"{k}.{'jpg' if k % 3 else 'png'}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["True", "True"]
    assert "with nothing else under way; take a smaller --cache_gb" in done.stdout
    assert done.stderr.count("warning: out of memory while several threads") == 1
