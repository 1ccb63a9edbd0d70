"""The outputs of a network's frozen parts (``--learn``), kept in memory where they never change.

Every step sees an image in the same view if there are no random crops, no flips and no MixUp. Then
the frozen parts give the same output in every epoch. A run computes it once, before its first step.
(MixUp mixes images before the frozen parts, which are not linear, so outputs cannot be mixed.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bit_paddle.data import loader
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.inference.parts import Parts
from bit_paddle.models import cost, heads
from bit_paddle.system import processes
from bit_paddle.system.progress import progress_bar
from bit_paddle.system.signals import Interrupt, Interrupted

if TYPE_CHECKING:
    from paddle import Tensor

    from bit_paddle.models.resnetv2 import ResNetV2
    from bit_paddle.runs.logbook import Logbook
    from bit_paddle.training.classification.plan import ClassificationPlan


def bytes_of(plan: ClassificationPlan) -> int:
    """Return the bytes of the outputs for all training images, as float32."""
    size = cost.boundary_bytes(plan.architecture, plan.resolution.crop, plan.settings.learn)
    return len(plan.subset) * size


def has_fixed_views(plan: ClassificationPlan) -> bool:
    """Return whether every step of ``plan`` sees an image in the same view."""
    return not (plan.crops or plan.flip or plan.mixup_alpha)


def are_remembered(plan: ClassificationPlan) -> bool:
    """Return whether the run computes the frozen parts once per image.

    The outputs must fit into the cache of images (--cache_gb), which they replace, and the steps
    must see more images than there are. It does not depend on the step that a run resumes from.
    """
    settings = plan.settings
    if settings.learn == "all" or not has_fixed_views(plan) or _reads_two_stages(plan):
        return False
    several = plan.schedule.steps * settings.batch > len(plan.subset)
    return several and bytes_of(plan) <= plan.cache_bytes


def notes(plan: ClassificationPlan) -> list[str]:
    """Return notes for the user on flags that do little together with --learn."""
    settings, lines = plan.settings, []
    if settings.learn == "all":
        return lines
    if settings.learn == "head" and settings.recompute != "off":
        lines.append(
            "--recompute has no effect: the head alone learns, so no activations are saved"
        )
    if plan.mixup_alpha:
        return lines
    if _reads_two_stages(plan):
        text = "the frozen parts are computed in every step: this head takes two of their outputs"
        return [*lines, f"--head {settings.head}: {text}"]
    fits = bytes_of(plan) <= plan.cache_bytes
    if fits and not has_fixed_views(plan):
        lines.append(
            "the frozen parts are computed in every step, because the views are random. With "
            "--no-crop --no-flip they are computed once per image: much less time, but the images "
            "are not augmented"
        )
    elif has_fixed_views(plan) and not fits:
        lines.append(
            f"the outputs of the frozen parts ({bytes_of(plan) / 1e6:,.1f} MB) do not fit in the "
            "cache: they are computed in every step; --cache_gb sets the size of the cache"
        )
    return lines


def _reads_two_stages(plan: ClassificationPlan) -> bool:
    """Return whether the head takes two outputs of what may be frozen; one is remembered."""
    return plan.architecture.head == heads.LOCAL


class Outputs:
    """The outputs of the frozen parts for the training images, by their indices in the reader."""

    def __init__(self, subset: np.ndarray, values: np.ndarray, dtype: str):
        self._values, self._dtype = values, dtype
        self._rows = np.zeros(subset.max() + 1, np.int64)  # by index
        self._rows[subset] = np.arange(len(subset))

    def __call__(self, indices: np.ndarray) -> Tensor:
        """Return the outputs for images in the type in which the network has computed them."""
        from bit_paddle.system import device

        return device.to_device(self._values[self._rows[indices]]).astype(self._dtype)


def compute(
    plan: ClassificationPlan,
    model: ResNetV2,
    batch_split: int,
    log: Logbook,
    stop: Interrupt,
    parts: Parts | None = None,
) -> Outputs:
    """Return the outputs of the frozen parts of ``model`` for all training images of ``plan``.

    The ranks share the images, and every rank gets all outputs. ``batch_split``: a pass has as many
    images as a micro-batch, and fewer in ``parts`` if memory runs out. Raises in all ranks:
    `Interrupted` if a signal comes, `OutOfMemoryError`.
    """
    from bit_paddle.models.network import dtype_of
    from bit_paddle.system import device
    from bit_paddle.training import distributed

    world_size, subset, rows = processes.world_size(), plan.subset, 0
    share = np.array_split(np.arange(len(subset)), world_size)[processes.rank()]
    batches = loader.evaluation_batches(
        plan.data.train,
        Preprocessing(plan.resolution.crop),
        -(-plan.settings.batch // (batch_split * world_size)),
        plan.settings.workers,
        processes.rank(),
        world_size,
        subset,
    )
    side, fault = plan.resolution.crop, None
    first = model.frozen_part(device.to_device(np.zeros((1, 3, side, side), np.uint8)))
    dtype = dtype_of(first)
    wide = dtype if dtype == "float64" else "float32"
    values = np.zeros([len(subset), *first.shape[1:]], wide)
    parts = parts or Parts(log.say)

    def outputs_of(images: np.ndarray) -> np.ndarray:
        return model.frozen_part(device.to_device(images)).astype(wide).numpy()

    try:
        with (
            log.timed("frozen parts"),
            progress_bar(desc="frozen parts", unit="img", total=len(share)) as bar,
        ):
            for batch in stop.checked(batches):
                places = share[rows : rows + len(batch.indices)]
                values[places] = np.concatenate(parts.of(outputs_of, batch.images))
                rows += len(places)
                bar.update(len(places))
    except Interrupted:
        fault = Interrupted
    except MemoryError:
        fault = MemoryError
    distributed.agree([], fault)
    distributed.add_up(values)
    return Outputs(subset, values, dtype)
