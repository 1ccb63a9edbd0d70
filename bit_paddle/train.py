"""Fine-tune BiT: ``python -m bit_paddle.train --model BiT-M-R50x1 --dataset cifar10``.

This file tells a run from top to bottom: one update (`update`), then all of them (`run`), by a plan
made before (`bit_paddle.planning`). Paddle is imported inside `run` and not above, because it takes
seconds to load: help, a bad flag, a missing file and broken data are answered before that.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bit_paddle import __version__, config, environment, errors, files, hyperrule, logbook
from bit_paddle.data import loader, readers
from bit_paddle.interrupt import Interrupt
from bit_paddle.planning import Plan, make_plan

if TYPE_CHECKING:
    from paddle.optimizer import Optimizer

    from bit_paddle import metrics
    from bit_paddle.models import ResNetV2

PROG = "python -m bit_paddle.train"


# --- One update ---------------------------------------------------------------------------------


def update(
    model: ResNetV2,
    optimizer: Optimizer,
    micro_batches: Sequence[loader.MicroBatch],
    partners: Sequence[np.ndarray],
    lam: float,
    lr: float,
) -> list[float]:
    """Make one optimizer step and return the loss of each micro-batch.

    The gradients of the micro-batches, weighted by their sizes, add up to that of the mean loss
    over all their images. ``partners`` and ``lam`` are MixUp's. Raises `NonFiniteError`, with the
    weights as they were, if a loss is not a finite number.
    """
    from bit_paddle import mixup, parallel

    total = sum(len(batch.labels) for batch in micro_batches)
    losses = []
    with model.standardized_once():
        for batch, partner in zip(micro_batches, partners):
            images = mixup.mix(parallel.to_device(batch.images), partner, lam)
            loss = mixup.loss(model(images), batch.labels, partner, lam)
            (loss * (len(batch.labels) / total)).backward()
            losses.append(loss)
    losses = [float(loss) for loss in losses]
    if not np.isfinite(losses).all():
        optimizer.clear_grad()
        raise errors.NonFiniteError(f"the loss is {losses}")
    optimizer.set_lr(lr)
    optimizer.step()
    optimizer.clear_grad()
    return losses


# --- The run ------------------------------------------------------------------------------------


def run(plan: Plan, log: logbook.Logbook) -> tuple[int, metrics.Tally]:
    """Carry out ``plan``; return the command's exit status and the final validation."""
    settings, schedule, crop = plan.settings, plan.schedule, plan.resolution.crop

    with log.timed("loading Paddle"):
        import paddle

        from bit_paddle import checkpoint, metrics, mixup, parallel, sgd

    # --- Device ---
    device = parallel.select_device(settings.device)
    batch_split = plan.batch_split(parallel.activation_memory(device))
    micro_batch = -(-settings.batch // batch_split)
    log.say(
        f"bit_paddle {__version__}, Paddle {paddle.__version__} on {device}, "
        f"{environment.cpu_count()} processors; {settings.batch} images a step, in {batch_split} "
        f"part{'s' if batch_split > 1 else ''}"
    )

    # --- Model: the checkpoint's weights, or random ones; the head is new and zero either way ---
    classes = plan.data.train.classes
    with log.timed("loading the model"):
        if plan.checkpoint is None:
            model = checkpoint.create_model(plan.settings.model, len(classes), seed=settings.seed)
        else:
            model = checkpoint.create_model(plan.checkpoint, len(classes))
    optimizer = sgd.Momentum(settings.base_lr, hyperrule.MOMENTUM, model.parameters())

    def evaluate(step: int) -> metrics.Tally:
        """Measure the model on all validation images, and log it."""
        batches = loader.evaluation_batches(plan.data.val, crop, micro_batch, settings.workers)
        with (
            log.timed("validation"),
            logbook.progress_bar(desc="validation", unit="img", total=len(plan.data.val)) as bar,
        ):
            tally = metrics.evaluate(model, batches, bar.update)
        log.metrics(
            "val", step, loss=tally.loss, top1=tally.top1, top5=tally.top5, images=tally.images
        )
        log.say(
            f"step {step}: validation loss {tally.loss:.4f}, top-1 {tally.top1:.2%}, "
            f"top-5 {tally.top5:.2%} ({tally.images:,} images)"
        )
        return tally

    def save(step: int) -> None:
        """Save the model as it is after ``step`` updates."""
        path = log.folder / "model.npz"
        notes = {
            "bit_paddle": __version__,
            "classes": list(classes),
            "crop": crop,
            "steps": step,
            "settings": config.to_dict(settings),
        }
        with log.timed("saving"):
            checkpoint.save_npz(model, path, notes)
        log.say(f"model after step {step} saved to {path}")

    # --- Training ---
    batches = loader.training_batches(
        plan.data.train,
        plan.subset,
        plan.resolution,
        settings.batch,
        batch_split,
        settings.seed,
        settings.workers,
        plan.flip,
        plan.cache_bytes,
    )
    step, evaluated, tally = 0, None, None
    with Interrupt() as stop:
        try:
            with logbook.progress_bar(desc="training", total=schedule.steps) as bar:
                while step < schedule.steps and not stop.signal:
                    start = time.perf_counter()
                    with log.timed("waiting for data"):
                        micro_batches = next(batches)
                    sizes = [len(batch.labels) for batch in micro_batches]
                    random = loader.generator(settings.seed, loader.MIXUP, step)
                    lam, partners = mixup.draw(plan.mixup_alpha, sizes, random)
                    lr = schedule.learning_rate(step, settings.base_lr)
                    try:
                        with log.timed("training"):
                            losses = update(model, optimizer, micro_batches, partners, lam, lr)
                    except errors.NonFiniteError as error:
                        raise _diverged(error, step, lr, plan, micro_batches) from None
                    step += 1
                    loss = float(np.average(losses, weights=sizes))
                    speed = sum(sizes) / (time.perf_counter() - start)
                    log.metrics("train", step, loss=loss, lr=lr, images_per_second=round(speed, 2))
                    line = f"loss {loss:.5f}, lr {lr:.3g}, {speed:.1f} images/s"
                    log.say(f"step {step}: {line}", console=False)
                    bar.set_postfix_str(line, refresh=False)
                    bar.update()
                    if settings.eval_every and step % settings.eval_every == 0:
                        tally, evaluated = evaluate(step), step
        finally:  # reached, asked for, or forced by an error: what has been learned is kept
            batches.close()
            if stop.signal:
                log.say(f"{stop.signal.name}: ending after step {step} of {schedule.steps}")
            if settings.save and step:
                save(step)
        if evaluated != step:
            tally = evaluate(step)
    log.say(f"{log.timings()}\nlogs are in {log.folder}")
    return stop.exit_status, tally


def _diverged(
    error: errors.NonFiniteError,
    step: int,
    lr: float,
    plan: Plan,
    micro_batches: Sequence[loader.MicroBatch],
) -> errors.NonFiniteError:
    """Return ``error`` with where it happened: the step, the learning rate, the images."""
    names = [plan.data.train.name(index) for batch in micro_batches for index in batch.indices]
    return errors.NonFiniteError(
        f"step {step}, learning rate {lr:g}: {error}; the update was not made. Try a smaller "
        f"--base_lr. The batch: {', '.join(names[:8])}"
        f"{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    settings, dry_run = config.parse(arguments, PROG, readers.find)
    plan = make_plan(settings, fetch=not dry_run)
    if dry_run:
        print(plan.describe())
        return 0
    command = shlex.join([*PROG.split(), *arguments])
    if settings.repeats > 1:
        return repeat(plan, command)
    return start(plan, command)[0]


def start(plan: Plan, command: str) -> tuple[int, metrics.Tally]:
    """Carry out ``plan`` in a folder of its own; `run` says what is returned."""
    settings, described = plan.settings, plan.describe()
    folder = logbook.create_folder(settings.logdir, settings.name, plan.default_name)
    with logbook.Logbook(folder) as log:
        files.write_text(folder / "config.yaml", f"# {command}\n{config.to_yaml(settings)}")
        if plan.skipped:
            files.write_text(folder / "skipped.txt", "".join(f"{one}\n" for one in plan.skipped))
        log.say(f"{command}\n{described}")
        try:
            return run(plan, log)
        except errors.ConfigError:  # such as a GPU that is not there: nothing has been done
            shutil.rmtree(folder)
            raise
        except Exception as error:
            log.say(f"{type(error).__name__}: {error}", console=False)
            raise


def repeat(plan: Plan, command: str) -> int:
    """Carry out ``plan`` --repeats times, with seeds that count up; report the spread.

    The runs are folders ``seed-<seed>`` in one, next to repeats.json and repeats.txt. A signal ends
    the run under way and leaves out the rest.
    """
    settings = plan.settings
    folder = logbook.create_folder(settings.logdir, settings.name, plan.default_name, "repeats.txt")
    runs, status = [], 0
    for k in range(settings.repeats):
        seed = settings.seed + k
        one = replace(
            settings,
            seed=seed,
            examples_per_class_seed=settings.examples_per_class_seed + k,
            logdir=str(folder),
            name=f"seed-{seed}",
            repeats=1,
        )
        print(f"--- run {k + 1} of {settings.repeats}: {folder / one.name}", flush=True)
        try:
            status, tally = start(make_plan(one), command)
        except errors.ConfigError:
            if k == 0:
                shutil.rmtree(folder)
            raise
        if status:
            break
        runs.append({"seed": seed, "top1": tally.top1, "top5": tally.top5, "loss": tally.loss})
        report(runs, folder)
    return status


def report(runs: Sequence[dict[str, float]], folder: Path) -> None:
    """Write and print the lowest, the median and the highest value of ``runs`` so far."""
    values = {key: [one[key] for one in runs] for key in ("top1", "top5", "loss")}
    spread = {
        key: {"min": min(some), "median": float(np.median(some)), "max": max(some)}
        for key, some in values.items()
    }
    rows = [
        f"{one['seed']:6}  {one['top1']:7.2%}  {one['top5']:7.2%}  {one['loss']:8.4f}\n"
        for one in runs
    ]
    rows += [
        f"{key:>6}  {spread['top1'][key]:7.2%}  {spread['top5'][key]:7.2%}  "
        f"{spread['loss'][key]:8.4f}\n"
        for key in ("min", "median", "max")
    ]
    table = f"{'seed':>6}  {'top-1':>7}  {'top-5':>7}  {'loss':>8}\n" + "".join(rows)
    files.write_text(folder / "repeats.txt", table)
    content = {"count": len(runs), **spread, "runs": list(runs)}
    files.write_text(folder / "repeats.json", json.dumps(content, indent=2) + "\n")
    print(table, end="", flush=True)


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
