"""Where a run starts: a checkpoint, pre-trained weights, or random ones; the same in all processes.

The order is that of `runs.folder`: the run's own checkpoints, the one of --resume, the pre-trained
weights, random weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from bit_paddle import errors
from bit_paddle.config.settings import Settings
from bit_paddle.models import published, resnetv2, weights
from bit_paddle.models.losses import LOSSES
from bit_paddle.recipes import hyperrule
from bit_paddle.runs import checkpoints, snapshot
from bit_paddle.runs.checkpoints import Checkpoint, Progress
from bit_paddle.runs.logbook import Logbook
from bit_paddle.system import processes
from bit_paddle.training import distributed
from bit_paddle.training.optimizer import Momentum
from bit_paddle.training.plan import Plan


@dataclass(frozen=True)
class Begun:
    """What all processes start from: the same in each, but for what --shard shares out.

    ``known_split`` is the --batch_split that was found for a run of the same size before, or 0.
    """

    model: resnetv2.ResNetV2
    optimizer: Momentum
    sums: distributed.GradientSums
    progress: Progress
    known_split: int


def begin(plan: Plan, amp: str, log: Logbook) -> Begun:
    """Restore or create the model and the optimizer in rank 0, and broadcast them to all ranks.

    Raises `CheckpointError` if no checkpoint that --resume names is whole.
    """
    settings, classes = plan.settings, len(plan.data.train.classes)
    progress, known_split, restored = Progress(), 0, False
    if processes.rank() or plan.start.checkpoints:
        model = resnetv2.ResNetV2(plan.architecture, classes)
        optimizer = _optimizer(settings, model)
        checkpoint = _restore(plan, model, optimizer, log)
        if checkpoint is not None:
            progress, known_split = _resumed(plan, checkpoint, amp, log)
            restored = True
    if not restored and processes.rank() == 0:
        model = _create(plan, classes)
        optimizer = _optimizer(settings, model)
    velocities = optimizer.velocities()
    moving = any(velocity is not None for velocity in velocities)
    model.recompute, model.amp = settings.recompute, amp
    progress, known_split, moving = _of_rank_0(progress, known_split, moving)
    distributed.broadcast(model.parameters())
    sums = distributed.GradientSums(model.parameters(), settings.shard)
    if moving:
        optimizer.load_velocities(sums.scattered(None if processes.rank() else velocities))
    return Begun(model, optimizer, sums, progress, known_split)


def _restore(
    plan: Plan, model: resnetv2.ResNetV2, optimizer: Momentum, log: Logbook
) -> Checkpoint | None:
    """Restore the newest checkpoint that is whole; report and set aside the damaged ones."""
    for place, checkpoint in enumerate(plan.start.checkpoints):
        try:
            snapshot.restore(model, optimizer, checkpoint.path)
            return checkpoint
        except (errors.CheckpointError, errors.MissingFileError) as error:  # or pruned just now
            later = plan.start.checkpoints[place + 1 :]
            if checkpoint.elsewhere and not later:
                raise
            then = f"{later[0].path} is tried" if later else "the run begins again"
            log.say(f"warning: {error}\n{then}")
            if not checkpoint.elsewhere:
                checkpoints.set_aside(checkpoint.path)
    return None


def _resumed(plan: Plan, checkpoint: Checkpoint, amp: str, log: Logbook) -> tuple[Progress, int]:
    """Return the progress to resume with, and the --batch_split if it is known for this size."""
    settings, progress, notes = plan.settings, checkpoint.progress, checkpoint.notes
    log.say(f"resumes after step {progress.step}, from {checkpoint.path}")
    before = notes.get("amp", "off")  # the oldest runs knew no other
    if before != amp:
        log.say(f"warning: --amp was {before} so far, and is {amp} from here on")
    size = {"processes": processes.world_size(), "amp": amp, "crop": plan.resolution.crop}
    same_size = all(notes.get(key) == value for key, value in size.items()) and all(
        notes["settings"].get(key) == getattr(settings, key)
        for key in ("batch", "recompute", "shard")
    )
    moved = checkpoint.elsewhere or notes["data"] != plan.data_identity
    if moved or not (log.folder / checkpoints.CHECKPOINTS / checkpoints.BEST).exists():
        progress = replace(progress, best=-1.0)
    if checkpoint.elsewhere:  # validations so far are in the other run's log
        progress = replace(progress, evaluated=-1)
    return progress, int(notes["batch_split"]) if same_size else 0


def _create(plan: Plan, classes: int) -> resnetv2.ResNetV2:
    """Return the pre-trained network with a new head, or a random one."""
    settings, path = plan.settings, plan.checkpoint
    if path is None:
        model = resnetv2.ResNetV2(plan.architecture, classes)
        model.reset_parameters(settings.seed)
    else:
        if not path.is_file():  # a run that was to resume, of whose checkpoints none is whole
            path = published.obtain(published.find(settings.model), settings.bit_pretrained_dir)
        model = weights.create_model(path, classes)
    bias = LOSSES[settings.loss].head_bias
    if bias:
        model.head.bias.set_value(np.full(model.head.bias.shape, bias, "f4"))
    return model


def _optimizer(settings: Settings, model: resnetv2.ResNetV2) -> Momentum:
    return Momentum(
        settings.base_lr,
        hyperrule.MOMENTUM,
        model.parameters(),
        weight_decay=settings.weight_decay,
    )


def _of_rank_0(progress: Progress, known_split: int, moving: bool) -> tuple[Progress, int, bool]:
    """Return the values of rank 0; they travel as float64, which holds each of them exactly."""
    *values, known_split, moving = distributed.from_first(
        [*asdict(progress).values(), known_split, moving]
    ).tolist()
    named = {item.name: type(item.default)(v) for item, v in zip(fields(Progress), values)}
    return Progress(**named), int(known_split), bool(moving)
