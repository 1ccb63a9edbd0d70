"""What a run starts from, the same in all of its processes, and in how many parts it computes."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np

from bit_paddle import errors
from bit_paddle.config.settings import Settings
from bit_paddle.models import resnetv2, weights
from bit_paddle.models.losses import LOSSES
from bit_paddle.recipes import hyperrule
from bit_paddle.runs import checkpoints, logbook, snapshot
from bit_paddle.runs.checkpoints import Progress
from bit_paddle.system import processes
from bit_paddle.training import distributed
from bit_paddle.training.optimizer import Momentum
from bit_paddle.training.plan import Plan


def begin(
    plan: Plan, amp: str, log: logbook.Logbook
) -> tuple[resnetv2.ResNetV2, Momentum, distributed.GradientSums, Progress, int]:
    """Return what all processes start from: the same, but for what --shard shares out.

    Last comes the --batch_split that was found for a run of the same size before, or 0.

    The order is that of `runs`: a checkpoint of this run, or of --resume; pre-trained; random. The
    first process reads, and gives the others what it has found. Raises `CheckpointError` if nothing
    that --resume names is whole.
    """
    settings, classes = plan.settings, len(plan.data.train.classes)
    world_size, progress, known_split, model = processes.world_size(), Progress(), 0, None
    if processes.rank() or plan.start.checkpoints:
        model = resnetv2.ResNetV2(plan.architecture, classes)
        optimizer = _optimizer(settings, model)
    for k, found in enumerate(plan.start.checkpoints):
        try:
            snapshot.restore(model, optimizer, found.path)
        except (errors.CheckpointError, errors.MissingFileError) as error:  # or pruned just now
            later = plan.start.checkpoints[k + 1 :]
            if found.elsewhere and not later:
                raise
            then = f"{later[0].path} is tried" if later else "the run begins again"
            log.say(f"warning: {error}\n{then}")
            if not found.elsewhere:
                checkpoints.set_aside(found.path)
            continue
        log.say(f"goes on after step {found.progress.step}, from {found.path}")
        progress = found.progress
        before = found.notes.get("amp", "off")  # the oldest runs knew no other
        if before != amp:
            log.say(f"warning: --amp was {before} so far, and is {amp} from here on")
        size = {"processes": world_size, "amp": amp, "crop": plan.resolution.crop}
        same = all(found.notes.get(key) == value for key, value in size.items()) and all(
            found.notes["settings"].get(key) == getattr(settings, key)
            for key in ("batch", "recompute", "shard")
        )
        known_split = int(found.notes["batch_split"]) if same else 0
        moved = found.elsewhere or found.notes["data"] != plan.data_identity
        if moved or not (log.folder / checkpoints.CHECKPOINTS / checkpoints.BEST).exists():
            progress = replace(progress, best=-1.0)
        if found.elsewhere:  # validations so far are in the other run's log
            progress = replace(progress, evaluated=-1)
        break
    else:
        if processes.rank() == 0:
            model = weights.create_model(
                settings.model,
                classes,
                pretrained=not settings.from_scratch,
                directory=settings.bit_pretrained_dir,
                seed=settings.seed,
            )
            bias = LOSSES[settings.loss].head_bias
            model.head.bias.set_value(np.full(model.head.bias.shape, bias, "f4"))
            optimizer = _optimizer(settings, model)
    velocities = optimizer.velocities()
    moving = any(velocity is not None for velocity in velocities)
    model.recompute, model.amp = settings.recompute, amp
    values = distributed.from_first([*astuple(progress), known_split, moving]).tolist()
    step, evaluated, nonfinite, best, loss_scale, clean, known_split, moving = values
    progress = Progress(int(step), int(evaluated), int(nonfinite), best, loss_scale, int(clean))
    distributed.broadcast(model.parameters())
    sums = distributed.GradientSums(model.parameters(), settings.shard)
    if moving:
        optimizer.load_velocities(sums.scattered(None if processes.rank() else velocities))
    return model, optimizer, sums, progress, int(known_split)


def _optimizer(settings: Settings, model: resnetv2.ResNetV2) -> Momentum:
    return Momentum(
        settings.base_lr,
        hyperrule.MOMENTUM,
        model.parameters(),
        weight_decay=settings.weight_decay,
    )
