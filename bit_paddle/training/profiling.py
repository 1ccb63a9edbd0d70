"""Where the time of a training step goes: ``--profile N``, by Paddle's profiler.

Parts of a step are marked by `part` where they happen; within them Paddle notes its operators. All
of it is in the trace, which chrome://tracing and https://ui.perfetto.dev show.
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

WARM_UP = 3  # steps that are slower than others: memory is taken, kernels are chosen

TRACE, TABLE, PICTURE = "profile.trace.json", "profile.txt", "profile.png"

SHOWN = 12  # operators in the picture

OUTSIDE = "between the parts"

COMPILED = "bit_"  # what the names of compiled operators begin with


def part(name: str) -> AbstractContextManager:
    """Mark what happens inside as the part ``name`` of a step, for a profile if there is one."""
    from paddle.profiler import RecordEvent

    return RecordEvent(name)


class Split(NamedTuple):
    """Seconds a step: of all of it, of its parts, and of operators in and outside of these."""

    step: float
    parts: dict[str, float]
    operators: dict[str, float]


class Profile:
    """A profile of ``steps`` training steps after the first few, written to the run's folder."""

    def __init__(self, steps: int, log: Logbook):
        from paddle import profiler

        self._log, self._made, self._done = log, 0, False
        self._profiler = profiler.Profiler(
            scheduler=(WARM_UP, WARM_UP + steps), on_trace_ready=self._write
        )
        self._profiler.start()

    def step(self) -> None:
        """Say that a step has ended."""
        if not self._done:
            self._made += 1
            self._profiler.step()

    def close(self) -> None:
        """Write what there is, where training ends before the profile does."""
        if not self._done:
            self._profiler.stop()
        if not self._done:
            self._log.say(f"no profile: there were not more than {WARM_UP} steps")

    def _write(self, profiler: Any) -> None:
        if self._made <= WARM_UP:
            return
        self._done = True
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "trace.json"
            profiler.export(path=str(path), format="json")
            text = path.read_text()
        split = split_of(json.loads(text)["traceEvents"], self._made - WARM_UP)
        files.write_text(self._log.folder / TRACE, text)
        files.write_text(self._log.folder / TABLE, describe(split))
        draw(split, self._log.folder / PICTURE)
        shares = (f"{name} {time / split.step:.0%}" for name, time in split.parts.items())
        self._log.say(
            f"profile: {split.step:.3f} s a step: {', '.join(shares)}; see {PICTURE}, {TABLE} and "
            f"{TRACE}"
        )


def split_of(events: Sequence[dict[str, Any]], count: int) -> Split:
    """Return what ``events`` of Paddle's trace say of a step, by what each does itself.

    The first ``count`` steps in it are whole. Of nested events the inner ones' time is theirs, not
    the outer ones'.
    """
    events = [event for event in events if event.get("ph") == "X"]
    steps = [event for event in events if event["cat"] == "ProfileStep"]
    steps = sorted(steps, key=lambda event: event["ts"])[:count]
    kept = [event for event in events if _kind(event)]
    kept.sort(key=lambda event: (event["ts"], -event["dur"]))
    parts: Counter = Counter()
    operators: Counter = Counter()
    open_ones: list[dict[str, Any]] = []
    for event in kept:
        if not any(one["ts"] <= event["ts"] < one["ts"] + one["dur"] for one in steps):
            continue
        while open_ones and event["ts"] >= open_ones[-1]["ts"] + open_ones[-1]["dur"]:
            open_ones.pop()
        name, seconds = _name(event), event["dur"] / 1e6 / len(steps)
        if _kind(event) == "part":
            parts[name] += seconds
        else:
            operators[name] += seconds
            if open_ones:
                operators[_name(open_ones[-1])] -= seconds
            open_ones.append(event)
    step = sum(one["dur"] for one in steps) / 1e6 / len(steps)
    parts[OUTSIDE] = step - sum(parts.values())
    return Split(step, dict(parts.most_common()), dict(operators.most_common()))


def _kind(event: dict[str, Any]) -> str:
    """Return "part" or "operator", or nothing for all else in a trace."""
    ours = event["cat"] == "PythonUserDefined"
    if ours and not event["name"].startswith(COMPILED):
        return "part"
    return "operator" if ours or event["cat"] in ("Operator", "UserDefined") else ""


def _name(event: dict[str, Any]) -> str:
    """Return what is called so in Paddle, without the time that its trace adds."""
    name = re.sub(r"\[[^]]*\]$", "", event["name"])
    return re.sub(r"^Global_(CustomOpGradNode: )?| dygraph$", "", name)


def describe(split: Split) -> str:
    """Return ``split`` as a table."""
    rows = [f"{'seconds a step':50}{split.step:10.4f}"]
    for title, times in (("parts", split.parts), ("operators, each by itself", split.operators)):
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
    below.set_xlabel("seconds a step, each operator by itself", fontsize=8)
    below.tick_params(labelsize=8)
    files.write(path, lambda stream: figure.savefig(stream, format="png", dpi=120))
