"""The model and optimizer that a run starts with: the same in all ranks.

`runs.folder` gives the order: the run's own checkpoints, those of --resume, pre-trained weights,
random weights.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import paddle

from bit_paddle import __version__, errors
from bit_paddle.config.run_settings import RunSettings
from bit_paddle.config.saved import differences, to_dict
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.recipes import distill, hyperrule
from bit_paddle.runs import checkpoints, snapshot
from bit_paddle.runs.checkpoints import Checkpoint, Progress
from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import processes
from bit_paddle.training import distributed
from bit_paddle.training.optimizer import Adam, Momentum, Optimizer
from bit_paddle.training.plan import Plan
from bit_paddle.training.task import Task


@dataclass(frozen=True)
class Begun:
    """The state that all ranks start from; with --shard, each has only its part of the momentum.

    ``known_split`` is the --batch_split that the checkpoint's run has found, 0 if there is none or
    that run needed another amount of memory.
    """

    model: ResNetV2
    optimizer: Optimizer
    sums: distributed.GradientSums
    progress: Progress
    known_split: int


def begin(plan: Plan, task: Task, amp: str, operators: Any, log: Logbook) -> Begun:
    """Restore or create model and optimizer in rank 0, and broadcast them to all ranks.

    Both compute with ``operators``, see `models.native.build.choose`.

    Raises `CheckpointError` if every checkpoint that --resume names is damaged.
    """
    settings = plan.settings
    progress, known_split, restored = Progress(), 0, False
    if processes.rank() or plan.start.checkpoints:
        model = task.new_network()
        model.learn_only(settings.learn)
        optimizer = _optimizer(settings, model, operators)
        checkpoint = _restore(plan, model, optimizer, log)
        if checkpoint is not None:
            progress, known_split = _resumed(plan, checkpoint, amp, log)
            restored = True
    if not restored and processes.rank() == 0:
        model = task.initial_network()
        model.learn_only(settings.learn)
        optimizer = _optimizer(settings, model, operators)
    state = optimizer.state()
    moving = any(one is not None for tensors in state.values() for one in tensors)
    model.recompute, model.amp = settings.recompute, amp
    progress, known_split, moving = _of_rank_0(progress, known_split, moving)
    distributed.broadcast(model.parameters())
    model.compute_with(operators)  # standardizes the frozen kernels that have arrived
    clip_norm = distill.CLIP_NORM if settings.optimizer == "adam" else None
    sums = distributed.GradientSums(
        list(model.learned().values()), settings.shard, clip_norm, settings.reduce_dtype
    )
    if moving:
        optimizer.load_state(
            {
                slot: sums.scattered(None if processes.rank() else tensors)
                for slot, tensors in state.items()
            }
        )
    return Begun(model, optimizer, sums, progress, known_split)


def checkpoint_notes(plan: Plan, progress: Progress, batch_split: int, amp: str) -> dict[str, Any]:
    """Return the metadata of a checkpoint, which a resumed run reads."""
    return {
        "bit_paddle": __version__,
        "versions": {
            "paddle": paddle.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        **plan.model_notes,
        "steps": progress.step,
        "settings": to_dict(plan.settings),
        "progress": asdict(progress),
        "data": plan.data_identity,
        "test": plan.test_identity,
        "batch_split": batch_split,
        "processes": processes.world_size(),
        "amp": amp,
    }


def _restore(plan: Plan, model: ResNetV2, optimizer: Optimizer, log: Logbook) -> Checkpoint | None:
    """Restore and return the newest intact checkpoint, or None if there is none.

    Damaged checkpoints are reported, and renamed unless they are another run's. Raises
    `ConfigError` if settings or data have changed, and with them the network: then the checkpoint
    is whole.
    """
    for index, checkpoint in enumerate(plan.start.checkpoints):
        try:
            snapshot.restore(model, optimizer, checkpoint.path)
            return checkpoint
        except (
            errors.CheckpointError,
            errors.MissingFileError,
        ) as error:  # or pruned since the plan
            if isinstance(error, errors.MisfitError) and _differs(plan, checkpoint):
                raise errors.ConfigError(
                    f"{error}\n--force cannot resume a run with another network or optimizer; take "
                    "another --name"
                ) from error
            older = plan.start.checkpoints[index + 1 :]
            if checkpoint.elsewhere and not older:
                raise
            then = (
                f"{older[0].path} is tried next" if older else "the run starts from the beginning"
            )
            log.say(f"warning: {error}\n{then}")
            if not checkpoint.elsewhere:
                checkpoints.set_aside(checkpoint.path)
    return None


def _differs(plan: Plan, checkpoint: Checkpoint) -> bool:
    """Return whether the settings or the data of a checkpoint's run are not those of ``plan``."""
    notes = checkpoint.notes
    changed = differences(notes["settings"], plan.settings)
    return bool(changed) or _has_other_data(plan, checkpoint)


def _has_other_data(plan: Plan, checkpoint: Checkpoint) -> bool:
    """Return whether the data of a checkpoint's run are not those of ``plan``.

    A key that an older version did not write counts as None.
    """
    before, now = checkpoint.notes["data"], plan.data_identity
    return any(before.get(key) != now.get(key) for key in {**before, **now})


def _resumed(plan: Plan, checkpoint: Checkpoint, amp: str, log: Logbook) -> tuple[Progress, int]:
    """Return the progress to resume with, and the checkpoint's --batch_split or 0 (`Begun`)."""
    settings, progress, notes = plan.settings, checkpoint.progress, checkpoint.notes
    log.say(f"resumes after step {progress.step}, from {checkpoint.path}")
    before = notes.get("amp", "off")  # the oldest checkpoints do not say it
    if before != amp:
        log.say(f"warning: --amp was {before} before, and is {amp} from this step on")
    size = {"processes": processes.world_size(), "amp": amp, "crop": plan.model_notes["crop"]}
    earlier = {"learn": "all", **notes["settings"]}  # version 0.1.0 had no such setting
    same_size = all(notes.get(key) == value for key, value in size.items()) and all(
        earlier.get(key) == getattr(settings, key)
        for key in ("batch", "recompute", "shard", "learn")
    )
    moved = checkpoint.elsewhere or _has_other_data(plan, checkpoint)
    if moved or not (log.folder / checkpoints.CHECKPOINTS / checkpoints.BEST).exists():
        progress = replace(progress, best=-1.0)
    if checkpoint.elsewhere:  # earlier validations are in the other run's log
        progress = replace(progress, evaluated=-1)
    return progress, int(notes["batch_split"]) if same_size else 0


def _optimizer(settings: RunSettings, model: ResNetV2, operators: Any) -> Optimizer:
    parameters, decay = list(model.learned().values()), settings.weight_decay
    if settings.optimizer == "adam":
        constants = distill.BETAS, distill.EPSILON
        return Adam(settings.base_lr, parameters, *constants, decay)
    return Momentum(
        settings.base_lr,
        hyperrule.MOMENTUM,
        parameters,
        weight_decay=decay,
        operators=operators,
    )


def _of_rank_0(progress: Progress, known_split: int, moving: bool) -> tuple[Progress, int, bool]:
    """Return the values of rank 0. They are broadcast as float64, which holds each exactly."""
    *values, known_split, moving = distributed.from_first(
        [*asdict(progress).values(), known_split, moving]
    ).tolist()
    named = {item.name: type(item.default)(v) for item, v in zip(fields(Progress), values)}
    return Progress(**named), int(known_split), bool(moving)
