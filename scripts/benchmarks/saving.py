"""Measure what saving and resuming take: ``python scripts/benchmarks/saving.py R50x1 --side 128``.

Training steps are timed in turns, without a save and during a save. The cost of a save is the time
to copy weights and velocities, for which training waits, plus the slowdown of the steps during the
write. Resuming is compared with loading the weights only.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from bit_paddle.data.loader import MicroBatch
from bit_paddle.runs import checkpoints, logbook
from bit_paddle.training.classification.task import loss_of
from bit_paddle.training.step import update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("model", nargs="?", default="R50x1")
    parser.add_argument("--side", type=int, default=128, help="side of the images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="steps per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10, help="minutes between two saves")
    flags = parser.parse_args()

    from bit_paddle.models import resnetv2, weights
    from bit_paddle.runs import snapshot
    from bit_paddle.training import distributed
    from bit_paddle.training.optimizer import Momentum

    model = weights.create_model(flags.model, 10)
    optimizer = Momentum(0.003, 0.9, model.parameters())
    sums = distributed.GradientSums([])
    pixels = np.random.default_rng(0).integers(0, 256, (flags.batch, 3, flags.side, flags.side))
    part = MicroBatch(pixels.astype(np.uint8), np.arange(flags.batch) % 10, np.arange(flags.batch))

    loss = partial(loss_of, images=flags.batch)

    def step() -> float:
        start = time.perf_counter()
        update(model, optimizer, sums, [part], loss, 1e-9)
        return time.perf_counter() - start

    step()
    copies, writes, alone, during_save = [], [], [], []
    with tempfile.TemporaryDirectory() as folder, logbook.Logbook(Path(folder)) as log:
        log.rewind(0, -1)
        saver = checkpoints.Saver(Path(folder), 2, (1, np.inf), log)
        for turn in range(flags.rounds):
            alone += [step() for _ in range(flags.steps)]
            start = time.perf_counter()
            arrays = snapshot.snapshot(model, optimizer.state())
            copies.append(time.perf_counter() - start)
            write = partial(snapshot.write_snapshot, arrays=arrays, notes={})
            for k in range(flags.steps):  # a save is running during each of these steps
                start = time.perf_counter()
                saver.save(turn * flags.steps + k + 1, write)
                during_save.append(step())
                saver.wait()
                writes.append(time.perf_counter() - start)
        path = checkpoints.checkpoint_files(Path(folder))[0]
        size = path.stat().st_size
        loads, resumes = [], []
        for _ in range(flags.rounds):
            new_model = resnetv2.ResNetV2(model.architecture, 10)
            start = time.perf_counter()
            weights.load_npz(new_model, path)
            loads.append(time.perf_counter() - start)
            new_optimizer = Momentum(0.003, 0.9, new_model.parameters())
            start = time.perf_counter()
            snapshot.restore(new_model, new_optimizer, path)
            resumes.append(time.perf_counter() - start)
        saver.close()

    plain, busy, copy = map(statistics.median, (alone, during_save, copies))
    slowdown = max(0.0, busy - plain)  # in total, as a save lasts about one step
    share = (copy + slowdown) / (60 * flags.minutes)
    print(
        f"{flags.model}, {size / 1e6:.0f} MB per checkpoint; {flags.batch} images of {flags.side}\n"
        f"step                          {plain:7.3f} s\n"
        f"step during a save            {busy:7.3f} s\n"
        f"copy that training waits for  {copy:7.3f} s\n"
        f"until the file is on the disk {statistics.median(writes):7.3f} s\n"
        f"cost of a save                {copy + slowdown:7.3f} s: {share:.3%} of a run that saves "
        f"every {flags.minutes:g} minutes\n"
        f"loading the weights           {statistics.median(loads):7.3f} s\n"
        f"resuming                      {statistics.median(resumes):7.3f} s"
    )


if __name__ == "__main__":
    main()
