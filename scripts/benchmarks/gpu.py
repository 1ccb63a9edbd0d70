"""Measure speed, memory and loss of training on GPUs: ``python scripts/benchmarks/gpu.py``.

Makes short runs of `bit_paddle.train` on scikit-learn's digits, resized, in --split micro-batches:
in float32 and half precision, with and without recomputation and --shard, on one GPU and on all.
Then it lets runs find the number of micro-batches themselves, also on a GPU with little memory;
the last run resumes with less memory than it started with, so that it must split further.

Prints one line per run: images per second (median of the second half of the steps), the peak of
GPU memory, the micro-batches of all processes, the last loss and its difference from the first
run's.

Without a GPU it makes small runs on the CPU; these only show that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bit_paddle.system import processes

LIMIT = "FLAGS_gpu_memory_limit_mb"  # a flag of Paddle, made for its tests


def train(folder: Path, name: str, words: list[str], limit_mb: int = 0) -> dict[str, object]:
    """Run `bit_paddle.train` with ``words``; return its speed, memory, split and last loss."""
    command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.train", *words]
    command += ["--from_scratch", "--dataset", "digits", "--logdir", str(folder), "--name", name]
    environment = {**os.environ, **({LIMIT: str(limit_mb)} if limit_mb else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": f"status {done.returncode}: {done.stderr.strip()[-300:]}"}
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
    steps = [line for line in lines if line["kind"] == "train"]
    log = (folder / name / "train.log").read_text()
    memory = re.search(r"GPU memory held, at most: ([\d.]+) GiB", log)
    retries = re.findall(r"retried in (\d+) micro-batches", log)
    split = re.search(r"images per step, in (\d+) part", log)
    return {
        "speed": statistics.median(line["images_per_second"] for line in steps[len(steps) // 2 :]),
        "memory": f"{memory[1]} GiB" if memory else "-",
        "split": f"{split[1]}{''.join(f' -> {parts}' for parts in retries)}",
        "loss": steps[-1]["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpus = len(processes.gpus())
    parser.add_argument("--model", default="R50x1" if gpus else "R14x0.5", help="R<layers>x<width>")
    parser.add_argument("--batch", type=int, default=512 if gpus else 16)
    parser.add_argument("--crop", type=int, default=480 if gpus else 32)
    parser.add_argument("--steps", type=int, default=25 if gpus else 8)
    parser.add_argument("--split", type=int, default=16 if gpus else 1, help="micro-batches")
    parser.add_argument(
        "--limit_mb", type=int, default=8000, help="GPU memory of the last two runs"
    )
    flags = parser.parse_args()
    words = ["--model", flags.model, "--batch", str(flags.batch), "--steps", str(flags.steps)]
    words += ["--crop", str(flags.crop), "--precrop", str(flags.crop)]
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    one_gpu = ["--devices", first] if gpus else []
    split = ["--batch_split", str(flags.split)]
    all_devices = [*split, *([] if gpus else ["--nproc", "2"])]
    half_way = f"step-{flags.steps // 2:08d}.npz"
    rows = [
        ("float32", [*one_gpu, *split, "--amp", "off"]),
        ("fp16", [*one_gpu, *split, "--amp", "fp16"]),
        ("bf16", [*one_gpu, *split, "--amp", "bf16"]),
        ("amp auto", [*one_gpu, *split]),
        ("recompute", [*one_gpu, *split, "--recompute", "unit"]),
        ("auto split", [*one_gpu, "--save_every", str(flags.steps // 2), "--keep", "9"]),
    ]
    if gpus != 1:
        rows[-1:-1] = [("all", all_devices), ("all, sharded", [*all_devices, "--shard"])]
    if gpus:
        rows += [("little memory", one_gpu), ("less memory", [*one_gpu, "--resume"])]
    print(f"{gpus or 'no'} GPUs; {' '.join(words)}")
    print(f"{'':14}images/s  memory     micro-batches  loss      difference", flush=True)
    reference = None
    with tempfile.TemporaryDirectory() as folder:
        for title, more in rows:
            limit = flags.limit_mb if title.endswith("memory") else 0
            if title == "less memory":
                more.append(str(Path(folder, "auto split", "checkpoints", half_way)))
            more += [] if title == "auto split" else ["--no-save"]
            result = train(Path(folder), title, [*words, *more], limit)
            if "error" in result:
                print(f"{title:14}{result['error']}", flush=True)
                continue
            reference = result["loss"] if reference is None else reference
            print(
                f"{title:14}{result['speed']:8.1f}  {result['memory']:9}  {result['split']:13}  "
                f"{result['loss']:.6f}  {abs(result['loss'] - reference):.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
