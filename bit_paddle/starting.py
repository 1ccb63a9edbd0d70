"""What a run starts from, the same in all of its processes, and in how many parts it computes."""

from __future__ import annotations

from dataclasses import astuple, replace

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
)
from bit_paddle.planning import Plan
from bit_paddle.runs import Progress


def begin(
    plan: Plan, device: str, amp: str, loss: fitting.Loss, log: logbook.Logbook
) -> tuple[models.ResNetV2, sgd.Momentum, parallel.GradientSums, Progress, int]:
    """Return what all processes start from: the same, but for what --shard shares out.

    The order is that of `runs`: a checkpoint of this run, or of --resume; pre-trained; random. The
    first process reads, and gives the others what it has found. Raises `CheckpointError` if nothing
    that --resume names is whole.
    """
    settings, classes = plan.settings, len(plan.data.train.classes)
    world_size, progress, known_split, model = processes.world_size(), Progress(), 0, None
    if processes.rank() or plan.start.checkpoints:
        model = models.ResNetV2(plan.architecture, classes)
        optimizer = sgd.Momentum(settings.base_lr, hyperrule.MOMENTUM, model.parameters())
    for k, found in enumerate(plan.start.checkpoints):
        try:
            checkpoint.restore(model, optimizer, found.path)
        except errors.CheckpointError as error:
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
        divided = found.notes.get("processes"), settings.batch_split
        if divided == (world_size, config.AUTO):
            known_split = int(found.notes["batch_split"])
        if found.notes.get("amp", amp) != amp:
            log.say(f"warning: --amp was {found.notes['amp']} so far, and is {amp} from here on")
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
            optimizer = sgd.Momentum(settings.base_lr, hyperrule.MOMENTUM, model.parameters())
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
    if known_split:
        return model, optimizer, sums, progress, int(known_split)

    # --- In how many parts to compute a batch: by estimate, and on a GPU by trying ---
    shared = world_size if settings.shard else 1
    memory = parallel.activation_memory(device, plan.architecture, classes, amp, shared)
    batch_split = plan.batch_split(memory, amp, world_size)
    if device == "gpu" and settings.batch_split == config.AUTO:
        share, crop = -(-settings.batch // world_size), plan.resolution.crop
        tried: list[str] = []

        def fits(split: int) -> bool:
            images = -(-share // split)
            found = fitting.fits(model, loss, crop, images, split > 1, [] if moving else sums.own)
            tried.append(f"{images}{'' if found else ' (too many)'}")
            return found

        with log.timed("trying micro-batches"):
            found = fitting.smallest_split(batch_split, share, fits)
        batch_split = int(parallel.largest(found))  # of the process with the least memory
        log.say(
            f"--batch_split {batch_split}: tried micro-batches of {', '.join(tried)} images; "
            f"each has {-(-share // batch_split)}"
        )
    return model, optimizer, sums, progress, batch_split


def split_further(plan: Plan, batch_split: int) -> int:
    """Return the next --batch_split where memory was not enough for ``batch_split``.

    Raises `OutOfMemoryError` if the user has chosen that, or a part has one image already.
    """
    share = -(-plan.settings.batch // processes.world_size())
    images = -(-share // batch_split)
    then = "a smaller --crop, or --recompute unit where it is off"
    if plan.settings.batch_split != config.AUTO:
        then = f"--batch_split auto, more than {batch_split} parts, {then}"
    elif images > 1:
        return min(2 * batch_split, share)
    raise errors.OutOfMemoryError(
        f"out of memory with {images} image{'s' * (images > 1)} a micro-batch; take {then}"
    )
