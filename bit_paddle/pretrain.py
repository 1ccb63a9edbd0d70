"""Pre-train BiT, as the published checkpoints were made: ``python -m bit_paddle.pretrain --help``.

Training of any kind is one loop: this is `bit_paddle.train` by the rule `upstream`, from scratch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bit_paddle import errors, train
from bit_paddle.config import parsing
from bit_paddle.recipes import upstream
from bit_paddle.training import launch

PROG = "python -m bit_paddle.pretrain"

_EPILOG = f"""\
upstream training, unless a flag says otherwise:
  --batch {upstream.BATCH}, --base_lr 0.03 for every 256 images of it, --weight_decay \
{upstream.WEIGHT_DECAY:g}, --epochs {upstream.EPOCHS}; linear
  warm-up of 5,000 steps (a fifth of a shorter run); a tenth of the learning rate after 30, 60 and
  80 of 90 epochs; Inception crops of 224 and flips; validation on the centre of 224 of 256

examples:
  {PROG} --config configs/pretrain/BiT-S-R50x1.yaml --datadir ilsvrc2012
      BiT-S on ILSVRC-2012; `python -m bit_paddle.plan` says what it takes
  {PROG} --model R50x1 --dataset folder --datadir pets --epochs 300
      one's own images, of which there should be many
  {PROG} --config configs/pretrain/BiT-Mini.yaml
      the checkpoint of 7 MB that comes with this package, on CIFAR-10

Runs are those of bit_paddle.train: the same log, checkpoints, resumption and processes.
"""

_DEFAULTS = {
    "rule": upstream.RULE,
    "batch": f"{upstream.BATCH}",
    "base_lr": "upstream's",
    "weight_decay": f"{upstream.WEIGHT_DECAY:g}",
    "epochs": f"{upstream.EPOCHS}",
    "precrop": f"{upstream.RESOLUTION.precrop}",
    "crop": f"{upstream.RESOLUTION.crop}",
}


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    if {"-h", "--help"} & set(arguments):
        parser().print_help()
        return 0
    if any(word.split("=")[0] in ("--rule", "--no-from_scratch") for word in arguments):
        raise errors.ConfigError(
            f"--rule and --no-from_scratch: this is --rule {upstream.RULE} --from_scratch; "
            f"{launch.PROG} takes others"
        )
    return train.main(["--rule", upstream.RULE, "--from_scratch", *arguments])


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command, whose help names upstream's values."""
    about = "Pre-train a BiT model on images, from scratch."
    return parsing.parser(PROG, about, _EPILOG, _DEFAULTS)


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
