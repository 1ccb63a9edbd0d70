"""Fine-tune BiT: ``python -m bit_paddle.train --model BiT-M-R50x1 --dataset cifar10``.

This file tells a run from top to bottom: one update (`update`), then all of them (`run`), by a plan
made before (`bit_paddle.planning`). Paddle is imported inside `run` and not above, because it takes
seconds to load: help, a bad flag, a missing file and broken data are answered before that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bit_paddle import errors
from bit_paddle.config import parsing
from bit_paddle.data.readers import registry
from bit_paddle.runs import folder
from bit_paddle.system import processes
from bit_paddle.system.signals import heed_notice
from bit_paddle.training import repeats
from bit_paddle.training.launch import PROG, _plan, complete, start

# --- The command --------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    heed_notice()
    settings, request = parsing.parse(arguments, PROG, registry.find)
    if request.dry_run:
        with folder.claim(settings, request.force, dry=True) as begin:
            if begin.result is not None:
                print(complete(begin))
            else:
                print(_plan(settings, begin, request.force, fetch=False).describe())
        return 0
    if settings.repeats > 1 and processes.world_size() > 1:
        raise errors.ConfigError(
            "--repeats: is not for a launcher of processes; let --devices or --nproc start them"
        )
    if settings.repeats > 1:
        return repeats.repeat(settings, arguments, start, request.force)
    return start(settings, arguments, request.force)[0]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return parsing.parser(PROG)


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
