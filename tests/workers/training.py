"""Training by however many processes there are; test_processes compares what they computed."""

import hashlib
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed

from bit_paddle.data import loader
from bit_paddle.data.images import ArrayImages
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry
from bit_paddle.models.losses import class_weights
from bit_paddle.models.weights import create_model
from bit_paddle.recipes.hyperrule import Resolution
from bit_paddle.system import processes
from bit_paddle.training import distributed, step
from bit_paddle.training.classification import task, validation
from bit_paddle.training.optimizer import Momentum

out, image_folder, splits = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
only = sys.argv[4:]  # titles
processes.end_with_parent()
paddle.set_default_dtype("float64")
distributed.join()
rank, size = processes.rank(), processes.world_size()
exchanged = []


def counted(exchange):
    def counting(tensor, *arguments, **options):
        exchanged.append(tensor.size)
        return exchange(tensor, *arguments, **options)

    return counting


for name in ("all_reduce", "reduce", "broadcast"):
    setattr(paddle.distributed, name, counted(getattr(paddle.distributed, name)))


def noise(count, classes):
    random = np.random.default_rng(count)
    pixels = random.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    names = [str(k) for k in range(classes)]
    return ArrayImages(pixels, random.integers(0, classes, count), names, "noise")


def train_on(images, batch, split, precrop, steps, shard=False, power=0.0):
    """Return the model, its weights, and of each step loss, what was exchanged, and the share.

    Also the numbers whose velocities are here, and of each step how many tensors had been exchanged
    when the backward pass came to the first kernel.
    """
    model = create_model("R14x0.5", len(images.classes), seed=0)
    optimizer = Momentum(0.01, 0.9, model.parameters())
    sums, early = distributed.GradientSums(model.parameters(), shard), []
    model.root_block.conv.weight.register_hook(lambda _: early.append(len(exchanged)) and None)
    batches = loader.training_batches(
        images,
        np.arange(len(images)),
        Resolution(precrop, 32),
        batch,
        0,
        0,
        mixup_alpha=0.1,
        rank=rank,
        world_size=size,
    )
    counts = np.bincount(images.labels, minlength=len(images.classes))
    loss_of = partial(task.loss_of, class_weights=class_weights(counts, power))
    losses, volumes, shares = [], [], []
    for _ in range(steps):
        exchanged.clear()
        one = next(batches)
        parts = list(one.micro_batches(split))
        shares.append(sum(len(part.labels) for part in parts))
        loss = partial(loss_of, images=len(one.indices), lam=one.lam)
        losses.append(step.update(model, optimizer, sums, parts, loss, 0.01))
        volumes.append(sum(exchanged))
    batches.close()
    weights = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    here = sum(velocity.size for velocity in optimizer.velocities() if velocity is not None)
    return model, weights, losses, volumes, shares, here, early


folder = registry.open_dataset("folder", image_folder).train
told = {"parameters": {}, "hashes": {}, "volumes": {}, "shares": {}, "velocities": {}, "early": {}}
arrays = {}
for title, images, batch, precrop, split, steps, shard, power in [
    *(("8", folder, 8, 36, split, 10, False, 0.0) for split in splits),
    ("uneven", noise(18, 5), 8, 32, 1, 4, False, 0.0),
    ("three", noise(18, 5), 3, 32, 1, 2, False, 0.0),
    ("shared 8", folder, 8, 36, splits[-1], 10, True, 0.0),
    ("shared three", noise(18, 5), 3, 32, 1, 2, True, 0.0),
    *(("balanced", noise(18, 5), 8, 32, split, 4, False, 0.5) for split in splits),
    ("shared balanced", noise(18, 5), 8, 32, splits[-1], 4, True, 0.5),
]:
    title = f"{title} in {split}"
    if only and title not in only:
        continue
    model, weights, losses, volumes, shares, here, early = train_on(
        images, batch, split, precrop, steps, shard, power
    )
    told["velocities"][title], told["early"][title] = here, early
    digest = hashlib.sha256(b"".join(array.tobytes() for array in weights.values()))
    told["hashes"][title] = digest.hexdigest()
    told["volumes"][title], told["shares"][title] = volumes, shares
    told["parameters"][title] = sum(array.size for array in weights.values())
    arrays[f"{title}/loss"] = np.array(losses)
    arrays.update({f"{title}/{name}": array for name, array in weights.items()})
if not only:
    every = noise(1001, 5), Preprocessing(32), 64, 0
    tally = validation.evaluate(
        model, loader.evaluation_batches(*every, rank=rank, world_size=size)
    )
    told["tally"] = [tally.images, tally.right_per_class.tolist(), tally.top5_count, tally.loss]
(out / f"{size}.{rank}.json").write_text(json.dumps(told))
if rank == 0:
    np.savez(out / f"{size}.npz", **arrays)
