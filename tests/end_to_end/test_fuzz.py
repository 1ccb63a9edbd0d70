"""scripts/benchmarks/fuzz.py, in short: every kind of file; and faults of each sort are found."""

import os
import sys

import pytest
from conftest import ROOT

from bit_paddle.errors import DataError

pytestmark = pytest.mark.slow
sys.path.insert(0, str(ROOT / "scripts/benchmarks"))
import fuzz  # noqa: E402

sys.path.pop(0)


@pytest.mark.parametrize("kind", fuzz.fuzz_targets.TARGETS)
def test_mutated_files_are_read_or_refused(kind):
    row = fuzz.in_a_process(kind, 10, seed=0)
    if row.note:
        pytest.skip(row.note)
    assert row.faults == [] and row.inputs == 10 == row.refused + row.read


def wrong(content: bytes) -> None:
    raise LookupError("a defect")


def endless(content: bytes) -> None:
    while True:
        pass


def large(content: bytes) -> None:
    bytes(2 * fuzz.MEMORY)


def refusing(content: bytes) -> None:
    raise DataError("it is damaged")


@pytest.mark.parametrize(
    "read, words",
    [
        (wrong, "input 0: LookupError at"),
        (endless, "input 0 ended the process: it does not end"),
        (lambda _: os.abort(), "input 0 ended the process: signal 6"),
        (large, "input 0: MemoryError at"),
        (refusing, None),
    ],
    ids=["wrong", "endless", "crash", "large", "refusing"],
)
def test_faults_are_found(read, words, monkeypatch):
    whole = b"a file"

    def target(folder):
        return [whole], lambda content, way: None if content == whole else read(content)

    monkeypatch.setitem(fuzz.fuzz_targets.TARGETS, "x", target)
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    row = fuzz.in_a_process("x", 3, seed=5)
    if words is None:
        assert row.faults == [] and row.refused == row.inputs == 3
    else:
        assert words in row.faults[0]
        assert f"| {len(row.faults)} |" in fuzz.table([row])
