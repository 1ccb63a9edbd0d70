"""Fine-tune BiT: ``python -m bit_paddle.train --model BiT-M-R50x1 --dataset cifar10``.

`training.classification.plan` decides everything before the run, `training.run` holds the loop, and
`training.step` makes one update. Paddle takes seconds to import, so it is imported only after the
plan: help, bad flags, missing files and broken data are reported before that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.run_settings import RunSettings
from bit_paddle.config.settings import Settings
from bit_paddle.data.readers import registry
from bit_paddle.runs import folder
from bit_paddle.runs.results import FOLDS, summary
from bit_paddle.system import processes
from bit_paddle.system.signals import heed_notice
from bit_paddle.training import folds, launch, repeats
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.training.launch import Ended, MakePlan


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Raises errors of `errors`."""
    heed_notice()
    settings, request = parsing.parse(arguments, Settings.prog, registry.find)
    if request.dry_run:
        print(described(settings, request.force))
        return 0
    return train(settings, arguments, request.force).status


def train(
    settings: RunSettings,
    arguments: Sequence[str],
    force: bool = False,
    embedded: bool = False,
    make_plan: MakePlan = make_plan,
) -> Ended:
    """Train as ``settings`` say, in one run or several (--repeats, --folds).

    The arguments are those of `launch.start`.
    """
    if settings.runs == 1:
        return launch.start(settings, arguments, make_plan, force, embedded)
    if processes.world_size() > 1:
        raise errors.ConfigError(
            "--repeats and --folds: do not work under a process launcher; start processes with "
            "--devices or --nproc"
        )
    by_folds = summary(vars(settings)) == FOLDS
    several = folds.cross_validate if by_folds else repeats.repeat
    return several(settings, arguments, make_plan, force, embedded)


def described(settings: RunSettings, force: bool = False, make_plan: MakePlan = make_plan) -> str:
    """Return the plan of a run as text (--dry-run); nothing is written or downloaded."""
    with folder.claim(settings, force, dry=True) as begin:
        if begin.result is not None:
            return launch.complete(begin)
        return launch.plan_of(settings, begin, make_plan, force, fetch=False).describe()


def parser() -> argparse.ArgumentParser:
    """Return the command's argument parser."""
    return parsing.parser(Settings.prog)


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
