"""What needs GPUs, measured where there are some: ``python scripts/benchmarks/gpu.py``.

Short runs of `bit_paddle.train` on scikit-learn's digits, resized: in float32 and half precision,
with and without recomputation and --shard, on one GPU and on all of them, in --split micro-batches;
then in as many as are found by trying, also on a GPU with little memory, and a run that goes on
where it has less memory than it began with, so that it has to split further. A line each: images a
second (median of the second half of the steps), the memory held at most, micro-batches of all
processes, the loss at the end and how far it is from that of the first line.

Without a GPU it runs on the processors, small, which shows that the branches work and no more.
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

LIMIT = "FLAGS_gpu_memory_limit_mb"  # Paddle's own, for its tests


def train(folder: Path, name: str, words: list[str], limit_mb: int = 0) -> dict[str, object]:
    """Return what a run of ``words`` has shown of itself."""
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
    again = re.findall(r"retried in (\d+) micro-batches", log)
    split = re.search(r"images per step, in (\d+) part", log)
    return {
        "speed": statistics.median(line["images_per_second"] for line in steps[len(steps) // 2 :]),
        "memory": f"{memory[1]} GiB" if memory else "-",
        "split": f"{split[1]}{''.join(f' -> {parts}' for parts in again)}",
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
    parser.add_argument("--limit_mb", type=int, default=8000, help="memory of the last lines' GPU")
    flags = parser.parse_args()
    words = ["--model", flags.model, "--batch", str(flags.batch), "--steps", str(flags.steps)]
    words += ["--crop", str(flags.crop), "--precrop", str(flags.crop)]
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    one = ["--devices", first] if gpus else []
    split = ["--batch_split", str(flags.split)]
    every = [*split, *([] if gpus else ["--nproc", "2"])]
    half_way = f"step-{flags.steps // 2:08d}.npz"
    rows = [
        ("float32", [*one, *split, "--amp", "off"]),
        ("fp16", [*one, *split, "--amp", "fp16"]),
        ("bf16", [*one, *split, "--amp", "bf16"]),
        ("as chosen", [*one, *split]),
        ("recompute", [*one, *split, "--recompute", "unit"]),
        *([] if gpus == 1 else [("all", every), ("all, shared", [*every, "--shard"])]),
        ("trying", [*one, "--save_every", str(flags.steps // 2), "--keep", "9"]),
    ]
    if gpus:
        rows += [("little memory", one), ("less memory", [*one, "--resume"])]
    print(f"{gpus or 'no'} GPUs; {' '.join(words)}")
    print(f"{'':14}images/s  memory     micro-batches  loss      from the first", flush=True)
    reference = None
    with tempfile.TemporaryDirectory() as folder:
        for title, more in rows:
            limit = flags.limit_mb if title.endswith("memory") else 0
            if title == "less memory":
                more.append(str(Path(folder, "trying", "checkpoints", half_way)))
            more += [] if title == "trying" else ["--no-save"]
            found = train(Path(folder), title, [*words, *more], limit)
            if "error" in found:
                print(f"{title:14}{found['error']}", flush=True)
                continue
            reference = found["loss"] if reference is None else reference
            print(
                f"{title:14}{found['speed']:8.1f}  {found['memory']:9}  {found['split']:13}  "
                f"{found['loss']:.6f}  {abs(found['loss'] - reference):.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
