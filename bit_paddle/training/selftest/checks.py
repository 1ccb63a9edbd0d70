"""The checks of `bit_paddle.selftest`: each is a function of `Runs` that returns what it measured.

They raise `CheckFailed` with the difference that they found, or `NotRun` with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from bit_paddle.training.selftest.runs import STEPS, CheckFailed, NotRun, Run, Runs

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


class Check(NamedTuple):
    """A check: what it shows, and whether it needs a GPU."""

    about: str
    run: Callable[[Runs], str]
    gpu: bool = False


class Result(NamedTuple):
    """The result of a check: its ``status``, what it measured, and its seconds."""

    name: str
    about: str
    status: str
    text: str
    seconds: float


def carry_out(names: Iterable[str], runs: Runs) -> Iterable[Result]:
    """Carry out the checks called ``names``; yield the result of each."""
    for name in names:
        check, begun = CHECKS[name], time.monotonic()
        try:
            if check.gpu and not runs.gpus:
                raise NotRun("no GPU")
            status, text = PASSED, check.run(runs)
        except NotRun as reason:
            status, text = NOT_RUN, str(reason)
        except Exception as fault:  # also an error of CUDA: the other checks still run
            kind = "" if isinstance(fault, CheckFailed) else f"{type(fault).__name__}: "
            status, text = FAILED, f"{kind}{fault}"
        yield Result(name, check.about, status, text, time.monotonic() - begun)


# --- The checks ---------------------------------------------------------------------------------


def goldens(runs: Runs) -> str:
    """See `numbers.goldens`."""
    from bit_paddle.training.selftest import numbers

    return numbers.goldens(runs)


def pinned(runs: Runs) -> str:
    """See `numbers.pinned`."""
    from bit_paddle.training.selftest import numbers

    return numbers.pinned(runs)


def overlap(runs: Runs) -> str:
    """See `numbers.overlap`."""
    from bit_paddle.training.selftest import numbers

    return numbers.overlap(runs)


def amp(runs: Runs) -> str:
    """Compare the losses of runs in half precision with those in float32."""
    full, lines = _float32(runs), []
    for dtype in _halves(runs):
        lines.append(f"{dtype} {_near(runs.train('--amp', dtype, '--no-save'), full, 0.05, dtype)}")
    if not full.losses[-1] < full.losses[0]:
        raise CheckFailed(f"the loss does not fall in float32: {full.losses}")
    return f"largest difference of {STEPS} losses from float32: {', '.join(lines)}"


def all_processes(runs: Runs) -> str:
    """Compare the losses of all processes with those of one."""
    several = runs.train(*runs.all, "--amp", "off", "--no-save", one=False)
    count = len(runs.gpus) or 2
    return f"{count} processes: {_near(several, _float32(runs), 1e-3, 'several processes')}"


def recompute(runs: Runs) -> str:
    """Compare a run with recomputation with one without, bit by bit."""
    words = ["--amp", "off", *runs.deterministic]
    kept, again = (runs.train(*words, "--recompute", how) for how in ("off", "unit"))
    memory = f"; memory {kept.memory} -> {again.memory}" if kept.memory else ""
    return f"{_same(kept, again, 'recomputation')}{memory}"


def shard(runs: Runs) -> str:
    """Compare a sharded run with one that is not: its losses, and whether the bits are the same."""
    words = [*runs.all, "--amp", "off", *runs.deterministic]
    plain, sharded = (runs.train(*words, *more, one=False) for more in ([], ["--shard"]))
    near = _near(sharded, plain, 1e-5, "--shard")
    memory = f"; memory {plain.memory} -> {sharded.memory}" if plain.memory else ""
    return f"{near}; {'same' if _equal(plain, sharded) else 'other'} bits{memory}"


def out_of_memory(runs: Runs) -> str:
    """Find the micro-batches on a GPU with little memory, and resume with less of it."""
    every, half = ["--amp", "off", "--save_every", str(STEPS // 2), "--keep", "9"], STEPS // 2
    found = runs.train(*every, limit_mb=8000)
    checkpoint = found.folder / "checkpoints" / f"step-{half:08d}.npz"
    resumed = runs.train("--amp", "off", "--resume", str(checkpoint), limit_mb=4000)
    lines = [
        line.strip()
        for run in (found, resumed)
        for line in run.log.splitlines()
        if "tried micro-batches" in line or "out of memory" in line
    ]
    tail = Run(found.folder, found.losses[half:], 0, "", "")
    near = _near(resumed, tail, 1e-3, "the run with less memory")
    if not any("out of memory" in line for line in lines):
        raise CheckFailed(f"no step ran out of memory: {'; '.join(lines)}")
    return f"{near}; {'; '.join(lines)}"


def resume(runs: Runs) -> str:
    """Compare a run that resumes after half of its steps with one that is whole, bit by bit."""
    words = ["--amp", "off", *runs.deterministic, "--save_every", str(STEPS // 2), "--keep", "9"]
    whole = runs.train(*words)
    checkpoint = whole.folder / "checkpoints" / f"step-{STEPS // 2:08d}.npz"
    resumed = runs.train(*words, "--resume", str(checkpoint))
    if len(resumed.losses) != STEPS // 2:
        raise CheckFailed(f"the resumed run made {len(resumed.losses)} steps, not {STEPS // 2}")
    return _same(whole, resumed, "the resumed run")


def speed(runs: Runs) -> str:
    """Return images per second, and the peak of GPU memory, in each precision and of all GPUs."""
    made = {"float32": _float32(runs)}
    for dtype in _halves(runs):
        made[dtype] = runs.train("--amp", dtype, "--no-save")
    if len(runs.gpus) > 1:
        made[f"{len(runs.gpus)} GPUs"] = runs.train("--amp", "off", "--no-save", one=False)
    shown = (f"{name} {run.speed:.1f} {run.memory}".strip() for name, run in made.items())
    return f"images/s: {', '.join(shown)}"


CHECKS = {
    "goldens": Check("outputs and gradients in float32, with TF32 off", goldens),
    "amp": Check("losses in half precision", amp),
    "processes": Check("all GPUs give the losses of one (NCCL; on CPUs gloo)", all_processes),
    "overlap": Check("gradients are exchanged beside the backward pass", overlap),
    "recompute": Check("recomputation gives the same bits", recompute),
    "shard": Check("sharding gives the same losses", shard),
    "memory": Check("without enough memory a run takes smaller micro-batches", out_of_memory, True),
    "resume": Check("a resumed run ends with the same bits (--deterministic)", resume),
    "pinned": Check("images are copied from pinned memory", pinned, True),
    "speed": Check("images per second", speed),
}


# --- Comparisons --------------------------------------------------------------------------------


def _float32(runs: Runs) -> Run:
    return runs.train("--amp", "off", "--no-save")


def _halves(runs: Runs) -> Sequence[str]:
    """Return the half precisions of the device; fp16 only shows something on a GPU."""
    if not runs.gpus:
        return ["bf16"]
    from bit_paddle.system import device

    best = device.amp_for("gpu")
    return {"bf16": ["fp16", "bf16"], "fp16": ["fp16"]}.get(best, [])


def _near(run: Run, other: Run, bar: float, title: str) -> str:
    """Return the largest difference of two runs' losses, relative to the largest loss."""
    losses, expected = np.array(run.losses), np.array(other.losses)
    if losses.shape != expected.shape:
        raise CheckFailed(f"{title}: {len(losses)} losses, expected {len(expected)}")
    difference = np.abs(losses - expected).max() / np.abs(expected).max()
    if not difference <= bar:
        raise CheckFailed(f"{title}: losses differ by {difference:.1e}, expected {bar:g} at most")
    return f"{difference:.1e}"


def _equal(run: Run, other: Run) -> bool:
    ours, theirs = run.weights(), other.weights()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


def _same(run: Run, other: Run, title: str) -> str:
    if not _equal(run, other):
        raise CheckFailed(f"{title}: the weights differ after {STEPS} steps")
    return f"all weights have the same bits after {STEPS} steps"
