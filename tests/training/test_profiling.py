"""Where the time of a step goes."""

import json

import pytest
from helpers.commands import run_outside

from bit_paddle.training import profiling


def event(name, start, end, category):
    """Return what Paddle's trace has of something between ``start`` and ``end``, in seconds."""
    times = {"ts": start * 1e6, "dur": (end - start) * 1e6}
    return {"ph": "X", "name": f"{name}[{end - start} s]", "cat": category, **times}


def test_inner_events_take_their_time_from_outer_ones():
    split = profiling.split_of(
        [
            {"ph": "M", "name": "process_name"},
            event("ProfileStep#3", 0, 10, "ProfileStep"),
            event("ProfileStep#4", 10, 20, "ProfileStep"),
            event("forward pass", 0, 4, "PythonUserDefined"),
            event("bit_convolve", 1, 3, "PythonUserDefined"),
            event("backward pass", 4, 10, "PythonUserDefined"),
            event("backward", 4, 10, "UserDefined"),
            event("Global_CustomOpGradNode: bit_convolve_grad", 5, 9, "UserDefined"),
            event("add_ dygraph", 6, 7, "Operator"),
            event("add kernel launch", 6, 7, "DygraphKernelLaunch"),
            event("forward pass", 12, 14, "PythonUserDefined"),
            event("forward pass", 20, 30, "PythonUserDefined"),  # of a step that is not profiled
            event("ProfileStep#5", 20, 21, "ProfileStep"),
        ],
        2,
    )
    assert split.step == 10
    assert split.parts == {"forward pass": 3, "backward pass": 3, profiling.OUTSIDE: 4}
    expected = {"bit_convolve": 1, "backward": 1, "bit_convolve_grad": 1.5, "add_": 0.5}
    assert split.operators == pytest.approx(expected)
    table = profiling.describe(split)
    assert "  forward pass " in table and "30.0%" in table


@pytest.mark.slow
@pytest.mark.parametrize("steps, profiled", [(6, 2), (4, 1), (3, 0)])
def test_a_run_with_a_profile(steps, profiled, tmp_path):
    """Two steps after the first three are profiled, or fewer; training continues in each case.

    In processes of their own, as Paddle profiles once in each.
    """
    pytest.importorskip("sklearn")
    arguments = ["--model", "R14x0.5", "--from_scratch", "--dataset", "digits", "--batch", 8]
    arguments += ["--base_lr", 0.0005, "--device", "cpu", "--logdir", tmp_path, "--name", "run"]
    done = run_outside("train", *arguments, "--steps", steps, "--profile", 2)
    assert done.returncode == 0, done.stderr
    names = {profiling.TRACE, profiling.TABLE, profiling.PICTURE}
    found = names & {path.name for path in (tmp_path / "run").iterdir()}
    assert found == (names if profiled else set())
    if not profiled:
        assert "no profile: it needs more than 3 steps" in done.stdout
        return
    events = json.loads((tmp_path / "run" / profiling.TRACE).read_text())["traceEvents"]
    assert sum(one.get("cat") == "ProfileStep" for one in events) >= profiled
    split = profiling.split_of(events, profiled)
    assert set(split.parts) == {
        "forward pass",
        "backward pass",
        "optimizer",
        "waiting for data",
        profiling.OUTSIDE,
    }
    assert all(0 <= seconds <= split.step for seconds in split.parts.values())
    assert sum(split.operators.values()) <= split.step
