"""What a run starts from, the same in all of its processes, and in how many parts it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
from paddle import Tensor

from bit_paddle import (
    checkpoint,
    config,
    errors,
    fitting,
    hyperrule,
    logbook,
    models,
    parallel,
    processes,
    runs,
    sgd,
    upstream,
)
from bit_paddle.planning import Plan
from bit_paddle.runs import Progress


def begin(
    plan: Plan, amp: str, log: logbook.Logbook
) -> tuple[models.ResNetV2, sgd.Momentum, parallel.GradientSums, Progress, int]:
    """Return what all processes start from: the same, but for what --shard shares out.

    Last comes the --batch_split that was found for a run of the same size before, or 0.

    The order is that of `runs`: a checkpoint of this run, or of --resume; pre-trained; random. The
    first process reads, and gives the others what it has found. Raises `CheckpointError` if nothing
    that --resume names is whole.
    """
    settings, classes = plan.settings, len(plan.data.train.classes)
    world_size, progress, known_split, model = processes.world_size(), Progress(), 0, None
    if processes.rank() or plan.start.checkpoints:
        model = models.ResNetV2(plan.architecture, classes)
        optimizer = _optimizer(settings, model)
    for k, found in enumerate(plan.start.checkpoints):
        try:
            checkpoint.restore(model, optimizer, found.path)
        except (errors.CheckpointError, errors.MissingFileError) as error:  # or pruned just now
            later = plan.start.checkpoints[k + 1 :]
            if found.elsewhere and not later:
                raise
            then = f"{later[0].path} is tried" if later else "the run begins again"
            log.say(f"warning: {error}\n{then}")
            if not found.elsewhere:
                runs.set_aside(found.path)
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
        if moved or not (log.folder / runs.CHECKPOINTS / runs.BEST).exists():
            progress = replace(progress, best=-1.0)
        if found.elsewhere:  # validations so far are in the other run's log
            progress = replace(progress, evaluated=-1)
        break
    else:
        if processes.rank() == 0:
            model = checkpoint.create_model(
                settings.model,
                classes,
                pretrained=not settings.from_scratch,
                directory=settings.bit_pretrained_dir,
                seed=settings.seed,
            )
            if settings.loss == "sigmoid":
                model.head.bias.set_value(np.full(model.head.bias.shape, upstream.HEAD_BIAS, "f4"))
            optimizer = _optimizer(settings, model)
    velocities = optimizer.velocities()
    moving = any(velocity is not None for velocity in velocities)
    model.recompute, model.amp = settings.recompute, amp
    values = parallel.from_first([*astuple(progress), known_split, moving]).tolist()
    step, evaluated, nonfinite, best, loss_scale, clean, known_split, moving = values
    progress = Progress(int(step), int(evaluated), int(nonfinite), best, loss_scale, int(clean))
    parallel.broadcast(model.parameters())
    sums = parallel.GradientSums(model.parameters(), settings.shard)
    if moving:
        optimizer.load_velocities(sums.scattered(None if processes.rank() else velocities))
    return model, optimizer, sums, progress, int(known_split)


def _optimizer(settings: config.Settings, model: models.ResNetV2) -> sgd.Momentum:
    return sgd.Momentum(
        settings.base_lr,
        hyperrule.MOMENTUM,
        model.parameters(),
        weight_decay=settings.weight_decay,
    )


def find_split(
    plan: Plan,
    device: str,
    known_split: int,
    model: models.ResNetV2,
    loss: fitting.Loss,
    moved: Sequence[Tensor],
    log: logbook.Logbook,
) -> int:
    """Return in how many parts each process computes its share of a batch, the same in all.

    As --batch_split says; else by estimate on a CPU, and by trying on a GPU unless it is known from
    before. ``moved`` are parameters whose velocities are still to come.
    """
    settings, world_size = plan.settings, processes.world_size()
    if settings.batch_split != config.AUTO:
        return settings.batch_split
    if device == "gpu" and known_split:
        return known_split
    shared, classes = world_size if settings.shard else 1, len(plan.data.train.classes)
    memory = parallel.activation_memory(device, plan.architecture, classes, model.amp, shared)
    estimate = plan.batch_split(memory, model.amp, world_size)
    if device != "gpu":
        return int(parallel.largest(max(estimate, known_split)))
    share, crop = -(-settings.batch // world_size), plan.resolution.crop
    tried: list[str] = []

    def enough(split: int) -> bool:
        images = -(-share // split)
        found = fitting.fits(model, loss, crop, images, split > 1, moved)
        tried.append(f"{images}{'' if found else ' (too many)'}")
        return found

    found = fitting.smallest_split(estimate, share, enough)
    split = int(parallel.largest(found))  # of the process with the least memory
    log.say(
        f"--batch_split {split}: tried micro-batches of {', '.join(tried)} images; each has "
        f"{-(-share // split)}"
    )
    return split


def split_further(plan: Plan, batch_split: int) -> int:
    """Return the next --batch_split where memory was not enough for ``batch_split``.

    Raises `OutOfMemoryError` if the user has chosen that, or a part has one image already.
    """
    share = -(-plan.settings.batch // processes.world_size())
    images = -(-share // batch_split)
    then = "a smaller --crop, or --recompute unit where it is off"
    if plan.settings.batch_split != config.AUTO:
        then = f"--batch_split auto, more parts than {batch_split}, {then}"
    elif images > 1:
        return min(2 * batch_split, share)
    raise errors.OutOfMemoryError(
        f"out of memory with {images} image{'s' * (images > 1)} a micro-batch; take {then}"
    )
