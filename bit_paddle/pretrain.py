"""Pre-train BiT like the published checkpoints: ``python -m bit_paddle.pretrain --help``.

The command is `bit_paddle.train` with --rule upstream.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bit_paddle import errors, train
from bit_paddle.config import parsing
from bit_paddle.config.settings import Settings
from bit_paddle.recipes import upstream

PROG = "python -m bit_paddle.pretrain"

_EPILOG = f"""\
defaults of upstream training:
  --batch {upstream.BATCH}, --base_lr 0.03 per 256 images of the batch, --weight_decay \
{upstream.WEIGHT_DECAY:g}, --epochs {upstream.EPOCHS}; linear
  warm-up of 5,000 steps (at most a fifth of the run); learning rate divided by 10 after 30, 60 and
  80 of 90 epochs; Inception crops of 224 and flips; validation resizes the shorter side to 256 and
  crops the centre of 224

examples:
  {PROG} --config configs/pretrain/BiT-S-R50x1.yaml --datadir ilsvrc2012
      trains BiT-S on ILSVRC-2012; python -m bit_paddle.plan estimates its memory and time
  {PROG} --model R50x1 --dataset folder --datadir pets --epochs 300
      trains on your own images; upstream training needs many of them
  {PROG} --config configs/pretrain/BiT-Mini.yaml
      trains the 7 MB checkpoint of this package, on CIFAR-10
  {PROG} --model bit_logs/first/model.npz --dataset folder --datadir pets
      a second stage: starts from the weights of the first, and from its head if the classes are
      the same

--model is an architecture (R50x1), which starts from random weights, or names weights as for
bit_paddle.train (a file, BiT-M-R50x1); --from_scratch takes only the architecture of these.

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
    """Run the command with ``arguments``; return its exit status. Errors: `bit_paddle.errors`."""
    if {"-h", "--help"} & set(arguments):
        parser().print_help()
        return 0
    if any(word.split("=")[0] == "--rule" for word in arguments):
        raise errors.ConfigError(
            f"--rule: pretrain always is --rule {upstream.RULE}; {Settings.prog} takes other rules"
        )
    return train.main(["--rule", upstream.RULE, *arguments])


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command; its help shows upstream's defaults."""
    about = (
        "Pre-train a BiT model on images, from random weights or from those of an earlier stage."
    )
    return parsing.parser(PROG, about, _EPILOG, _DEFAULTS)


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
