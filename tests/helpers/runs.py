"""What a run leaves in its folder."""

import json

import numpy as np


def lines_of(folder, kind=None):
    """The lines of metrics.jsonl, all or of a kind: train, val."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def state_of(folder):
    """All that a run leaves: weights, momentum, metrics without times."""
    arrays = {}
    for path in (folder / "model.npz", sorted((folder / "checkpoints").glob("step-*.npz"))[-1]):
        with np.load(path) as file:
            arrays |= {f"{path.stem}/{key}": file[key] for key in file if "notes" not in key}
    lines = lines_of(folder)
    for line in lines:
        line.pop("time"), line.pop("images_per_second", None)
    return arrays, lines


def assert_same(one, other):
    """Compare what `state_of` returns, bit for bit."""
    (arrays, lines), (expected_arrays, expected_lines) = one, other
    assert lines == expected_lines and arrays.keys() == expected_arrays.keys()
    for key, array in expected_arrays.items():
        assert np.array_equal(arrays[key], array), key
