"""Measure the time of each part of a training step (``--profile N``), with Paddle's profiler.

`part` marks the parts in the code; Paddle records its operators. Both are in the trace, which
chrome://tracing and https://ui.perfetto.dev display.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import files

WARM_UP = 3  # first steps, which are slower: memory is allocated, kernels are chosen

TRACE, TABLE, PICTURE = "profile.trace.json", "profile.txt", "profile.png"

SHOWN = 12  # operators in the picture

OUTSIDE = "between the parts"

COMPILED = "bit_"  # prefix of the names of compiled operators


def part(name: str) -> AbstractContextManager:
    """Return a context manager that marks its block as part ``name`` of a step in a profile."""
    from paddle.profiler import RecordEvent

    return RecordEvent(name)


class Split(NamedTuple):
    """Seconds per step: total, by part, and by operator (in a part or not)."""

    step: float
    parts: dict[str, float]
    operators: dict[str, float]


class Profile:
    """Profiles ``steps`` training steps after the first `WARM_UP`; writes into the run's folder."""

    _used = False  # by this process: Paddle's profiler starts once only

    def __init__(self, steps: int, log: Logbook):
        from paddle import profiler

        self._log, self._steps, self._done = log, 0, Profile._used
        if Profile._used:
            log.say("warning: no profile: Paddle can profile one run per process")
            return
        Profile._used = True
        self._profiler = profiler.Profiler(
            scheduler=(WARM_UP, WARM_UP + steps), on_trace_ready=self._write
        )
        self._profiler.start()

    def step(self) -> None:
        """Tell the profiler that a step has ended."""
        if not self._done:
            self._steps += 1
            self._profiler.step()

    def close(self) -> None:
        """Write an incomplete profile, if training ends before all its steps."""
        if not self._done:
            self._profiler.stop()
        if not self._done:
            self._log.say(f"no profile: it needs more than {WARM_UP} steps")

    def _write(self, profiler: Any) -> None:
        if self._steps <= WARM_UP:
            return
        self._done = True
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "trace.json"
            profiler.export(path=str(path), format="json")
            text = path.read_text(encoding="utf-8")
        split = split_of(json.loads(text)["traceEvents"], self._steps - WARM_UP)
        files.write_text(self._log.folder / TRACE, text)
        files.write_text(self._log.folder / TABLE, describe(split))
        draw(split, self._log.folder / PICTURE)
        shares = (f"{name} {time / split.step:.0%}" for name, time in split.parts.items())
        self._log.say(
            f"profile: {split.step:.3f} s per step: {', '.join(shares)}; see {PICTURE}, {TABLE} "
            f"and {TRACE}"
        )


def split_of(events: Sequence[dict[str, Any]], count: int) -> Split:
    """Return the seconds per step from the ``events`` of Paddle's trace.

    Only the first ``count`` steps are complete. The time of an operator that runs inside another
    one counts for the inner operator only.
    """
    events = [event for event in events if event.get("ph") == "X"]
    steps = [event for event in events if event["cat"] == "ProfileStep"]
    steps = sorted(steps, key=lambda event: event["ts"])[:count]
    events = [event for event in events if _kind(event)]
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    parts: Counter = Counter()
    operators: Counter = Counter()
    enclosing: list[dict[str, Any]] = []
    for event in events:
        if not any(step["ts"] <= event["ts"] < step["ts"] + step["dur"] for step in steps):
            continue
        while enclosing and event["ts"] >= enclosing[-1]["ts"] + enclosing[-1]["dur"]:
            enclosing.pop()
        name, seconds = _name(event), event["dur"] / 1e6 / len(steps)
        if _kind(event) == "part":
            parts[name] += seconds
        else:
            operators[name] += seconds
            if enclosing:
                operators[_name(enclosing[-1])] -= seconds
            enclosing.append(event)
    total = sum(step["dur"] for step in steps) / 1e6 / len(steps)
    parts[OUTSIDE] = total - sum(parts.values())
    return Split(total, dict(parts.most_common()), dict(operators.most_common()))


def _kind(event: dict[str, Any]) -> str:
    """Return "part" or "operator", or "" for other events."""
    ours = event["cat"] == "PythonUserDefined"
    if ours and not event["name"].startswith(COMPILED):
        return "part"
    return "operator" if ours or event["cat"] in ("Operator", "UserDefined") else ""


def _name(event: dict[str, Any]) -> str:
    """Return an event's name without the time and prefixes that Paddle's trace adds."""
    name = re.sub(r"\[[^]]*\]$", "", event["name"])
    return re.sub(r"^Global_(CustomOpGradNode: )?| dygraph$", "", name)


def describe(split: Split) -> str:
    """Return ``split`` as a text table."""
    rows = [f"{'seconds per step':50}{split.step:10.4f}"]
    for title, times in (
        ("parts", split.parts),
        ("operators, without nested ones", split.operators),
    ):
        rows += ["", title]
        rows += [f"  {name:48}{time:10.4f}{time / split.step:8.1%}" for name, time in times.items()]
    return "\n".join(rows) + "\n"


def draw(split: Split, path: Path) -> None:
    """Draw the parts of a step as one bar, and the operators that take the most time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1, 4))
    left = 0.0
    for name, time in split.parts.items():
        above.barh([0], [time], left=left, label=f"{name} {time / split.step:.0%}")
        left += time
    above.set_yticks([])
    above.set_xlim(0, split.step)
    above.set_title(f"a training step: {split.step:.3f} s", fontsize=10)
    above.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=4, fontsize=8, frameon=False
    )
    shown = list(split.operators.items())[:SHOWN][::-1]
    below.barh([name for name, _ in shown], [time for _, time in shown], color="tab:gray")
    below.set_xlabel("seconds per step, without nested operators", fontsize=8)
    below.tick_params(labelsize=8)
    files.write(path, lambda stream: figure.savefig(stream, format="png", dpi=120))
