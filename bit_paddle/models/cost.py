"""What training a network costs: operations, memory, and how many images fit.

Counts of an `Architecture`, without Paddle and without data; sizes are in bytes.
"""

from __future__ import annotations

from bit_paddle.models.architecture import GROUPS, Architecture, Unit, half_of

FLOAT, HALF = 4, 2  # bytes

PLANNED = 0.7  # the share for activations of what memory a model leaves; see `room`


# --- Of a network -------------------------------------------------------------------------------


def multiply_adds(architecture: Architecture, crop: int, classes: int = 0) -> int:
    """Return the multiply-adds of a forward pass of an image of side ``crop``.

    Those of the convolutions and of the head, and nothing else: GroupNorm, ReLU, pooling,
    additions and the standardization of kernels (once a step) are not counted. A multiply-add
    is two operations.
    """
    root = 7 * 7 * 3 * architecture.root_channels * half_of(crop) ** 2
    units = sum(unit_multiply_adds(unit) for unit in architecture.every_unit(crop))
    return root + units + architecture.features * classes


def activations(
    architecture: Architecture, crop: int, recompute: str = "off", half: bool = False
) -> int:
    """Return how many bytes an image of side ``crop`` takes at the peak of a training pass.

    What is kept for the backward pass, and where more, what is computed again of one unit or
    one block (``recompute``) with the gradients in flight there. By what Paddle's operations
    keep on a CPU, where `scripts/benchmarks/plan.py` measures it; what a kernel needs only
    while it runs (cuDNN's workspace) is not in it. With ``half`` (--amp) it is by what
    `models` keeps, and not measured: a CPU has no half-precision kernels.
    """
    number = HALF if half else FLOAT
    # The image, what max-pooling keeps (the root's output, padded), and the first unit's input.
    padded, pooled = ((half_of(crop) + 2) ** 2, half_of(half_of(crop)) ** 2)
    kept = FLOAT * 3 * crop**2 + architecture.root_channels * (FLOAT * padded + number * pooled)
    kept += architecture.root_channels * FLOAT * pooled if half else 0
    every = list(architecture.every_unit(crop))
    peak = inside = 0
    for unit, following in zip(every, [*every[1:], None]):
        inside += kept_bytes(unit, half)
        output = number * unit.out * unit.after
        whole = following is None or following.block > unit.block
        if recompute == "off" or (recompute == "block" and not whole):
            peak = max(peak, kept + inside + output + in_flight(unit, half) if whole else 0)
            inside += output
            continue
        # The output is computed again, and its gradient belongs to the one who asked for it.
        peak = max(peak, kept + inside + 2 * output + in_flight(unit, half))
        kept, inside = kept + output, 0
    # The last GroupNorm, ReLU and mean.
    last = unit.out * unit.after
    end = norm_in_float32(last) if half else FLOAT * (2 * last + 2 * GROUPS)
    return max(peak, kept + inside + end + FLOAT * architecture.features)


def training_memory(
    architecture: Architecture, classes: int, half: bool = False, shared: int = 1
) -> dict[str, int]:
    """Return {part: bytes} of what training holds at once besides activations.

    In float32, but for the kernels that convolutions multiply in ``half``. Where a batch has
    several micro-batches, the gradients are those at the standardized kernels, and each becomes
    that of its kernel when the last one has passed (`ResNetV2.standardized_once`). ``shared``
    is the number of processes that share the momentum (--shard).
    """
    every, kernels = FLOAT * architecture.parameters(classes), FLOAT * architecture.kernels
    parts = {
        "weights": every,
        "gradients": every,
        "momentum": -(-every // shared),
        "standardized kernels": kernels,
    }
    return {**parts, "kernels in half": kernels * HALF // FLOAT} if half else parts


def room(
    architecture: Architecture, memory: int, classes: int, half: bool = False, shared: int = 1
) -> int:
    """Return the bytes to plan with for activations, of a GPU's ``memory`` bytes.

    A share of what `training_memory` leaves: the rest is for CUDA itself, convolutions'
    workspaces, and memory in pieces too small to use.
    """
    left = memory - sum(training_memory(architecture, classes, half, shared).values())
    return max(0, int(PLANNED * left))


def fits(
    architecture: Architecture, memory: int, crop: int, recompute: str = "off", half: bool = False
) -> int:
    """Return how many images have their activations in ``memory`` bytes."""
    return memory // activations(architecture, crop, recompute, half)


def split(
    architecture: Architecture,
    images: int,
    memory: int,
    crop: int,
    recompute: str = "off",
    half: bool = False,
) -> int:
    """Return in how many parts to compute ``images``, each with ``memory`` for activations.

    A part is one image where not even one fits.
    """
    return -(-images // min(max(1, fits(architecture, memory, crop, recompute, half)), images))


# --- Of a unit ----------------------------------------------------------------------------------


def unit_multiply_adds(unit: Unit) -> int:
    """Return the multiply-adds of a unit's convolutions."""
    at_output = unit.middle * (9 * unit.middle + unit.out)
    at_output += unit.channels * unit.out if unit.project else 0
    return unit.channels * unit.middle * unit.before + at_output * unit.after


def kept_bytes(unit: Unit, half: bool = False) -> int:
    """Return the bytes that a backward pass through a unit needs, besides its input.

    GroupNorm keeps its input, its output, and mean and variance of its groups; ReLU its output;
    a convolution its input, which is a ReLU's output. A sum keeps nothing, so that the outputs
    of ``c`` and of the projection go at once. In half precision GroupNorm and ReLU keep their
    input alone, and compute the rest again.
    """
    a, b, c = unit.channels * unit.before, unit.middle * unit.before, unit.middle * unit.after
    if half:
        return HALF * (a + 2 * b + 2 * c)
    return FLOAT * (2 * a + 3 * b + 3 * c + 3 * 2 * GROUPS)


def in_flight(unit: Unit, half: bool = False) -> int:
    """Return the bytes of gradients that are there at once where a backward pass enters it.

    Those of the sum, of the output of ``c`` or of the projection, and of their inputs; in half
    precision also what a GroupNorm computes again in float32.
    """
    output = unit.out * unit.after
    shortcut = max(output, unit.channels * unit.before) if unit.project else output
    gradients = output + shortcut + unit.middle * unit.after
    if not half:
        return FLOAT * gradients
    return HALF * gradients + norm_in_float32(max(unit.channels, unit.middle) * unit.before)


def norm_in_float32(size: int) -> int:
    """Return the bytes that GroupNorm and ReLU of half numbers take on their way back.

    Input, normalized and activated numbers, and the gradients of these three, all in float32.
    """
    return 6 * FLOAT * size
