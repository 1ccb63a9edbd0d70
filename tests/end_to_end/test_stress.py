"""scripts/benchmarks/stress.py, in short: real runs that are killed, and damaged files."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.weekly]
pytest.importorskip("sklearn")
_spec = importlib.util.spec_from_file_location("stress", ROOT / "scripts/benchmarks/stress.py")
stress = importlib.util.module_from_spec(_spec)
sys.modules["stress"] = stress  # dataclasses look their module up
_spec.loader.exec_module(stress)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stress")
    bench = stress.Bench(folder, steps=20)
    yield bench
    bench.close()
    shutil.rmtree(folder)


def assert_survived(rows, faults):
    assert sum(row.faults for row in rows) >= faults
    for row in rows:
        assert not row.failures and row.survived == row.faults and row.lost == 0, row.failures


def test_killed_runs_end_as_if_undisturbed(bench):
    for _ in range(5):  # a kill can come after the last step: then no step is left to resume at
        (row,) = rows = stress.kill(bench, 3)
        assert_survived(rows, 3)
        if row.resume:
            break
        bench.seed += 1
    assert row.resume and max(row.repeated) <= bench.steps
    table = stress.table(rows).splitlines()
    assert len({len(line) for line in table}) == 1 and table[2].startswith("| kill | 3 ")


def test_variants(bench):
    assert_survived(stress.variants(bench, ["SIGTERM"], 1), 1)


def test_a_fault_of_a_kind(bench):
    assert_survived(stress.one_each(bench, ["the lease of another machine"]), 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(bench):
    rows = stress.disk(bench, ["full"], [True], bench.steps)
    if rows[0].note:
        pytest.skip(rows[0].note)
    assert_survived(rows, 1)


def test_flipped_bits_are_noticed_or_harmless(bench):
    assert_survived(stress.flips(bench, 40, processes=False), 40)


def test_differences_are_found(bench):
    """What the comparison is for: a changed bit, a line twice, scalars that are not metrics."""
    run, _, _ = bench.reference(bench.run("").flags)
    for change in ("model", "metrics", "scalars"):
        other = bench.run("changed")
        shutil.copytree(run.folder, other.folder)
        if change == "model":
            path = other.folder / "model.npz"
            with stress.np.load(path) as file:
                arrays = dict(file)
            arrays["resnet/head/conv2d/bias"][0] += 1e-7
            stress.np.savez(path, **arrays)
        elif change == "metrics":
            path = other.folder / "metrics.jsonl"
            path.write_text(path.read_text() + path.read_text().splitlines(True)[-1])
        else:
            path = other.folder / stress.logbook.SCALARS
            path.write_bytes(path.read_bytes()[:-60])
        row = bench.surviving(other, lambda _: None)
        assert len(row.failures) == 1 and row.survived == 0, (change, row)


def test_command():
    command = [sys.executable, ROOT / "scripts/benchmarks/stress.py", "--only"]
    done = subprocess.run([*command, "kill", "--kills", "0"], capture_output=True, text=True)
    assert "| part " in done.stdout and "it/s" not in done.stderr
    assert done.returncode == 0, done.stdout
    done = subprocess.run([*command, "kil"], capture_output=True, text=True)
    assert done.returncode == 2 and "kill, variants" in done.stderr
