"""The settings that precede Paddle."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from bit_paddle.system import environment

SHOW = "import os, bit_paddle; print([os.environ.get(name) for name in {}])"


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, [str(environment.cpu_count()), None]),
        ({"MKL_NUM_THREADS": "7"}, ["7", None]),
        ({"OMP_NUM_THREADS": "3"}, [None, "3"]),
    ],
)
def test_threads_are_set_unless_the_user_has(given, expected):
    names = ["MKL_NUM_THREADS", "OMP_NUM_THREADS"]
    plain = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(names)],
        env={**plain, **given},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(expected)


def test_cpu_count_respects_affinity():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from bit_paddle.system import environment; print(environment.cpu_count())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    "quota, processors", [("max 100000", 64), ("150000 100000", 2), ("50000 100000", 1)]
)
def test_cpu_count_respects_the_cgroup(quota, processors, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(environment, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64))
    assert environment.cpu_count() == processors


def test_memory_respects_the_cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_CGROUP", tmp_path)
    whole = environment.memory_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    assert environment.memory_bytes() == whole > 1 << 28
    (tmp_path / "memory.max").write_text("1000\n")
    assert environment.memory_bytes() == 1000
