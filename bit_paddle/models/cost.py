"""The cost of training a network: operations, memory, and the number of images that fit.

All is computed from an `Architecture`, without Paddle and without data. Sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bit_paddle.models import heads
from bit_paddle.models.architecture import (
    GROUPS,
    PARTS,
    Architecture,
    Unit,
    frozen_parts,
    half_of,
)

FLOAT, HALF = 4, 2  # bytes per number

PLANNED = 0.7  # share of the remaining memory that activations may fill; see `room_beside`


class Demand(NamedTuple):
    """What the training of a network takes on a GPU, in bytes.

    ``parts(half, shared)`` are those of `training_memory`, ``activations(recompute, half)`` of an
    image are those of `activations`. ``learned`` are the numbers in each parameter that learns.
    """

    parts: Callable[[bool, int], dict[str, int]]
    activations: Callable[[str, bool], int]
    learned: Sequence[int] = ()


# --- A network ----------------------------------------------------------------------------------


def multiply_adds(architecture: Architecture, crop: int, classes: int = 0) -> int:
    """Return the multiply-adds of a forward pass, for one image of side ``crop``.

    Only the convolutions and the head are counted. GroupNorm, ReLU, pooling, additions and the
    standardization of kernels (once per step) are not. A multiply-add is two operations.
    """
    root = _root_multiply_adds(architecture, crop)
    units = sum(unit_multiply_adds(unit) for unit in architecture.every_unit(crop))
    return root + units + _head_multiply_adds(architecture, crop, classes)


def _head_multiply_adds(architecture: Architecture, crop: int, classes: int) -> int:
    if not classes:
        return 0
    head, features = architecture.head, architecture.features
    third, last = _stage_sizes(architecture, crop)
    more = last * heads.channels_of(head)
    if head == heads.LOCAL:  # the scores of both stages, and the weighted mean of stage 3
        more = 2 * third + last
    return heads.inputs(head, features) * classes + more


def _stage_sizes(architecture: Architecture, crop: int) -> tuple[int, int]:
    """Return how many numbers the outputs of stage 3 and of the last stage have per image."""
    first, *_, last = (unit for unit in architecture.every_unit(crop) if unit.block >= 2)
    return first.out * first.after, last.out * last.after


def _root_multiply_adds(architecture: Architecture, crop: int) -> int:
    return 7 * 7 * 3 * architecture.root_channels * half_of(crop) ** 2


def training_multiply_adds(
    architecture: Architecture, crop: int, classes: int = 0, learn: str = "all"
) -> int:
    """Return the multiply-adds of a training step, for one image of side ``crop``.

    What learns takes three times its forward pass; what is frozen takes it once.
    """
    frozen = frozen_parts(learn)
    fixed = 0 if learn == "all" else _root_multiply_adds(architecture, crop)
    units = (unit for unit in architecture.every_unit(crop) if unit.part in frozen)
    fixed += sum(map(unit_multiply_adds, units))
    return 3 * multiply_adds(architecture, crop, classes) - 2 * fixed


def activations(
    architecture: Architecture,
    crop: int,
    recompute: str = "off",
    half: bool = False,
    learn: str = "all",
) -> int:
    """Return the bytes of activations per image of side ``crop``, at the peak of a training step.

    The peak is the tensors saved for the backward pass, or more inside one unit or block: there the
    recomputed tensors (``recompute``) and the gradients under way are added. Parts that do not
    ``learn`` save nothing: they count if their largest layer takes more than this. The numbers
    follow Paddle's operations on a CPU, where `scripts/benchmarks/plan.py` measures them. The
    memory that a kernel needs only while it runs (cuDNN's workspace) is not included. ``half``
    (--amp) follows the code of `models` and is not measured, because a CPU has no half-precision
    kernels.
    """
    number = HALF if half else FLOAT
    frozen = frozen_parts(learn)
    head, third = _head_bytes(architecture, crop, half)
    every = [unit for unit in architecture.every_unit(crop) if unit.part not in frozen]
    peak, saved = 0, FLOAT * 3 * crop**2  # the image
    if frozen:
        peak = saved + _peak_without_gradients(architecture, crop, frozen, half)
        saved += boundary_bytes(architecture, crop, learn, half)
    else:  # the input saved by max-pooling (the padded root's output), the first unit's input
        padded, pooled = ((half_of(crop) + 2) ** 2, half_of(half_of(crop)) ** 2)
        saved += architecture.root_channels * (FLOAT * padded + number * pooled)
        saved += architecture.root_channels * FLOAT * pooled if half else 0
    inside = 0
    for unit, following in zip(every, [*every[1:], None]):
        inside += kept_bytes(unit, half)
        output = number * unit.out * unit.after
        held = third if unit.block == 3 else 0
        whole = following is None or following.block > unit.block
        if recompute == "off" or (recompute == "block" and not whole):
            flight = in_flight(unit, half) + held
            peak = max(peak, saved + inside + output + flight if whole else 0)
            inside += output
            continue
        # Twice: the recomputed output, and its gradient, which the caller holds.
        peak = max(peak, saved + inside + 2 * output + in_flight(unit, half) + held)
        saved, inside = saved + output, 0
    if not every:  # the head alone
        return max(peak, saved + head)
    # The last GroupNorm, ReLU and mean.
    last = unit.out * unit.after
    end = norm_in_float32(last) if half else FLOAT * (2 * last + 2 * GROUPS)
    return max(peak, saved + inside + end + third + head)


def _head_bytes(architecture: Architecture, crop: int, half: bool) -> tuple[int, int]:
    """Return the bytes per image of the head's own tensors, and of stage 3's if it reads them.

    The latter are a copy of the activated stage and its gradient, held until block 4 is done.
    """
    head, (third, last) = architecture.head, _stage_sizes(architecture, crop)
    size = FLOAT * heads.inputs(head, architecture.features)
    middle = heads.channels_of(head) * last // architecture.features
    if middle:  # the convolution's result, that of its norm and ReLU, and a gradient
        size += norm_in_float32(middle) if half else FLOAT * (4 * middle + 2 * GROUPS)
    elif head != heads.LINEAR and half:
        size += FLOAT * (last + (third if head == heads.LOCAL else 0))
    return size, (2 * (HALF if half else FLOAT) * third if head == heads.LOCAL else 0)


def forward_activations(architecture: Architecture, crop: int, half: bool = False) -> int:
    """Return the bytes per image of side ``crop`` at the peak of a pass without gradients."""
    return FLOAT * 3 * crop**2 + _peak_without_gradients(architecture, crop, PARTS[:-1], half)


def boundary_bytes(architecture: Architecture, crop: int, learn: str, half: bool = False) -> int:
    """Return the bytes per image of the output of the frozen parts, which what learns takes."""
    number, head = HALF if half else FLOAT, architecture.head
    if learn == "head":
        third, last = _stage_sizes(architecture, crop)
        if heads.channels_of(head) or head == heads.LOCAL:
            return number * (last + (third if head == heads.LOCAL else 0))
        return FLOAT * heads.inputs(head, architecture.features)  # never in half precision
    first = next(unit for unit in architecture.every_unit(crop) if unit.part == learn)
    return number * first.channels * first.before


def training_memory(
    architecture: Architecture,
    classes: int,
    half: bool = False,
    shared: int = 1,
    learn: str = "all",
    moments: int = 1,
) -> dict[str, int]:
    """Return {part: bytes} of everything that training holds at once, without activations.

    All is float32, except the copies of the kernels in ``half``. With several micro-batches the
    gradients belong to the standardized kernels; the last backward pass turns each into the
    gradient of its kernel (`Network.standardized_once`). ``shared`` is the number of processes
    that share the momentum (--shard). Only what learns (``learn``) has gradients and momentum.
    ``moments`` is the number of tensors that the optimizer holds for a weight: 2 of Adam.
    """
    every = FLOAT * architecture.parameters(classes)
    kernel = heads.channels_of(architecture.head) * architecture.features if classes else 0
    kernels = FLOAT * (architecture.kernels + kernel)
    learned = FLOAT * architecture.learned_parameters(classes, learn)
    parts = {
        "weights": every,
        "gradients": learned,
        "momentum": -(-moments * learned // shared),
        "standardized kernels": kernels,
    }
    return {**parts, "kernels in half": kernels * HALF // FLOAT} if half else parts


def inference_memory(architecture: Architecture, classes: int, half: bool = False) -> int:
    """Return the bytes that a network takes without gradients: weights, standardized kernels."""
    kernels = (FLOAT + (HALF if half else 0)) * architecture.kernels
    return FLOAT * architecture.parameters(classes) + kernels


def room_beside(parts: dict[str, int], memory: int) -> int:
    """Return the bytes that activations may take on a GPU with ``memory`` bytes.

    This is `PLANNED` of the memory that the ``parts`` of `training_memory` leave. The rest is for
    CUDA itself, the workspaces of convolutions, and fragments that are too small to use.
    """
    return max(0, int(PLANNED * (memory - sum(parts.values()))))


def parts_of(images: int, fitting: int) -> int:
    """Return the number of parts of ``images``, of ``fitting`` images each at most.

    If not even one image fits, each part is one image.
    """
    return -(-images // min(max(1, fitting), images))


# --- A unit -------------------------------------------------------------------------------------


def unit_multiply_adds(unit: Unit) -> int:
    """Return the multiply-adds of a unit's convolutions."""
    at_output = unit.middle * (9 * unit.middle + unit.out)
    at_output += unit.channels * unit.out if unit.project else 0
    return unit.channels * unit.middle * unit.before + at_output * unit.after


def kept_bytes(unit: Unit, half: bool = False) -> int:
    """Return the bytes that a unit saves for its backward pass, without its own input.

    GroupNorm saves its input, its output, and the mean and variance of its groups. ReLU saves its
    output; a convolution saves its input, which is that same tensor. A sum saves nothing, so the
    outputs of ``c`` and of the projection are freed at once. In half precision GroupNorm and ReLU
    save only their input, and recompute the rest.
    """
    a, b, c = unit.channels * unit.before, unit.middle * unit.before, unit.middle * unit.after
    if half:
        return HALF * (a + 2 * b + 2 * c)
    return FLOAT * (2 * a + 3 * b + 3 * c + 3 * 2 * GROUPS)


def in_flight(unit: Unit, half: bool = False) -> int:
    """Return the bytes of the gradients that exist at once when a backward pass enters a unit.

    They are the gradients of the sum, of the output of ``c`` or of the projection, and of their
    inputs. In half precision the float32 tensors that a GroupNorm recomputes are added.
    """
    output = unit.out * unit.after
    shortcut = max(output, unit.channels * unit.before) if unit.project else output
    gradients = output + shortcut + unit.middle * unit.after
    if not half:
        return FLOAT * gradients
    return HALF * gradients + norm_in_float32(max(unit.channels, unit.middle) * unit.before)


def norm_in_float32(size: int) -> int:
    """Return the bytes that GroupNorm and ReLU take in the backward pass in half precision.

    ``size`` numbers each: the input, the normalized and the activated tensor, and the gradients of
    these three, all in float32.
    """
    return 6 * FLOAT * size


# --- Frozen parts -------------------------------------------------------------------------------


def _peak_without_gradients(
    architecture: Architecture, crop: int, parts: tuple[str, ...], half: bool
) -> int:
    """Return the bytes per image that the largest layer of ``parts`` takes without gradients.

    These are the tensors that Python still refers to while the layer runs.
    """
    number = HALF if half else FLOAT
    side = half_of(crop)
    pooled = half_of(side) ** 2
    peak = number * architecture.root_channels * (side**2 + (side + 2) ** 2 + pooled)
    block_input = 0
    for unit in architecture.every_unit(crop):
        if unit.part not in parts:
            return peak
        held = number * (0 if unit.project else block_input)
        block_input = unit.channels * unit.before if unit.project else block_input
        peak = max(peak, held + _unit_without_gradients(unit, half))
    last = unit.out * unit.after  # the head alone learns: the last norm is frozen, too
    return max(peak, number * last + _norm_without_gradients(last, half))


def _unit_without_gradients(unit: Unit, half: bool) -> int:
    """Return the bytes that a unit takes at once without gradients, with its input."""
    number = HALF if half else FLOAT
    a, b, c = unit.channels * unit.before, unit.middle * unit.before, unit.middle * unit.after
    output = unit.out * unit.after
    first = number * a + _norm_without_gradients(a, half)
    beside = number * (2 * a + (output if unit.project else 0))  # input, activated, shortcut
    return max(
        first,
        beside + number * b + _norm_without_gradients(b, half),
        beside + number * (2 * b + c),
        beside + number * c + _norm_without_gradients(c, half),
        beside + number * (2 * c + output),
    )


def _norm_without_gradients(size: int, half: bool) -> int:
    """Return the bytes of GroupNorm's and ReLU's outputs; of half precision also their input."""
    return 3 * FLOAT * size if half else 2 * FLOAT * size
