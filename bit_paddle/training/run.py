"""A whole run, from its start to its result."""

from __future__ import annotations

import platform
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bit_paddle import __version__, errors
from bit_paddle.config import types as argtypes
from bit_paddle.config.settings import to_dict
from bit_paddle.data import loader
from bit_paddle.models import published
from bit_paddle.runs import checkpoints, folder, logbook
from bit_paddle.system import environment, files, processes
from bit_paddle.system.progress import progress_bar
from bit_paddle.system.signals import Interrupt, Interrupted, at_once
from bit_paddle.training import profiling
from bit_paddle.training.plan import Plan

if TYPE_CHECKING:
    from bit_paddle.inference import metrics
from bit_paddle.training.step import loss_of, update

# --- The run ------------------------------------------------------------------------------------


def run(plan: Plan, log: logbook.Logbook, signals: ExitStack) -> tuple[int, dict[str, Any] | None]:
    """Carry out ``plan`` from its start on; return the exit status, and the result if it is there.

    There is none if a signal has ended the run. They are heeded until ``signals`` is closed.
    """
    settings, schedule, crop = plan.settings, plan.schedule, plan.resolution.crop
    rank, world_size = processes.rank(), processes.world_size()

    with log.timed("loading Paddle"), at_once():
        import paddle

        from bit_paddle.models import weights
        from bit_paddle.models.native import build
        from bit_paddle.runs import snapshot
        from bit_paddle.system.device import amp_for, peak_memory, select_device
        from bit_paddle.training import distributed, memory, validation
        from bit_paddle.training.start import begin

        # --- Device and processes: from here on all processes do the same ---
        device = select_device(settings.device, settings.deterministic)
        amp = amp_for(device, settings.amp)
        distributed.join()
        amp = distributed.amp_of_all(amp)
    stop = signals.enter_context(Interrupt())
    if not distributed.from_first([plan.start.result is None])[0]:
        return 0, plan.start.result or {}
    with log.timed("loading the model"):
        model, optimizer, sums, progress, known_split = begin(plan, amp, log)
        operators, named = build.choose(device, amp, log.say)
        model.compute_with(operators)
    with log.timed("trying micro-batches"):
        moved = [] if progress.step else sums.own
        loss = partial(loss_of, name=settings.loss)
        batch_split = memory.find_split(plan, device, known_split, model, loss, moved, log)
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
            progress_bar(desc="validation", unit="img", total=len(plan.data.val)) as bar,
        ):
            tally = validation.evaluate(model, stop.checked(batches), bar.update, settings.loss)
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
            "settings": to_dict(settings),
            "progress": asdict(progress),
            "data": plan.data_identity,
            "batch_split": batch_split,
            "processes": world_size,
            "amp": amp,
        }

    saver = None
    if settings.save and rank == 0:
        interval = argtypes.interval(settings.save_every)
        saver = checkpoints.Saver(log.folder, settings.keep, interval, log, progress.step)

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
                arrays = snapshot.snapshot(model, velocities)
            write = partial(snapshot.write_snapshot, arrays=arrays, notes=notes())
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
        with progress_bar(desc="training", total=schedule.steps, initial=progress.step) as bar:
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
                if distributed.from_first([save_due])[0] if settings.shard else save_due:
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
                        batch_split = memory.split_further(plan, batch_split)
                        memory.release(model)
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
            path = log.folder / published.MODEL
            with log.timed("saving"):
                weights.save_npz(model, path, notes())
            log.say(f"model after step {progress.step} saved to {path}")
            missing += [saver.failure] if saver.failure else []
        if peak_memory():
            log.say(f"GPU memory held, at most: {peak_memory() / 2**30:.2f} GiB")
        log.say(f"{log.timings()}\nlogs are in {log.folder}")
        missing += log.missing()
        if not missing:
            files.write_text(log.folder / folder.RESULT, files.to_json(result))
    except errors.WriteError as error:
        missing += [str(error), *log.missing()]
    if missing:
        lines = "".join(f"\n  {one}" for one in missing)
        kept = checkpoints.checkpoint_files(log.folder)
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
