"""A training run from start to result: validate if due, save if due, make a step.

This module imports Paddle; `launch` imports it after the plan, so that mistakes are reported fast.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import paddle

from bit_paddle import errors
from bit_paddle.config import types as argtypes
from bit_paddle.models import published, weights
from bit_paddle.models.native import build
from bit_paddle.runs import checkpoints, results, snapshot
from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import device, files, processes
from bit_paddle.system.progress import progress_bar
from bit_paddle.system.signals import Interrupt, Interrupted
from bit_paddle.training import (
    description,
    distributed,
    memory,
    profiling,
    start,
    step,
    testing,
)
from bit_paddle.training.plan import Plan
from bit_paddle.training.task import Batch, Task


def run(plan: Plan, log: Logbook, stop: Interrupt) -> tuple[int, dict[str, Any] | None]:
    """Carry out ``plan``; return the exit status, and the result or None if the run stopped early.

    ``stop`` is entered here. A signal that it catches ends the run early, with a checkpoint.
    """
    with log.timed("loading Paddle"), stop.at_once():
        task = plan.task(log, stop)  # which imports Paddle
        device_name = device.select_device(plan.settings.device, plan.settings.deterministic)
        amp = device.amp_for(device_name, plan.settings.amp)
        distributed.join()  # from here on, all ranks must call the same collectives
        amp = distributed.amp_of_all(amp)
    with stop:
        if not distributed.from_first([plan.start.result is None])[0]:
            return 0, plan.start.result or {}
        try:
            training = TrainingRun(plan, task, log, stop, device_name, amp)
        except Interrupted:  # a compiler at work was ended
            log.say(f"{stop.signal.name}: ending before the first step of this process")
            return stop.exit_status, None
        return _carry_out(training, stop)


def _carry_out(training: TrainingRun, stop: Interrupt) -> tuple[int, dict[str, Any] | None]:
    try:
        training.train()
    except Interrupted:
        return training.interrupted(), None
    except Exception as error:
        training.save_after(error)
        raise
    finally:
        training.close()
    result = training.finish()
    return 0 if processes.rank() else stop.exit_status, result  # not 0 after a late signal


class TrainingRun:
    """The state of a run (model, optimizer, progress) and the parts of its loop."""

    def __init__(
        self, plan: Plan, task: Task, log: Logbook, stop: Interrupt, device_name: str, amp: str
    ):
        self.plan, self.task, self.log, self.stop, self.amp = plan, task, log, stop, amp
        settings, self.world_size = plan.settings, processes.world_size()
        with log.timed("preparing operators"), stop.raising():
            operators, operators_name = build.choose(device_name, amp, log.say)
        with log.timed("loading the model"):
            begun = start.begin(plan, task, amp, operators, log)
            self.model, self.optimizer, self.sums = begun.model, begun.optimizer, begun.sums
            self.progress = begun.progress
        with log.timed("trying micro-batches"):
            new = [] if self.progress.step else self.sums.own * len(self.optimizer.slots)
            known = begun.known_split
            self.batch_split = memory.find_split(
                plan, task, device_name, known, self.model, new, log
            )
        if settings.shard and self.world_size == 1:
            log.say("note: --shard has no effect with one process")
        evaluated = min(self.progress.evaluated, plan.schedule.steps - 1)  # the last is repeated
        log.rewind(self.progress.step, evaluated)
        where = f"Paddle {paddle.__version__} on {device_name}"
        log.say(description.headline(settings.batch, where, amp, self.world_size, self.batch_split))
        log.say(f"operators: {operators_name}")
        self._begun, self._validated = self.progress.step, None
        self._is_best, self._test = False, {}  # whether the model is the best; testing.measure
        self._saver, self._profile = None, None
        if processes.rank() == 0:
            if settings.save:
                interval = argtypes.interval(settings.save_every)
                self._saver = checkpoints.Saver(
                    log.folder, settings.keep, interval, log, self.progress.step
                )
            if settings.profile:
                self._profile = profiling.Profile(settings.profile, log)
        self._batches = self.task.batches(self.progress.step)

    # --- The loop -------------------------------------------------------------------------------

    def train(self) -> None:
        """Make all remaining steps; then save, validate and test."""
        steps = self.plan.schedule.steps
        if self.progress.step < steps:
            self.task.prepare(self.model, self.batch_split)
        with progress_bar(desc="training", total=steps, initial=self.progress.step) as bar:
            while self.progress.step < steps:
                self.validate_if_due()
                self.save_if_due()
                bar.set_postfix_str(self.step(), refresh=False)
                bar.update()
            if self._profile is not None:
                self._profile.close()
            self.save()  # validation may take long
            self.validate()
            self.test()

    def validate_if_due(self) -> None:
        """Validate every --eval_every steps, unless the run resumes just after a validation."""
        at, every = self.progress.step, self.plan.settings.eval_every
        if every and at and at % every == 0 and self.progress.evaluated != at:
            self.validate()

    def save_if_due(self) -> None:
        """Save a checkpoint every --save_every; with --shard, all ranks must call this."""
        due = self._saver is not None and self._saver.due(self.progress.step)
        if distributed.from_first([due])[0] if self.plan.settings.shard else due:
            self.save()

    def step(self) -> str:
        """Make one optimizer step on the next batch; return its loss, rate and speed as text."""
        settings, at, started = self.plan.settings, self.progress.step, time.perf_counter()
        with self.log.timed("waiting for data"), profiling.part("waiting for data"):
            batch = next(self._batches)
        lr = self.plan.schedule.learning_rate(at, settings.base_lr)
        loss_of, self.optimizer.made = self.task.loss_of(batch), at
        loss, nonfinite, before = None, 0, self.progress
        while loss is None:
            try:
                with self.log.timed("training"):
                    loss = step.update(
                        self.model,
                        self.optimizer,
                        self.sums,
                        batch.micro_batches(self.batch_split),
                        loss_of,
                        lr,
                        self.progress.loss_scale if self.amp == "fp16" else 1.0,
                        self.stop.checked,
                    )
            except errors.OutOfMemoryError:
                self.batch_split = memory.split_further(self.plan, self.batch_split)
                memory.release(self.model)
                self.log.say(
                    f"step {at + 1}: out of memory; retried in {self.batch_split} micro-batches"
                )
            except errors.GradientOverflow as error:
                halved = self.progress.loss_scale / 2
                self.progress = replace(self.progress, loss_scale=halved, clean=0)
                self.log.say(f"step {at + 1}: {error}; retried with half of it", console=False)
            except errors.NonFiniteError as error:
                self.progress = before  # a smaller loss scale did not help: restore the old one
                loss, nonfinite = np.nan, before.nonfinite + 1
                self._skip(error, batch, lr, nonfinite)
        self.progress = replace(self.progress, step=at + 1, nonfinite=nonfinite)
        if self.amp == "fp16" and not nonfinite:
            self.progress = self.progress.counted()
        speed = len(batch.indices) / (time.perf_counter() - started)
        self.log.metrics("train", at + 1, loss=loss, lr=lr, images_per_second=round(speed, 2))
        line = f"loss {loss:.5f}, lr {lr:.3g}, {speed:.1f} images/s"
        self.log.progress(f"step {at + 1} of {self.plan.schedule.steps}: {line}")
        if self._profile is not None:
            self._profile.step()
        return line

    def _skip(self, error: errors.NonFiniteError, batch: Batch, lr: float, nonfinite: int) -> None:
        """Log a skipped update; raise after more than --skip_nonfinite in a row."""
        names = self.task.names(batch)
        self.log.say(f"the batch of step {self.progress.step}: {', '.join(names)}", console=False)
        more = f" and {len(names) - 8} more, in train.log" if len(names) > 8 else ""
        fault = errors.NonFiniteError(
            f"step {self.progress.step}, learning rate {lr:g}: {error}; the update was skipped. "
            f"Try a smaller --base_lr. The batch: {', '.join(names[:8])}{more}"
        )
        if nonfinite > self.plan.settings.skip_nonfinite:
            raise fault from None
        self.log.say(f"warning: {fault}")

    def validate(self) -> None:
        """Validate on all validation images; log the metrics; save the model if it is the best."""
        at = self.progress.step
        last = at == self.plan.schedule.steps
        measured = self.task.validate(self.model, self.batch_split, last)
        self.log.metrics("val", at, **measured.summary())
        self.log.say(f"step {at}: validation: {measured}")
        self._is_best, self._validated = measured.score > self.progress.best, measured
        best = max(self.progress.best, measured.score)
        self.progress = replace(self.progress, evaluated=at, best=best)
        if self._is_best:
            self.save(best=True)

    def test(self) -> None:
        """Measure the test images, if there are any, with the best and the last model."""
        if not self.plan.tested:
            return
        best = None
        if processes.rank() == 0 and not self._is_best:
            if self._saver is not None:
                self._saver.wait()
            best = self.log.folder / checkpoints.CHECKPOINTS / checkpoints.BEST
        measure = partial(self.task.test, self.model, self.batch_split)
        self._test = testing.measure(self.model, self.progress.step, best, measure, self.log)

    def save(self, best: bool = False) -> None:
        """Save a checkpoint of this step; a thread writes it while training continues.

        With --shard, all ranks must call this: each holds the momentum of its own parameters.
        """
        state = self.optimizer.state()
        gathered = {slot: self.sums.gathered(tensors) for slot, tensors in state.items()}
        if self._saver is not None:
            with self.log.timed("copying for a checkpoint"):
                arrays = snapshot.snapshot(self.model, gathered)
            write = partial(snapshot.write_snapshot, arrays=arrays, notes=self._notes())
            self._saver.save(self.progress.step, write, best)
        elif self.plan.settings.shard and self.plan.settings.save:
            deque(chain.from_iterable(gathered.values()), maxlen=0)

    def _notes(self) -> dict[str, Any]:
        return start.checkpoint_notes(self.plan, self.progress, self.batch_split, self.amp)

    # --- The end --------------------------------------------------------------------------------

    def interrupted(self) -> int:
        """Save and log it, after a signal to this rank or another; return the exit status."""
        if self.progress.step > self._begun:
            self.save()
        ending = (
            f"{self.stop.signal.name if self.stop.signal else 'Another process'}: ending after "
            f"step {self.progress.step} of {self.plan.schedule.steps}"
        )
        if self._saver is not None:
            self._saver.close()
            if self._saver.failure:
                raise errors.WriteError(f"{ending}; not saved: {self._saver.failure}") from None
            ending += "; the same command resumes from there"
        self.log.say(ending)
        return self.stop.exit_status or 128 + signal.SIGTERM

    def save_after(self, error: Exception) -> None:
        """Save the steps made before ``error``, unless it interrupted an update halfway."""
        all_ranks = isinstance(error, (errors.NonFiniteError, errors.OutOfMemoryError))
        progressed = self.optimizer.whole and self.progress.step > self._begun
        if progressed and (all_ranks or not self.plan.settings.shard):
            self.save()

    def close(self) -> None:
        """End the threads that read images and write checkpoints."""
        try:
            self._batches.close()
        finally:
            if self._saver is not None:
                with self.log.timed("saving"):
                    self._saver.close()

    def finish(self) -> dict[str, Any]:
        """Write the model, then the result, which marks the run as complete; return it."""
        result = {"steps": self.progress.step, **self._validated.summary()}
        result.update({"test": self._test} if self._test else {})
        if processes.rank():
            return result
        log, missing = self.log, []
        try:
            if self._saver is not None:
                path = log.folder / published.MODEL
                with log.timed("saving"):
                    weights.save_npz(self.model, path, self._notes())
                log.say(f"model after step {self.progress.step} saved to {path}")
                missing += [self._saver.failure] if self._saver.failure else []
            if device.peak_memory():
                log.say(f"GPU memory held, at most: {device.peak_memory() / 2**30:.2f} GiB")
            log.say(f"{log.timings()}\nlogs are in {log.folder}")
            missing += log.missing()
            if not missing:
                files.write_text(log.folder / results.RESULT, files.to_json(result))
        except errors.WriteError as error:
            missing += [str(error), *log.missing()]
        if missing:
            lines = "".join(f"\n  {name}" for name in missing)
            saved = checkpoints.checkpoint_files(log.folder)
            then = "resumes from the last checkpoint" if saved else "starts from the beginning"
            raise errors.WriteError(
                f"all steps are done, but some files could not be written:{lines}\nMake room on "
                f"the disk; then the same command {then}"
            )
        return result
