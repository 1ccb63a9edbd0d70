"""What saving costs a run, and resuming: ``python scripts/benchmarks/saving.py R50x1 --side 128``.

Steps of training are timed alone and with a checkpoint being written all the while, turn by turn.
A save costs the copy of weights and velocities, which training waits for, and what the writer takes
from the steps made meanwhile. Resuming is timed against loading the weights alone.
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
from bit_paddle.training.step import update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("model", nargs="?", default="R50x1")
    parser.add_argument("--side", type=int, default=128, help="of the images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10, help="between two saves")
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

    def step() -> float:
        start = time.perf_counter()
        update(model, optimizer, sums, [part], flags.batch, 1e-9)
        return time.perf_counter() - start

    step()
    copies, writes, alone, beside = [], [], [], []
    with tempfile.TemporaryDirectory() as folder, logbook.Logbook(Path(folder)) as log:
        log.rewind(0, -1)
        saver = checkpoints.Saver(Path(folder), 2, (1, np.inf), log)
        for turn in range(flags.rounds):
            alone += [step() for _ in range(flags.steps)]
            start = time.perf_counter()
            arrays = snapshot.snapshot(model, optimizer.velocities())
            copies.append(time.perf_counter() - start)
            write = partial(snapshot.write_snapshot, arrays=arrays, notes={})
            for k in range(flags.steps):  # a save is under way during each of these steps
                start = time.perf_counter()
                saver.save(turn * flags.steps + k + 1, write)
                beside.append(step())
                saver.wait()
                writes.append(time.perf_counter() - start)
        path = checkpoints.checkpoint_files(Path(folder))[0]
        size = path.stat().st_size
        loads, resumes = [], []
        for _ in range(flags.rounds):
            other = resnetv2.ResNetV2(model.architecture, 10)
            start = time.perf_counter()
            weights.load_npz(other, path)
            loads.append(time.perf_counter() - start)
            momentum = Momentum(0.003, 0.9, other.parameters())
            start = time.perf_counter()
            snapshot.restore(other, momentum, path)
            resumes.append(time.perf_counter() - start)
        saver.close()

    plain, busy, copy = map(statistics.median, (alone, beside, copies))
    taken = max(0.0, busy - plain)  # from the one step or so that a save lasts
    share = (copy + taken) / (60 * flags.minutes)
    print(
        f"{flags.model}, {size / 1e6:.0f} MB a checkpoint; {flags.batch} images of {flags.side}\n"
        f"a step                        {plain:7.3f} s\n"
        f"a step with a save beside it  {busy:7.3f} s\n"
        f"copy that training waits for  {copy:7.3f} s\n"
        f"until the file is on the disk {statistics.median(writes):7.3f} s\n"
        f"cost of a save                {copy + taken:7.3f} s: {share:.3%} of a run that saves "
        f"every {flags.minutes:g} minutes\n"
        f"loading the weights           {statistics.median(loads):7.3f} s\n"
        f"resuming                      {statistics.median(resumes):7.3f} s"
    )


if __name__ == "__main__":
    main()
