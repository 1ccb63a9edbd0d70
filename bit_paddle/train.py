"""Fine-tune BiT: ``python -m bit_paddle.train --model BiT-M-R50x1 --dataset cifar10``.

`training.plan` decides everything before the run, `training.run` tells it from top to bottom, and
`training.step` is one update. Paddle takes seconds to import, so it is imported when the plan is
made: help, a bad flag, a missing file and broken data are answered before that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.config.settings import Settings
from bit_paddle.data.readers import registry
from bit_paddle.runs import folder
from bit_paddle.system import processes
from bit_paddle.system.signals import heed_notice
from bit_paddle.training import launch, repeats
from bit_paddle.training.launch import PROG, Ended


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; return its exit status. `errors` has what it raises."""
    heed_notice()
    settings, request = parsing.parse(arguments, PROG, registry.find)
    if request.dry_run:
        print(described(settings, request.force))
        return 0
    return train(settings, arguments, request.force).status


def train(
    settings: Settings, arguments: Sequence[str], force: bool = False, embedded: bool = False
) -> Ended:
    """Carry out the run of ``settings``, or its --repeats; the arguments are `launch.start`'s."""
    if settings.repeats == 1:
        return launch.start(settings, arguments, force, embedded)
    if processes.world_size() > 1:
        raise errors.ConfigError(
            "--repeats: is not for a launcher of processes; let --devices or --nproc start them"
        )
    return repeats.repeat(settings, arguments, force, embedded)


def described(settings: Settings, force: bool = False) -> str:
    """Return the plan of a run in words (--dry-run); write nothing, download nothing."""
    with folder.claim(settings, force, dry=True) as begin:
        if begin.result is not None:
            return launch.complete(begin)
        return launch.plan_of(settings, begin, force, fetch=False).describe()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return parsing.parser(PROG)


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
