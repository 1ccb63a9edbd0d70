"""Say where the time of an evaluation goes: decode, resize, network, and all of it together.

    python scripts/benchmarks/evaluation.py cifar10 FOLDER --model R50x1 --side 128
    python scripts/benchmarks/evaluation.py folder FOLDER --model R50x1 --side 480 --batch 16

Prints for each part milliseconds per image, in one thread for decode and resize, and its share of
their sum; then images per second of the whole, which decodes in --workers threads meanwhile, and
the share of its time that it waits for images. Medians of --rounds rounds. The network is that of
`bit_paddle evaluate`, with pseudo-random weights.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from bit_paddle.data import loader
from bit_paddle.data.images import ArrayImages, Images
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry


def network(name: str, amp: str):
    """Return a function from pixels uint8 [N, 3, H, W] to logits."""
    from bit_paddle.inference import predictor
    from bit_paddle.models import weights
    from bit_paddle.models.native import build
    from bit_paddle.system.device import select_device

    model = weights.create_model(name, 10)
    operators, description = build.choose(select_device("cpu"), amp, lambda text: None)
    print(description, flush=True)
    model.compute_with(operators)
    model.amp = amp
    model.eval()
    return lambda pixels: predictor.infer(model, pixels)


def seconds(images: Images, view: Preprocessing, subset: np.ndarray, compute, flags) -> dict:
    """Return the seconds of each part for the images of ``subset``, and of the whole."""

    def batches(workers: int):
        return loader.evaluation_batches(images, view, flags.batch, workers, subset=subset)

    start = time.perf_counter()
    if not isinstance(images, ArrayImages):
        for index in subset:
            images.image(index)
    decoded = time.perf_counter()
    parts = [part.images for part in batches(0)]
    drawn = time.perf_counter()
    for pixels in parts:
        compute(pixels)
    end = time.perf_counter()
    decode, both, net = decoded - start, drawn - decoded, end - drawn
    stream, waited = batches(flags.workers), 0.0
    start = time.perf_counter()
    while True:
        asked = time.perf_counter()
        part = next(stream, None)
        waited += time.perf_counter() - asked
        if part is None:
            break
        compute(part.images)
    whole = time.perf_counter() - start
    return {
        "decode": decode,
        "resize": both - decode,
        "network": net,
        "whole": whole,
        "waited": waited,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("datadir")
    parser.add_argument("--model", default="R50x1")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--amp", choices=("off", "bf16"), default="off")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    images = registry.open_dataset(flags.dataset, flags.datadir).val
    subset = np.arange(min(flags.images, len(images)))
    view, compute = Preprocessing(flags.side), network(flags.model, flags.amp)
    compute(np.zeros((flags.batch, 3, flags.side, flags.side), np.uint8))
    rounds = [seconds(images, view, subset, compute, flags) for _ in range(flags.rounds)]
    middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    names = ("decode", "resize", "network")
    every = sum(middle[name] for name in names)
    print(f"{flags.dataset}, {flags.model} at {flags.side}, {flags.amp}, {len(subset)} images")
    for name in names:
        print(f"{name:8} {middle[name] / len(subset) * 1e3:8.3f} ms {middle[name] / every:6.1%}")
    speed, waits = len(subset) / middle["whole"], middle["waited"] / middle["whole"]
    alone = len(subset) / middle["network"]
    print(f"whole    {speed:,.0f} images/s, the network alone {alone:,.0f}; waits {waits:.1%}")


if __name__ == "__main__":
    main()
