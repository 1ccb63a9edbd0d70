"""Compare the losses of runs with half precision, --recompute, --nproc and --shard with float32's:
``python scripts/benchmarks/precision.py``.

Trains for 50 steps on scikit-learn's digits from random weights, on a CPU. The reference is a plain
run in float32; the other runs add --recompute, --nproc, --shard and --amp, alone and together. For
each it prints the largest and the median difference of the loss curve from the reference, and the
earlier run that has the same losses and weights bit for bit, if any.

Half precision cannot give the same curve. So it is compared with the noise that rounding explains:
runs in float32 with a random relative error wherever --amp rounds. The error is uniform within the
unit roundoff (2^-8 for the 8 significant bits of bf16, 2^-11 for the 11 of fp16). Kernels get it
once, because rounding them gives the same error at every step until they have changed by as much.
Images, the outputs of each convolution, GroupNorm and sum, and the gradients of all of these get a
new error at every step. A rounding error is never larger than that; on average it is a quarter
smaller, because the roundoff is relative to a power of two.

The noise of a precision is, for each step, the largest difference of a few such runs from the
reference. A ratio of about 1 means that the run differs by rounding only; gradients at a wrong
scale are far outside. It does not prove that each part is as precise as it should be:
tests/training/test_precision.py checks the parts. Over only a dozen steps and against a single run
with noise, the ratio is higher, up to 3. Noise of float32's own roundoff, 2^-24, shows the effect
of another order of sums.

The rule's learning rate is 0 at step 0, and the head starts from zeros, so the first two losses are
log(10) in all runs. After that the loss must change, or the curve shows nothing; but large steps
would let any error grow until all curves are equally far apart. From random weights in batches of
16, the rule's 0.003 turns float32's roundoff into 5e-3 within 50 steps. With the 0.001 used here it
becomes 1e-4, and the loss goes from 2.30 to about 2.1.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle.config import parsing
from bit_paddle.config.settings import Settings
from bit_paddle.data import loader
from bit_paddle.data.readers import registry
from bit_paddle.models import published
from bit_paddle.recipes import hyperrule
from bit_paddle.runs import checkpoints
from bit_paddle.training.classification.plan import ClassificationPlan, make_plan
from bit_paddle.training.step import update

if TYPE_CHECKING:
    from paddle import Tensor

    from bit_paddle.models.resnetv2 import ResNetV2

UNITS = {"float32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}  # unit roundoff
RUNS = {  # flags added to the reference's: the precision whose noise explains the difference
    "--recompute unit": "float32",
    "--recompute block": "float32",
    "--nproc 2": "float32",
    "--nproc 2 --shard": "float32",
    "--amp bf16": "bf16",
    "--amp bf16 --recompute unit": "bf16",
    "--amp bf16 --nproc 2 --shard": "bf16",
    "--amp fp16": "fp16",
    "--amp fp16 --recompute unit": "fp16",
    "--amp fp16 --nproc 2 --shard": "fp16",
}


class Curve(NamedTuple):
    """The loss per step, and the weights after the last step by name."""

    losses: np.ndarray
    weights: dict[str, np.ndarray]

    def same(self, other: Curve) -> bool:
        """Return whether both curves are the same bit for bit."""
        ours, theirs = self.weights, other.weights
        return (
            np.array_equal(self.losses, other.losses)
            and ours.keys() == theirs.keys()
            and all(np.array_equal(ours[key], theirs[key]) for key in ours)
        )


# --- Runs ---------------------------------------------------------------------------------------


def by_command(words: Sequence[str], folder: Path) -> Curve:
    """Run the command with ``words`` as a process, in a new folder; return its curve."""
    name = f"run-{len(list(folder.iterdir()))}"
    command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.train", *words, "--device", "cpu"]
    command += ["--logdir", str(folder), "--name", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    losses = np.array([line["loss"] for line in lines if line["kind"] == "train"])
    with np.load(folder / name / published.MODEL) as file:
        weights = {key: file[key] for key in file.files if key.startswith("resnet/")}
    return Curve(losses, weights)


def in_process(
    plan: ClassificationPlan, unit: float = 0.0, seed: int = 0, split: int = 1, **options: str
) -> Curve:
    """Train as ``plan`` says in this process; return the curve.

    If ``unit`` is not 0, errors of that size are added by `disturb`, from the random ``seed``.
    ``options`` are attributes of the model: recompute and amp.
    """
    import paddle

    from bit_paddle.models.weights import create_model
    from bit_paddle.training import distributed
    from bit_paddle.training.classification.task import loss_of
    from bit_paddle.training.optimizer import Momentum

    settings, schedule = plan.settings, plan.schedule
    architecture, classes = plan.architecture.name, len(plan.data.train.classes)
    model = create_model(architecture, classes, seed=settings.seed)
    for name, value in options.items():
        setattr(model, name, value)
    if unit:
        paddle.seed(seed)
        disturb(model, unit)
    optimizer = Momentum(settings.base_lr, hyperrule.MOMENTUM, model.parameters())
    sums = distributed.GradientSums(model.parameters())
    scale = checkpoints.Progress().loss_scale if model.amp == "fp16" else 1.0
    batches = loader.training_batches(
        plan.data.train, plan.subset, plan.resolution, settings.batch, settings.seed, 0, plan.flip,
        plan.mixup_alpha,
    )  # fmt: skip
    losses = []
    for step in range(schedule.steps):
        batch, lr = next(batches), schedule.learning_rate(step, settings.base_lr)
        loss = partial(loss_of, images=len(batch.indices), lam=batch.lam)
        parts = batch.micro_batches(split)
        losses.append(update(model, optimizer, sums, parts, loss, lr, scale))
    batches.close()
    return Curve(
        np.array(losses), {key: value.numpy() for key, value in model.state_dict().items()}
    )


def disturb(model: ResNetV2, unit: float) -> None:
    """Add random relative errors within ``unit`` to ``model`` wherever --amp rounds."""
    import paddle

    from bit_paddle.models import layers

    def with_error(x: Tensor) -> Tensor:
        return x * (1 + paddle.uniform(x.shape, x.dtype, -unit, unit))

    def with_errors(x: Tensor) -> Tensor:
        """Return ``x`` with an error; its gradient gets one too."""
        x = with_error(x)
        if not x.stop_gradient:
            x.register_hook(with_error)
        return x

    def disturbed(outputs: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Return a layer's outputs with errors; the second may be the first, or the input."""
        if not isinstance(outputs, tuple):
            return with_errors(outputs)
        first = with_errors(outputs[0])
        return first, first if outputs[1] is outputs[0] else outputs[1]

    model.root_block.register_forward_pre_hook(lambda _, inputs: with_error(inputs[0]))
    for layer in model.sublayers():
        if isinstance(layer, (layers.StdConv2D, layers.GroupNormReLU, layers.Bottleneck)):
            layer.register_forward_post_hook(lambda _, __, outputs: disturbed(outputs))
        if isinstance(layer, layers.StdConv2D):
            layer.weight.set_value(with_error(layer.weight.detach()))
            layer.weight.register_hook(with_error)


# --- Their differences --------------------------------------------------------------------------


def difference(curve: Curve, reference: Curve) -> np.ndarray:
    """Return the absolute difference of the losses per step."""
    return np.abs(curve.losses - reference.losses)


def spread(curves: Sequence[Curve], reference: Curve) -> np.ndarray:
    """Return per step the largest difference of any of ``curves`` from ``reference``."""
    return np.max([difference(curve, reference) for curve in curves], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--model", default="R14x0.5", help="R<layers>x<width>")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--datadir")
    parser.add_argument("--crop", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--base_lr", type=float, default=0.001)
    parser.add_argument(
        "--runs", type=int, default=5, help="number of runs with noise, per precision"
    )
    flags = parser.parse_args()

    words = ["--model", flags.model, "--from_scratch", "--dataset", flags.dataset]
    words += ["--datadir", flags.datadir] if flags.datadir else []
    words += ["--precrop", str(flags.crop * 9 // 8), "--crop", str(flags.crop)]
    words += ["--batch", str(flags.batch), "--batch_split", "1", "--steps", str(flags.steps)]
    words += ["--base_lr", str(flags.base_lr)]

    with tempfile.TemporaryDirectory() as folder:
        curve_of = partial(by_command, folder=Path(folder))
        known = {"float32": curve_of(words)}
        reference = known["float32"]
        start, end = reference.losses[0], np.median(reference.losses[-10:])
        print(
            f"{flags.model} on {flags.dataset}, {flags.steps} steps of {flags.batch} images of "
            f"{flags.crop}: the loss goes from {start:.2f} to {end:.2f} (median of the last 10)\n\n"
            f"{'':30} difference of losses   times the noise\n"
            f"{'':30}    largest     median  largest  median  bit for bit as",
            flush=True,
        )

        # --- Noise that the precision explains ---
        from bit_paddle.system import device

        device.select_device("cpu")
        plan = make_plan(parsing.parse(words, Settings.prog, registry.find)[0])
        if not np.array_equal(in_process(plan).losses, reference.losses):
            sys.exit("without noise, training in this process differs from the command's run")
        noise = {}
        for name, unit in UNITS.items():
            curves = [in_process(plan, unit, seed) for seed in range(flags.runs)]
            noise[name] = spread(curves, reference)
            title = f"noise of {name}, 2^{math.log2(unit):.0f}"
            print(row(title, noise[name]), flush=True)
        print()

        # --- The runs ---
        for title, precision in RUNS.items():
            curve = curve_of([*words, *title.split()])
            same = next((name for name, other in known.items() if curve.same(other)), "")
            print(row(title, difference(curve, reference), noise[precision], same), flush=True)
            known[title] = curve


def row(title: str, values: np.ndarray, noise: np.ndarray | None = None, same: str = "") -> str:
    """Return a line of the table: largest and median value, and their ratios to the noise's."""
    largest, median = np.max(values), np.median(values)
    ratios = f"{'':16}"
    if noise is not None:
        pairs = ((largest, np.max(noise)), (median, np.median(noise)))
        of_largest, of_median = (f"{value / base:.2f}" if base else "-" for value, base in pairs)
        ratios = f"{of_largest:>7}  {of_median:>6} "
    return f"{title:30}  {largest:9.2e}  {median:9.2e}  {ratios} {same}".rstrip()


if __name__ == "__main__":
    main()
