"""Carry out claims, and write the page and the tables of all that is in their folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from bit_paddle import errors
from bit_paddle.config.claims import Claim, read
from bit_paddle.inference import verdicts
from bit_paddle.inference.verdicts import Outcome
from bit_paddle.system import files
from bit_paddle.system.signals import Interrupt
from bit_paddle.training.claims.jobs import Job, carry_out, jobs_of, results_of
from bit_paddle.visual import claims as pages

CLAIM = "claim.yaml"  # a copy, in the folder of the claim's results


@dataclass(frozen=True)
class Reproduction:
    """The results of claims: outcomes by the claim's name, failed runs with their reasons."""

    page: Path
    outcomes: Mapping[str, Sequence[Outcome]]
    failed: Mapping[str, str]
    stopped: int = 0  # the exit status after a signal, else 0


def reproduce(
    claims: Sequence[Claim],
    folder: Path,
    datadirs: Mapping[str, str],
    seeds: int | None,
    device: str,
    stop: Interrupt,
    check: Callable[[Job], object],
) -> Reproduction:
    """Carry out ``claims`` in ``folder``, write its page and tables, and return the outcomes.

    ``datadirs`` are the folders of the data by the claims' names for them. ``check(job)`` raises an
    error of `bit_paddle.errors` for a command that cannot work; one `ConfigError` lists all these.
    The other arguments are those of `jobs_of` and `carry_out`. The page also shows the claims of
    earlier commands in the same folder.
    """
    jobs = [
        jobs_of(claim, folder / claim.folder, datadirs.get(claim.data or ""), seeds, device)
        for claim in claims
    ]
    _check(claims, jobs, datadirs, check)
    for claim in claims:
        files.make_folder(folder / claim.folder, "--logdir")
        text = yaml.safe_dump(dict(claim.content), sort_keys=False, allow_unicode=True)
        files.write_text(folder / claim.folder / CLAIM, text)
    with stop:
        failed = carry_out([job for each in jobs for job in each], stop, errors.tell, device)
    found = [_results(claim, folder / claim.folder, each) for claim, each in zip(claims, jobs)]
    page = pages.write([*found, *_earlier(folder, claims)], folder)
    errors.tell(f"\n{pages.markdown(found)}\nopen {page.resolve().as_uri()}")
    return Reproduction(
        page,
        {each.claim.name: each.outcomes for each in found},
        {job.title: job.fault for job in failed},
        stop.exit_status,
    )


def _results(claim: Claim, folder: Path, jobs: Sequence[Job]) -> pages.Results:
    records = []
    for job in jobs:
        own = [job.log, *(job.folder / name for name in ("train.log", "metrics.json"))]
        logs = [path for path in own if path.is_file()]
        if logs:
            fault = "" if job.measured else job.fault
            hours = job.seconds / 3600 or None
            records.append(pages.Record(job.row.name, job.run, job.ran, hours, logs, fault))
    machines = dict.fromkeys(line for job in jobs for line in job.machines)
    outcomes = verdicts.outcomes(claim, results_of(jobs), folder)
    return pages.Results(claim, outcomes, records, list(machines))


def _earlier(folder: Path, claims: Sequence[Claim]) -> list[pages.Results]:
    """Return the results of claims of earlier commands in ``folder``."""
    found = []
    for path in sorted(folder.glob(f"*/{CLAIM}")):
        if path.parent.name not in [claim.folder for claim in claims]:
            claim = read(path, path.parent.name)
            found.append(_results(claim, path.parent, jobs_of(claim, path.parent)))
    return found


def _check(
    claims: Sequence[Claim],
    jobs: Sequence[Sequence[Job]],
    datadirs: Mapping[str, str],
    check: Callable[[Job], object],
) -> None:
    """Raise one `ConfigError` for all commands that cannot work, before any of them runs."""
    faults: dict[str, None] = {}
    for claim, each in zip(claims, jobs):
        if claim.data is not None and claim.data not in datadirs:
            faults[f"{claim.name}: needs its data: --datadir {claim.data}=DIR"] = None
            continue
        for job in each:
            try:
                check(job)
            except errors.BitPaddleError as error:
                faults[f"{claim.name} {job.row.name}: {error}"] = None
    if faults:
        head = [f"{len(faults)} faults"] if len(faults) > 1 else []
        raise errors.ConfigError("\n  ".join([*head, *faults]))
