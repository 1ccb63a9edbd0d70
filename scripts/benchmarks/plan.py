"""Compare the plan's memory estimate with real training: ``scripts/benchmarks/plan.py R50x1``.

New processes make one step of two micro-batches (gradients of kernels exist only from the second
micro-batch on), with few and with many images per micro-batch. The memory per image is the
difference of the two peaks divided by the difference in images. The smaller micro-batch must need
more memory than the gradients at the end of the step.

Two peaks are compared: the bytes that Paddle has allocated, and resident memory. Resident memory
also depends on gaps, as glibc keeps freed memory in its heap: with --gaps it is 0.7 to 1.3 of the
estimate, by chance. Without --gaps, blocks of 64 KiB and more are returned to the system at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from bit_paddle.models import cost
from bit_paddle.models.architecture import LEARN, Architecture

STEP = """
import resource, sys
from functools import partial
import numpy as np
import paddle
from bit_paddle.models import weights
from bit_paddle.training import distributed
from bit_paddle.training.optimizer import Momentum
from bit_paddle.training import step
from bit_paddle.training.classification.task import loss_of
from bit_paddle.data.loader import MicroBatch
name, side, images, recompute, learn = sys.argv[1], *map(int, sys.argv[2:4]), *sys.argv[4:]
model = weights.create_model(name, 10)
model.recompute = recompute
model.learn_only(learn)
optimizer = Momentum(0.003, 0.9, list(model.learned().values()))
pixels = np.random.default_rng(0).integers(0, 256, (images, 3, side, side), np.uint8)
part = MicroBatch(pixels, np.arange(images) % 10, np.arange(images))
loss = partial(loss_of, images=2 * images)
step.update(model, optimizer, distributed.GradientSums([]), [part, part], loss, 1e-9)
allocated = paddle.base.core.host_memory_stat_peak_value("Allocated", 0)
print(allocated, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peaks(*arguments: object, gaps: bool = False) -> list[int]:
    """Return the peak of the bytes that Paddle allocated, and of resident memory."""
    threshold = {} if gaps else {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    words = [sys.executable, "-W", "ignore", "-c", STEP, *map(str, arguments)]
    environment = {**os.environ, **threshold}
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return [int(word) for word in done.stdout.split()[-2:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("model", nargs="?", default="R50x1", help="R<layers>x<width>")
    parser.add_argument(
        "--side", type=int, nargs="+", default=[128, 224], help="sides of the images"
    )
    parser.add_argument(
        "--images", type=int, nargs=2, default=[12, 24], help="images per micro-batch"
    )
    parser.add_argument("--learn", choices=LEARN, default="all", help="what learns")
    parser.add_argument("--gaps", action="store_true", help="keep glibc's defaults")
    flags = parser.parse_args()

    few, many = flags.images
    print("MB per image; ratio: estimate / measured")
    print(f"{flags.model:8}  side  --recompute  estimate  allocated  ratio  resident  ratio")
    for side in flags.side:
        for recompute in ("off", "unit", "block"):
            architecture, more = Architecture.parse(flags.model), (recompute, flags.learn)
            estimate = cost.activations(architecture, side, recompute, learn=flags.learn) / 1e6
            pairs = zip(*(peaks(flags.model, side, n, *more, gaps=flags.gaps) for n in (few, many)))
            allocated, resident = ((high - low) / (many - few) / 1e6 for low, high in pairs)
            print(
                f"{'':8}  {side:4}  {recompute:11}  {estimate:8.2f}  {allocated:9.2f}  "
                f"{estimate / allocated:5.2f}  {resident:8.2f}  {estimate / resident:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
