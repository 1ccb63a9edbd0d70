"""The commands of the package, a line each: ``python -m bit_paddle``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bit_paddle import errors

COMMANDS = {
    "train": "fine-tune a model on images, by BiT-HyperRule",
    "pretrain": "train one from scratch, as upstream",
    "show": "see the images as the model gets them, and the plan, before training",
    "plan": "see what a run takes, before there is a GPU or data",
    "evaluate": "measure a model on the images of a data set",
    "predict": "classify images, or write their features",
    "report": "make a page to look at of runs",
    "export": "write a model for ONNX, Paddle Inference, timm, Hugging Face",
    "catalog": "list the published models",
    "compile": "compile the fast operators for processors ahead",
}


def main(arguments: Sequence[str]) -> int:
    """Print the commands; raise `ConfigError` for any word but a wish for help."""
    if arguments and arguments[0] not in ("-h", "--help"):
        near = errors.did_you_mean(arguments[0], COMMANDS)
        raise errors.ConfigError(
            f"{arguments[0]}: commands are modules, such as python -m bit_paddle.train; {near}"
        )
    for name, about in COMMANDS.items():
        print(f"python -m bit_paddle.{name:10} {about}")
    print("Each explains itself with --help. Weights of VTAB: python command.py --help")
    return 0


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
