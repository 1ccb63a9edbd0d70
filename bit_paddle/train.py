"""Fine-tune BiT: ``python -m bit_paddle.train --model BiT-M-R50x1 --dataset cifar10``.

This file tells a run from top to bottom: one update (`update`), then all of them (`run`), by a plan
made before (`bit_paddle.planning`). Paddle is imported inside `run` and not above, because it takes
seconds to load: help, a bad flag, a missing file and broken data are answered before that.
"""

from __future__ import annotations

import os
import platform
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bit_paddle import (
    __version__,
    argtypes,
    catalog,
    cli,
    config,
    environment,
    errors,
    files,
    logbook,
    processes,
    profiling,
    repeats,
    runs,
    saving,
)
from bit_paddle.data import loader, readers
from bit_paddle.interrupt import Interrupt, Interrupted, at_once, heed_notice
from bit_paddle.planning import Plan, make_plan

if TYPE_CHECKING:
    from paddle import Tensor

    from bit_paddle import metrics
    from bit_paddle.models import ResNetV2
    from bit_paddle.parallel import GradientSums
    from bit_paddle.sgd import Momentum

PROG = "python -m bit_paddle.train"


# --- One update ---------------------------------------------------------------------------------


def update(
    model: ResNetV2,
    optimizer: Momentum,
    sums: GradientSums,
    micro_batches: Iterable[loader.MicroBatch],
    images: int,
    lr: float,
    lam: float = 1.0,
    loss_scale: float = 1.0,
    checked: Callable[[Iterator], Iterator] = iter,
    loss_name: str = "softmax",
) -> float:
    """Make one optimizer step with the mean loss over ``images``, of all processes; return that.

    ``micro_batches`` are this process's share of them, mixed by ``lam``. Their gradients, weighted
    by their sizes, add up to that of the mean loss. ``loss_scale``, a power of two, multiplies the
    gradients while they are in half precision. ``checked`` goes through the micro-batches, and may
    raise `Interrupted` before one. ``loss_name`` is one of `mixup.LOSSES`.

    Raises, in all processes and with the weights as they were: `Interrupted` if one of them was
    told to end before it had seen all of its micro-batches, `OutOfMemoryError`, `NonFiniteError` if
    the loss or a gradient is not a finite number, and `GradientOverflow` for the latter where a
    lower ``loss_scale`` may do.
    """
    from bit_paddle import parallel, sgd

    losses: list[Tensor] = []
    try:
        with ExitStack() as stack:
            # --- All passes but the last one's way back ---
            fault: type[BaseException] | None = None
            try:
                with parallel.memory_errors():
                    last_pass = stack.enter_context(model.standardized_once())
                    for part, last in checked(_with_last(micro_batches)):
                        if last:
                            last_pass()
                        with profiling.part("forward pass"):
                            losses.append(
                                _loss(model, part, lam, loss_name) * (len(part.labels) / images)
                            )
                        if not last:
                            with profiling.part("backward pass"):
                                (losses[-1] * loss_scale).backward()
            except (Interrupted, MemoryError) as error:
                fault = Interrupted if isinstance(error, Interrupted) else MemoryError
                losses.clear()
            (loss,) = parallel.agree([sum(map(float, losses))], fault)
            if not np.isfinite(loss):
                raise errors.NonFiniteError(f"the loss is {loss}")

            # --- Its way back, beside which the sums over all processes are made ---
            with sums.exchanged() as give_up:
                try:
                    with parallel.memory_errors(), profiling.part("backward pass"):
                        if losses:
                            (losses[-1] * loss_scale).backward()
                except MemoryError:
                    fault = MemoryError
                    losses.clear()
                if fault is not None:  # out of the handler, whose error may hold memory
                    give_up()
        bad = sgd.non_finite(model.parameters())
        (count,) = parallel.agree([sum(bad)], fault)
        if count:
            if loss_scale > 1:
                raise errors.GradientOverflow(f"gradients overflow at a loss scale of {loss_scale}")
            named = [name for name, _ in model.named_parameters()]
            names = [name for name, found in zip(named, parallel.total(bad)) if found][:3]
            raise errors.NonFiniteError(f"the gradient of {' and '.join(names)} is not finite")

        # --- The step ---
        if loss_scale != 1:
            sgd.unscale(model.parameters(), loss_scale)
        optimizer.set_lr(lr)
        with profiling.part("optimizer"):
            optimizer.step()
            sums.share_parameters()
    finally:
        losses.clear()  # activations hang on them
        optimizer.clear_grad(set_to_zero=False)
    return loss


def _with_last(parts: Iterable[loader.MicroBatch]) -> Iterator[tuple[loader.MicroBatch, bool]]:
    """Yield each of ``parts`` with whether it is the last one."""
    parts = iter(parts)
    part = next(parts, None)
    while part is not None:
        following = next(parts, None)
        yield part, following is None
        part = following


def _loss(model: ResNetV2, part: loader.MicroBatch, lam: float, name: str = "softmax") -> Tensor:
    """Return the mean loss over a micro-batch, mixed with its partners."""
    from bit_paddle import mixup, parallel

    images, loss = parallel.to_device(part.images), mixup.LOSSES[name]
    if lam == 1.0:
        return loss(model(images), part.labels)
    images = mixup.mix(images, parallel.to_device(part.partner_images), lam)
    return mixup.loss(model(images), part.labels, part.partner_labels, lam, loss)


# --- The run ------------------------------------------------------------------------------------


def run(plan: Plan, log: logbook.Logbook, signals: ExitStack) -> tuple[int, dict[str, Any] | None]:
    """Carry out ``plan`` from its start on; return the exit status, and the result if it is there.

    There is none if a signal has ended the run. They are heeded until ``signals`` is closed.
    """
    settings, schedule, crop = plan.settings, plan.schedule, plan.resolution.crop
    rank, world_size = processes.rank(), processes.world_size()

    with log.timed("loading Paddle"), at_once():
        import paddle

        from bit_paddle import checkpoint, fitting, metrics, parallel, starting
        from bit_paddle.native import build

        # --- Device and processes: from here on all processes do the same ---
        device = parallel.select_device(settings.device, settings.deterministic)
        amp = parallel.amp_for(device, settings.amp)
        parallel.join()
        amp = parallel.amp_of_all(amp)
    stop = signals.enter_context(Interrupt())
    if not parallel.from_first([plan.start.result is None])[0]:
        return 0, plan.start.result or {}
    with log.timed("loading the model"):
        model, optimizer, sums, progress, known_split = starting.begin(plan, amp, log)
        operators, named = build.choose(device, amp, log.say)
        model.compute_with(operators)
    with log.timed("trying micro-batches"):
        moved = [] if progress.step else sums.own
        loss_of = partial(_loss, name=settings.loss)
        batch_split = starting.find_split(plan, device, known_split, model, loss_of, moved, log)
    if settings.shard and world_size == 1:
        log.say("note: --shard changes nothing for one process")
    log.rewind(progress.step, min(progress.evaluated, schedule.steps - 1))  # the last is made anew
    log.say(
        f"bit_paddle {__version__}, Paddle {paddle.__version__} on {device}, "
        f"{environment.cpu_count()} processors{f' for each of {world_size}' * (world_size > 1)}; "
        f"{settings.batch} images a step, in {world_size * batch_split} "
        f"part{'s' * (world_size * batch_split > 1)}{f', in {amp}' * (amp != 'off')}\n"
        f"operators: {named}"
    )

    # --- What a run does beside training: it measures itself, and saves what it needs to go on ---
    def evaluate() -> metrics.Tally:
        """Measure the model on all validation images, and log it."""
        micro_batch = -(-settings.batch // (batch_split * world_size))
        batches = loader.evaluation_batches(
            plan.data.val, crop, micro_batch, settings.workers, plan.resize, rank, world_size
        )
        with (
            log.timed("validation"),
            logbook.progress_bar(desc="validation", unit="img", total=len(plan.data.val)) as bar,
        ):
            tally = metrics.evaluate(model, stop.checked(batches), bar.update, settings.loss)
        log.metrics("val", progress.step, **tally.summary())
        log.say(
            f"step {progress.step}: validation loss {tally.loss:.4f}, top-1 {tally.top1:.2%}, "
            f"top-5 {tally.top5:.2%} ({tally.images:,} images)"
        )
        return tally

    def notes() -> dict[str, Any]:
        return {
            "bit_paddle": __version__,
            "versions": {
                "paddle": paddle.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            "classes": list(plan.data.train.classes),
            "crop": crop,
            "resize": plan.resize,
            "steps": progress.step,
            "settings": config.to_dict(settings),
            "progress": asdict(progress),
            "data": plan.data_identity,
            "batch_split": batch_split,
            "processes": world_size,
            "amp": amp,
        }

    saver = None
    if settings.save and rank == 0:
        interval = argtypes.interval(settings.save_every)
        saver = saving.Saver(log.folder, settings.keep, interval, log, progress.step)

    def save(best: bool = False) -> None:
        """Save all that the run needs to go on from here, without waiting for the disk.

        With --shard by all processes, each of which has a part of it.
        """
        velocities = sums.gathered(optimizer.velocities())
        if saver is None:
            if settings.shard and settings.save:
                deque(velocities, maxlen=0)
        else:
            with log.timed("copying for a checkpoint"):
                arrays = checkpoint.snapshot(model, velocities)
            write = partial(checkpoint.write_snapshot, arrays=arrays, notes=notes())
            saver.save(progress.step, write, best)

    # --- Training ---
    batches = loader.training_batches(
        plan.data.train,
        plan.subset,
        plan.resolution,
        settings.batch,
        settings.seed,
        settings.workers,
        plan.flip,
        plan.mixup_alpha,
        plan.cache_bytes,
        progress.step,
        rank,
        world_size,
        plan.inception,
    )
    begun, tally = progress.step, None
    profile = profiling.Profile(settings.profile, log) if settings.profile and not rank else None
    try:
        with logbook.progress_bar(
            desc="training", total=schedule.steps, initial=progress.step
        ) as bar:
            while True:
                step, ended = progress.step, progress.step >= schedule.steps
                if ended:
                    if profile is not None:
                        profile.close()
                    save()  # validation may take long
                due = settings.eval_every and step and step % settings.eval_every == 0
                if (due or ended) and (progress.evaluated != step or ended):
                    tally = evaluate()
                    better = tally.top1 > progress.best
                    best = max(progress.best, tally.top1)
                    progress = replace(progress, evaluated=step, best=best)
                    if better:
                        save(best=True)
                if ended:
                    break
                save_due = saver is not None and saver.due(step)
                if parallel.from_first([save_due])[0] if settings.shard else save_due:
                    save()
                start = time.perf_counter()
                with log.timed("waiting for data"), profiling.part("waiting for data"):
                    batch = next(batches)
                lr = schedule.learning_rate(step, settings.base_lr)
                loss, nonfinite, before = None, 0, progress
                while loss is None:
                    try:
                        with log.timed("training"):
                            loss = update(
                                model,
                                optimizer,
                                sums,
                                batch.micro_batches(batch_split),
                                len(batch.indices),
                                lr,
                                batch.lam,
                                progress.loss_scale if amp == "fp16" else 1.0,
                                stop.checked,
                                settings.loss,
                            )
                    except errors.OutOfMemoryError:
                        batch_split = starting.split_further(plan, batch_split)
                        fitting.release(model)
                        log.say(
                            f"step {step + 1}: out of memory; made again in {batch_split} parts"
                        )
                    except errors.GradientOverflow as error:
                        progress = replace(progress, loss_scale=progress.loss_scale / 2, clean=0)
                        log.say(
                            f"step {step + 1}: {error}; made again at half of it", console=False
                        )
                    except errors.NonFiniteError as error:
                        progress = before  # no loss scale would do
                        loss, nonfinite = np.nan, progress.nonfinite + 1
                        names = [plan.data.train.name(index) for index in batch.indices]
                        log.say(f"the batch of step {step}: {', '.join(names)}", console=False)
                        fault = _non_finite(error, step, lr, names)
                        if nonfinite > settings.skip_nonfinite:
                            raise fault from None
                        log.say(f"warning: {fault}")
                progress = replace(progress, step=step + 1, nonfinite=nonfinite)
                if amp == "fp16" and not nonfinite:
                    progress = progress.counted()
                speed = len(batch.indices) / (time.perf_counter() - start)
                log.metrics("train", step + 1, loss=loss, lr=lr, images_per_second=round(speed, 2))
                line = f"loss {loss:.5f}, lr {lr:.3g}, {speed:.1f} images/s"
                log.say(f"step {step + 1}: {line}", console=False)
                bar.set_postfix_str(line, refresh=False)
                bar.update()
                if profile is not None:
                    profile.step()
    except Interrupted:
        if progress.step > begun:
            save()
        ending = (
            f"{stop.signal.name if stop.signal else 'Another process'}: ending after step "
            f"{progress.step} of {schedule.steps}"
        )
        if saver is not None:
            saver.close()
            if saver.failure:
                raise errors.WriteError(f"{ending}; not saved: {saver.failure}") from None
            ending += "; the same command goes on from there"
        log.say(ending)
        return stop.exit_status or 128 + signal.SIGTERM, None
    except Exception as error:  # what has been learned is kept, unless an update was cut in two
        together = isinstance(error, (errors.NonFiniteError, errors.OutOfMemoryError))
        if optimizer.whole and progress.step > begun and (together or not settings.shard):
            save()
        raise
    finally:
        batches.close()
        if saver is not None:
            with log.timed("saving"):
                saver.close()

    # --- The end: the model for use, and the result, which says that the run is complete ---
    result = {"steps": progress.step, **tally.summary()}
    if rank:
        return 0, result
    missing = []
    try:
        if saver is not None:
            path = log.folder / catalog.MODEL
            with log.timed("saving"):
                checkpoint.save_npz(model, path, notes())
            log.say(f"model after step {progress.step} saved to {path}")
            missing += [saver.failure] if saver.failure else []
        if parallel.peak_memory():
            log.say(f"GPU memory held, at most: {parallel.peak_memory() / 2**30:.2f} GiB")
        log.say(f"{log.timings()}\nlogs are in {log.folder}")
        missing += log.missing()
        if not missing:
            files.write_text(log.folder / runs.RESULT, files.to_json(result))
    except errors.WriteError as error:
        missing += [str(error), *log.missing()]
    if missing:
        lines = "".join(f"\n  {one}" for one in missing)
        kept = runs.checkpoint_files(log.folder)
        then = "goes on from the last checkpoint" if kept else "begins again"
        raise errors.WriteError(
            f"the last step is done, but not all of it could be written:{lines}\nMake room, and "
            f"the same command {then}"
        )
    return stop.exit_status, result  # a signal may have come after the last step


def _non_finite(
    error: errors.NonFiniteError, step: int, lr: float, names: Sequence[str]
) -> errors.NonFiniteError:
    """Return ``error`` with where it happened: the step, the learning rate, the images' names."""
    return errors.NonFiniteError(
        f"step {step}, learning rate {lr:g}: {error}; the update was not made. Try a smaller "
        f"--base_lr. The batch: {', '.join(names[:8])}"
        f"{f' and {len(names) - 8} more, in train.log' if len(names) > 8 else ''}"
    )


# --- The command --------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    heed_notice()
    settings, request = cli.parse(arguments, PROG, readers.find)
    if request.dry_run:
        with runs.claim(settings, request.force, dry=True) as begin:
            if begin.result is not None:
                print(_complete(begin))
            else:
                print(_plan(settings, begin, request.force, fetch=False).describe())
        return 0
    if settings.repeats > 1 and processes.world_size() > 1:
        raise errors.ConfigError(
            "--repeats: is not for a launcher of processes; let --devices or --nproc start them"
        )
    if settings.repeats > 1:
        return repeats.repeat(settings, arguments, start, request.force)
    return start(settings, arguments, request.force)[0]


def start(
    settings: config.Settings, arguments: Sequence[str], force: bool = False
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
        with ExitStack() as signals:
            return run(make_plan(settings, fetch=False), logbook.Silent(), signals)
    with runs.claim(settings, force) as begin:
        if begin.result is not None:
            print(_complete(begin))
            if processes.world_size() == 1:
                return 0, begin.result
        plan = _plan(settings, begin, force)
        described, folder = plan.describe(), begin.folder
        new = not (folder / runs.CONFIG).exists()
        with logbook.Logbook(folder) as log:
            command = shlex.join([*PROG.split(), *arguments])
            if (new or force) and begin.result is None:
                (folder / runs.RESULT).unlink(missing_ok=True)
                title = " ".join(command.splitlines())
                files.write_text(folder / runs.CONFIG, f"# {title}\n{config.to_yaml(settings)}")
            if plan.skipped:
                lines = "".join(f"{one}\n" for one in plan.skipped)
                files.write_text(folder / "skipped.txt", lines)
            log.say(f"{command}\n{described}")
            try:
                with ExitStack() as signals:
                    return run(plan, log, signals)
            except (
                errors.ConfigError,
                errors.CheckpointError,
            ):  # such as a GPU that is not there: nothing has been done
                if new:
                    runs.forget(folder)
                raise
            except Exception as error:
                log.say(f"{type(error).__name__}: {error}", console=False)
                raise


def _plan(settings: config.Settings, begin: runs.Start, force: bool, fetch: bool = True) -> Plan:
    plan = make_plan(settings, begin, fetch)
    if not force:
        runs.check_data(begin, plan.data_identity)
    return plan


def _start_processes(
    settings: config.Settings,
    arguments: Sequence[str],
    force: bool,
    count: int,
    gpus: Sequence[int],
) -> tuple[int, dict[str, Any] | None]:
    """Do as `start` does, by ``count`` processes; mistakes are answered before there are any."""
    with runs.claim(settings, force) as begin:
        if begin.result is not None:
            print(_complete(begin))
            return 0, begin.result
        _plan(settings, begin, force)
    command = [sys.executable, "-m", "bit_paddle.train", *arguments]
    command += ["--traceback"] if "--traceback" in sys.argv else []
    status = processes.launch(command, count, gpus)
    return status, runs.result(begin.folder, settings)


def _complete(begin: runs.Start) -> str:
    values = (f"{name} {value}" for name, value in begin.result.items() if name != "runs")
    return f"{begin.folder}: this run is complete: {', '.join(values)}"


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
