"""A plan in words: the lines that the plans of all tasks have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bit_paddle import __version__
from bit_paddle.models import published
from bit_paddle.models.architecture import PARTS, Architecture, frozen_parts
from bit_paddle.recipes import distill, hyperrule
from bit_paddle.runs.results import FOLDS, summary
from bit_paddle.system import environment
from bit_paddle.system.text import plural

if TYPE_CHECKING:
    from bit_paddle.config.run_settings import RunSettings
    from bit_paddle.training.plan import Plan

_HALF = "half precision between layers and in convolutions, float32 elsewhere"

_PRECISION = {
    "off": "float32",
    "auto": f"float32 on a CPU; on a GPU with tensor cores {_HALF}",
    "bf16": f"bf16: {_HALF}",
    "fp16": f"fp16: {_HALF}, loss scaled",
}


def headline(batch: int, where: str, amp: str, processes: int, batch_split: int) -> str:
    """Return the line of a run's log with versions, device, processors and micro-batches."""
    line = f"bit_paddle {__version__}, {where}, {environment.cpu_count()} processors"
    if processes > 1:
        line += f" for each of {processes}"
    line += f"; {batch} images per step, in {plural(processes * batch_split, 'part')}"
    return line if amp == "off" else f"{line}, in {amp}"


def aligned(rows: Iterable[tuple[str, str]]) -> str:
    """Return (title, text) pairs as aligned lines."""
    return "\n".join(f"{title:14}{text}" for title, text in rows)


def weights(plan: Plan) -> str:
    """Return where the weights of the first step come from."""
    if plan.start.checkpoints:
        newest = plan.start.checkpoints[0]
        return f"{newest.path}: the run resumes after step {newest.progress.step}"
    if plan.checkpoint is None:
        return f"random, by seed {plan.settings.seed}"
    if plan.checkpoint.exists():
        return str(plan.checkpoint)
    entry = published.find(plan.settings.model)
    return f"{plan.checkpoint}, not downloaded yet: {entry.bytes / 1e9:.2f} GB from {entry.url}"


def learns_rows(architecture: Architecture, classes: int, learn: str) -> list[tuple[str, str]]:
    """Return the line on what learns; without frozen parts there is none."""
    frozen = frozen_parts(learn)
    if not frozen:
        return []
    parts = ", ".join(part for part in PARTS if part not in frozen)
    counts = architecture.learned_parameters(classes, learn), architecture.parameters(classes)
    learned, every = (f"{count / 1e6:#.3g}".rstrip(".") for count in counts)
    return [("learns", f"{parts}: {learned} of {every} million weights")]


def recipe_rows(plan: Plan, images: int) -> list[tuple[str, str]]:
    """Return the lines on schedule, batch and precision, for ``images`` training images."""
    return [
        ("schedule", _schedule(plan)),
        ("batch", _batch(plan, images)),
        ("precision", _PRECISION[plan.settings.amp]),
    ]


def run_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return the lines on the optimizer, the measurements, the files and the processes."""
    lines = [
        ("optimizer", _optimizer(plan)),
        ("validation", _validation(plan)),
        *([("test", _test(plan))] if plan.tested else []),
        ("checkpoints", _checkpoints(plan)),
        ("files", _files(plan)),
    ]
    if plan.settings.nproc > 1:
        lines.append(("processes", _processes(plan)))
    return lines


def repeats_rows(settings: RunSettings, metric: str) -> list[tuple[str, str]]:
    """Return the line on the runs of --repeats, which report the ``metric``; one run has none."""
    if settings.repeats == 1:
        return []
    last = settings.seed + settings.repeats - 1
    runs = f"{settings.repeats}, seeds {settings.seed} to {last}"
    return [("runs", f"{runs}; reports lowest, median and highest {metric}")]


def _schedule(plan: Plan) -> str:
    settings, schedule = plan.settings, plan.schedule
    length = ""
    if settings.epochs is not None:
        length = f" ({settings.epochs} epochs)"
    elif settings.steps is not None:
        length = " (--steps; the rule's proportions)"
    return (
        f"{schedule.steps:,} steps{length}: warm-up of {plural(schedule.warmup, 'step')} to "
        f"learning rate {settings.base_lr:g}, {schedule.decline}"
    )


def _batch(plan: Plan, images: int) -> str:
    row = f"{plan.settings.batch} images per step, split: {plan.settings.batch_split}"
    if images < plan.settings.batch:
        row += ", sampled with replacement: the training set is smaller"
    return row


def _optimizer(plan: Plan) -> str:
    decay = "no weight decay"
    if plan.settings.weight_decay:
        decay = f"weight decay {plan.settings.weight_decay:g} of kernels"
    if plan.settings.optimizer == "adam":
        decay += ", decoupled" if plan.settings.weight_decay else ""
        betas = " and ".join(f"{beta:g}" for beta in distill.BETAS)
        return f"Adam, betas {betas}, gradients clipped at a norm of {distill.CLIP_NORM:g}, {decay}"
    return f"SGD, momentum {hyperrule.MOMENTUM}, {decay}"


def _validation(plan: Plan) -> str:
    if plan.settings.eval_every:
        return f"every {plan.settings.eval_every} steps and at the end, on all validation images"
    return "at the end, on all validation images"


def _test(plan: Plan) -> str:
    models = "the best and the last model" if plan.settings.save else "the last model"
    return f"once, at the end, on all test images, with {models}; they decide nothing"


def _checkpoints(plan: Plan) -> str:
    if not plan.settings.save:
        return "none (--no-save)"
    every = plan.settings.save_every
    every = f"{every[:-1]} minutes" if every.endswith("m") else f"{every} steps"
    return f"every {every}; the newest {plan.settings.keep} and the best are kept"


def _files(plan: Plan) -> str:
    if plan.settings.runs > 1:
        by_folds = summary(vars(plan.settings)) == FOLDS
        names = (
            "folds.txt, folds.json, predictions.csv" if by_folds else "repeats.txt, repeats.json"
        )
        return f"{plan.start.folder}/: {names}, a folder per run"
    names = "train.log, metrics.jsonl, VisualDL, config.yaml, result.json"
    if plan.settings.save:
        names += ", checkpoints, model.npz"
    return f"{plan.start.folder}/: {names}"


def _processes(plan: Plan) -> str:
    row = f"{plan.settings.nproc}, each with a share of every batch"
    if plan.settings.shard:
        row += ", of the summed gradients and of the momentum"
    return row
