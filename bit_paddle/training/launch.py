"""Start a run: take its folder, make the plan, start its processes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bit_paddle import errors
from bit_paddle.config.settings import Settings, to_yaml
from bit_paddle.runs import logbook
from bit_paddle.runs.folder import CONFIG, RESULT, Start, check_data, claim, forget, result
from bit_paddle.system import files, processes
from bit_paddle.system.signals import at_once
from bit_paddle.training.plan import Plan, make_plan

PROG = "python -m bit_paddle.train"


def start(
    settings: Settings, arguments: Sequence[str], force: bool = False
) -> tuple[int, dict[str, Any] | None]:
    """Carry out one run in its folder; return the exit status, and the result if it is complete.

    ``arguments`` are the command's, of which ``settings`` were made.
    """
    if processes.world_size() == 1:
        gpus = [] if settings.device == "cpu" else processes.gpus(settings.devices)
        if gpus and settings.nproc > 1:
            raise errors.ConfigError(
                f"--nproc {settings.nproc}: is for processors, but there are GPUs; choose some "
                "with --devices, or take --device cpu"
            )
        count = max(len(gpus), settings.nproc)
        if count > 1:
            return _start_processes(settings, arguments, force, count, gpus)
        if gpus:
            os.environ.update(FLAGS_selected_gpus=str(gpus[0]))  # what Paddle takes as "gpu"
    processes.end_with_parent()
    if processes.rank():
        return _run(make_plan(settings, fetch=False), logbook.Silent())
    with claim(settings, force) as begin:
        if begin.result is not None:
            print(complete(begin))
            if processes.world_size() == 1:
                return 0, begin.result
        plan = _plan(settings, begin, force)
        described, folder = plan.describe(), begin.folder
        new = not (folder / CONFIG).exists()
        with logbook.Logbook(folder) as log:
            command = shlex.join([*PROG.split(), *arguments])
            if (new or force) and begin.result is None:
                (folder / RESULT).unlink(missing_ok=True)
                title = " ".join(command.splitlines())
                files.write_text(folder / CONFIG, f"# {title}\n{to_yaml(settings)}")
            if plan.skipped:
                lines = "".join(f"{one}\n" for one in plan.skipped)
                files.write_text(folder / "skipped.txt", lines)
            log.say(f"{command}\n{described}")
            try:
                return _run(plan, log)
            except (
                errors.ConfigError,
                errors.CheckpointError,
            ):  # such as a GPU that is not there: nothing has been done
                if new:
                    forget(folder)
                raise
            except Exception as error:
                log.say(f"{type(error).__name__}: {error}", console=False)
                raise


def _run(plan: Plan, log: logbook.Logbook) -> tuple[int, dict[str, Any] | None]:
    with log.timed("loading Paddle"), at_once():
        from bit_paddle.training import run  # not above: it takes seconds
    with ExitStack() as signals:
        return run.run(plan, log, signals)


def _plan(settings: Settings, begin: Start, force: bool, fetch: bool = True) -> Plan:
    plan = make_plan(settings, begin, fetch)
    if not force:
        check_data(begin, plan.data_identity)
    return plan


def _start_processes(
    settings: Settings,
    arguments: Sequence[str],
    force: bool,
    count: int,
    gpus: Sequence[int],
) -> tuple[int, dict[str, Any] | None]:
    """Do as `start` does, by ``count`` processes; mistakes are answered before there are any."""
    with claim(settings, force) as begin:
        if begin.result is not None:
            print(complete(begin))
            return 0, begin.result
        _plan(settings, begin, force)
    command = [sys.executable, "-m", "bit_paddle.train", *arguments]
    command += ["--traceback"] if "--traceback" in sys.argv else []
    status = processes.launch(command, count, gpus)
    return status, result(begin.folder, settings)


def complete(begin: Start) -> str:
    values = (f"{name} {value}" for name, value in begin.result.items() if name != "runs")
    return f"{begin.folder}: this run is complete: {', '.join(values)}"
