"""Estimate claims before they run: hours, memory and downloads. Runs and downloads nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bit_paddle.config.settings import Settings
from bit_paddle.errors import BitPaddleError
from bit_paddle.models import published
from bit_paddle.models.architecture import Architecture
from bit_paddle.system import fetch
from bit_paddle.training.claims.jobs import Job
from bit_paddle.training.classification.demand import demand_of
from bit_paddle.training.estimate import GIB, MIB, Sizes

SizesOf = Callable[[list[str]], tuple[Settings, Architecture, Sizes]]


def estimate(jobs: Sequence[Job], sizes_of: SizesOf, images_per_second: float | None = None) -> str:
    """Return a table with a line per accuracy, and the sums.

    ``sizes_of(words)`` returns the sizes of a training command: `bit_paddle.plan.sizes_of`.
    ``images_per_second`` is the training speed of one GPU, for claims that do not tell the hours.
    Hours are those with all GPUs of the run.
    """
    lines = [f"{'':42}{'runs left':>11}{'hours each':>12}  memory of a GPU"]
    total, unknown = 0.0, 0
    for row in dict.fromkeys(job.row for job in jobs):
        own = [job for job in jobs if job.row is row]
        left = [job for job in own if job.measured is None]
        hours, memory = _of_row(own[0], sizes_of, images_per_second)
        total += (hours or 0.0) * len(left) * row.gpus
        unknown += len(left) * (hours is None)
        each = "unknown" if hours is None else f"{hours:.2f}"
        count = f"{len(left)} of {len(own)}"
        lines.append(f"{own[0].claim.name + ' ' + row.name:42}{count:>11}{each:>12}  {memory}")
    known = f"{total:.1f} GPU hours" if total or not unknown else "unknown"
    more = f", and {unknown} runs of unknown length" if total and unknown else ""
    lines += [f"time: {known}{more}", *_downloads(jobs)]
    if unknown and images_per_second is None:
        lines.append("--images_per_second X of one GPU estimates the hours of training")
    return "\n".join(lines)


def _of_row(
    job: Job, sizes_of: SizesOf, images_per_second: float | None
) -> tuple[float | None, str]:
    """Return the hours of a run, None if unknown, and its memory in words."""
    hours, memory = job.row.hours, job.row.memory_gib
    measured = "" if memory is None else f"{memory:g} GiB (measured)"
    if job.row.command == "evaluate":
        entry = published.lookup(_value(job, "model"))
        weights = f"{entry.bytes / GIB:.1f} GiB of weights, and a batch" if entry else "unknown"
        return hours, measured or weights
    try:
        settings, architecture, sizes = sizes_of([*job.words])
    except BitPaddleError as error:
        return hours, measured or f"unknown: {' '.join(str(error).split())}"
    if hours is None and images_per_second is not None:
        images = sizes.schedule.steps * settings.batch
        hours = images / images_per_second / job.row.gpus / 3600
    half, side = settings.amp != "off", sizes.resolution.largest
    demand = demand_of(settings, architecture, side, sizes.classes)
    parts, image = demand.parts(half, 1), demand.activations(settings.recompute, half)
    planned = f"{sum(parts.values()) / GIB:.1f} GiB and {image / MIB:.0f} MiB per image at once"
    return hours, measured or planned


def _downloads(jobs: Sequence[Job]) -> list[str]:
    """Return lines on the files that are not on this machine."""
    entries = dict.fromkeys(published.lookup(_value(job, "model")) for job in jobs)
    missing = {
        entry.name: entry.bytes
        for entry in entries
        if entry is not None and not published.locate(entry).exists()
    }
    for job in jobs:
        for file, size in job.claim.downloads.items():
            if not (fetch.cache_dir() / file).exists():
                missing[file] = size
    if not missing:
        return ["downloads: none"]
    head = f"downloads: {sum(missing.values()) / 1e9:.2f} GB in {len(missing)} files"
    names = [f"  {name} {size / 1e9:.2f} GB" for name, size in list(missing.items())[:20]]
    return [head, *names, *(["  …"] if len(missing) > 20 else [])]


def _value(job: Job, name: str) -> str:
    """Return a setting of a job's command, also from its file of settings; "" without it."""
    from bit_paddle.config.saved import load_yaml

    given = dict(word[2:].split("=", 1) for word in job.words if "=" in word)
    if name not in given and "config" in given:
        given.update(load_yaml(given["config"]))
    return str(given.get(name, ""))
