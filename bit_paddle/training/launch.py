"""Start a run: claim its folder, make the plan, start its processes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from operator import methodcaller
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple

from bit_paddle import __version__, errors
from bit_paddle.config.run_settings import RunSettings, fields_of
from bit_paddle.config.saved import to_yaml
from bit_paddle.runs import logbook
from bit_paddle.runs.folder import CONFIG, Start, check_data, claim, forget
from bit_paddle.runs.history import PLAN
from bit_paddle.runs.results import RESULT
from bit_paddle.runs.results import result as result_of
from bit_paddle.system import environment, files, peers, processes
from bit_paddle.system.signals import Interrupt, held
from bit_paddle.training.plan import Plan

# Settings that decide no result, but what the processes of a run exchange.
_SAME = {"batch_split", "device", "eval_every", "recompute", "save", "shard", "skip_nonfinite"}

# Returns the plan of settings; see `classification.plan.make_plan`.
MakePlan = Callable[..., Plan]


class Ended(NamedTuple):
    """How a run ended. ``signal`` is the one that this process received; ``status`` exits by it."""

    status: int
    folder: Path
    result: dict[str, Any] | None  # None if the run is not complete
    signal: Signals | None = None


def start(
    settings: RunSettings,
    arguments: Sequence[str],
    make_plan: MakePlan,
    force: bool = False,
    embedded: bool = False,
) -> Ended:
    """Carry out one run in its folder; return how it ended.

    ``settings`` were parsed from ``arguments``, the words of the command line after its ``prog``.
    ``make_plan`` is that of their task. If ``embedded`` (in a program or notebook), a second Ctrl-C
    raises KeyboardInterrupt and does not end the process.
    """
    stop = Interrupt(embedded)
    processes.end_with_parent()
    if processes.world_size() == 1:
        gpus = [] if settings.device == "cpu" else processes.gpus(settings.devices)
        if gpus and settings.nproc > 1:
            raise errors.ConfigError(
                f"--nproc {settings.nproc}: works on a CPU only, and this machine has GPUs; choose "
                "GPUs with --devices, or take --device cpu"
            )
        count = max(len(gpus), settings.nproc)
        if count > 1:
            return _start_processes(settings, arguments, make_plan, force, count, gpus, stop)
        if gpus:
            os.environ.update(FLAGS_selected_gpus=str(gpus[0]))  # the one that Paddle calls "gpu"
    with peers.joined():
        return _start(settings, arguments, make_plan, force, stop)


def _start(
    settings: RunSettings,
    arguments: Sequence[str],
    make_plan: MakePlan,
    force: bool,
    stop: Interrupt,
) -> Ended:
    """Carry out the run in this process, rank 0 in its folder."""
    if processes.rank():
        log = logbook.Silent()
        status, result = _run(make_plan(settings, fetch=False), log, stop)
        return Ended(status, log.folder, result)
    with claim(settings, force) as begin:
        if begin.result is not None:
            errors.tell(complete(begin))
            if processes.world_size() == 1:
                return Ended(0, begin.folder, begin.result)
        plan = plan_of(settings, begin, make_plan, force)
        _require_steps(plan)
        status, result = _run_in_folder(plan, arguments, force, stop)
        return Ended(status, begin.folder, result, stop.signal)


def _require_steps(plan: Plan) -> None:
    """Raise `ConfigError` if --force would only write new settings over a complete run's."""
    newest = next(iter(plan.start.checkpoints), None)
    if newest is None or newest.elsewhere or plan.start.result is not None:
        return
    ended = result_of(plan.start.folder, plan.settings)
    if ended is not None and newest.progress.step >= plan.schedule.steps:
        raise errors.ConfigError(
            f"{plan.start.folder}: this run is complete after {newest.progress.step} steps, so "
            "--force has nothing to resume; take another --name, or more --steps"
        )


def _run_in_folder(
    plan: Plan, arguments: Sequence[str], force: bool, stop: Interrupt
) -> tuple[int, dict[str, Any] | None]:
    """Write the run's command, settings and plan into its folder, and carry it out."""
    described, folder = plan.describe(), plan.start.folder
    texts = [folder / name for name in (CONFIG, PLAN, RESULT)]
    new = not texts[0].exists()
    with logbook.Logbook(folder) as log:
        command = shlex.join([*plan.settings.prog.split(), *arguments])
        before = {path: path.read_bytes() for path in texts if path.exists()}
        if (new or force or not plan.start.checkpoints) and plan.start.result is None:
            (folder / RESULT).unlink(missing_ok=True)
            title = " ".join(command.splitlines())
            files.write_text(folder / CONFIG, f"# {title}\n{to_yaml(plan.settings)}")
            files.write_text(folder / PLAN, files.to_json(plan.to_dict()))
        if plan.skipped:
            lines = "".join(f"{line}\n" for line in plan.skipped)
            files.write_text(folder / "skipped.txt", lines)
        log.say(f"{command}\n{described}")
        try:
            return _run(plan, log, stop)
        except (errors.ConfigError, errors.CheckpointError):
            if new:  # such as a missing GPU: the run has done nothing yet
                forget(folder)
            for path, content in before.items():  # such as another network: --force was refused
                files.write(path, methodcaller("write", content))
            raise
        except Exception as error:
            log.say(f"{type(error).__name__}: {error}", console=False)
            raise


def _run(plan: Plan, log: logbook.Logbook, stop: Interrupt) -> tuple[int, dict[str, Any] | None]:
    peers.meet(_facts(plan))
    with log.timed("loading Paddle"), stop.at_once(), held(Signals.SIGTERM):
        import paddle  # takes seconds, and then prints a stack of C++ on SIGTERM

        from bit_paddle.training import run

        paddle.disable_signal_handler()
    return run.run(plan, log, stop)


def _facts(plan: Plan) -> dict[str, Any]:
    """Return what must be the same in all processes, wherever they run."""
    flags = {
        f"--{name}": getattr(plan.settings, name)
        for name, item in fields_of(type(plan.settings)).items()
        if item.metadata["affects_result"] or name in _SAME
    }
    versions = {"bit_paddle": __version__, "Paddle": environment.paddle()}
    return {**versions, **flags, **plan.data_identity, "steps": plan.schedule.steps}


def plan_of(
    settings: RunSettings, begin: Start, make_plan: MakePlan, force: bool, fetch: bool = True
) -> Plan:
    """Return the plan of a run that starts from ``begin``; refuse changed data unless ``force``."""
    plan = make_plan(settings, begin, fetch)
    if not force:
        check_data(begin, plan.data_identity)
    return plan


def _start_processes(
    settings: RunSettings,
    arguments: Sequence[str],
    make_plan: MakePlan,
    force: bool,
    count: int,
    gpus: Sequence[int],
    stop: Interrupt,
) -> Ended:
    """Run `start` in ``count`` processes; configuration errors are raised before any is spawned."""
    with claim(settings, force) as begin:
        if begin.result is not None:
            errors.tell(complete(begin))
            return Ended(0, begin.folder, begin.result)
        plan_of(settings, begin, make_plan, force)
        if begin.damaged:  # they are renamed by now, so the first process does not meet them
            with logbook.Logbook(begin.folder) as log:
                log.say("".join(f"note: {note}\n" for note in begin.notes))
    command = [sys.executable, *settings.prog.split()[1:], *arguments]
    command += ["--traceback"] if "--traceback" in sys.argv else []
    status = processes.launch(command, count, gpus, stop)
    return Ended(status, begin.folder, result_of(begin.folder, settings), stop.signal)


def complete(begin: Start) -> str:
    """Return the message for a run that is already complete."""
    results = {
        name: value
        for name, value in begin.result.items()
        if name not in ("runs", "test", "pooled")
    }
    text = _listed(results)
    for model, values in begin.result.get("test", {}).items():
        text += f"; test images, {model} model: {_listed(values)}"
    return f"{begin.folder}: this run is complete: {text}. For a new run take another --name"


def _listed(results: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in results.items()
    )
