"""Write a trained model in another format: ``python -m bit_paddle.export --help``.

The export is loaded back and its outputs are compared with the model's. Only then does it get the
name of ``--output``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bit_paddle import errors
from bit_paddle.config import parsing, settings
from bit_paddle.config.types import whole
from bit_paddle.errors import BitPaddleError, ConfigError, did_you_mean
from bit_paddle.inference import paddle_inference
from bit_paddle.inference.formats import FORMATS, installed
from bit_paddle.inference.trained import find_trained, required_preprocessing
from bit_paddle.inference.verify import IMAGES, export
from bit_paddle.models import published

_EPILOG = """\
formats:
{formats}

The model computes logits, or features if it has no head, from images [N, 3, H, W]: RGB in [-1, 1].
Every export takes any batch and any image size.

examples:
  python -m bit_paddle.export --model bit_logs/pets/model.npz --format onnx --output pets.onnx
  python -m bit_paddle.export --model BiT-M-R50x1-ILSVRC2012 --format paddle --output served
      then: paddle.jit.load("served/inference"), Paddle Inference, or evaluate and predict with
      --model served; these two use oneDNN on all cores, and bfloat16 with --amp bf16
  python -m bit_paddle.export --model bit_logs/pets/model.npz --format huggingface --output pets_hf
      then: transformers.BitForImageClassification.from_pretrained("pets_hf")
  python -m bit_paddle.export --model BiT-M-R50x1 --format safetensors-timm --output r50x1.safetensors
      then: timm.create_model("resnetv2_50x1_bit", num_classes=21843,
                              checkpoint_path="r50x1.safetensors")
"""  # noqa: E501


def main(arguments: Sequence[str]) -> int:
    """Run the command with ``arguments``; return its exit status. Errors: `bit_paddle.errors`."""
    flags = _parse(arguments)
    output = Path(flags.output)
    wants_names = flags.format == "huggingface"
    trained = find_trained(flags.model, flags.bit_pretrained_dir, flags.crop, wants_names)
    if flags.format == "huggingface":
        required_preprocessing(trained)
    paddle_inference.hush()

    import paddle

    from bit_paddle.models.weights import create_model

    paddle.set_device("cpu")  # full float32, and more memory than a GPU
    model = create_model(trained.path)
    model.eval()
    verified = export(model, trained, flags.format, output)
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    size = sum(path.stat().st_size for path in files)
    print(f"{output}: {model.architecture.name} as {flags.format}, {size / 1e6:.1f} MB")
    if output.is_dir():
        print("\n".join(f"  {path.name}" for path in sorted(files)))
    sizes = " and ".join(f"{height} x {width}" for *_, height, width in IMAGES)
    if verified is None:
        print("only checked by onnx; not run, because onnxruntime is not installed")
    else:
        print(f"loaded back and run on images of {sizes} pixels: {verified}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    formats = "\n".join(f"  {name:17} {entry.about}" for name, entry in FORMATS.items())
    parser = parsing.Parser(
        prog="python -m bit_paddle.export",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a trained BiT model in another format, and check that it computes "
        "the same.",
        epilog=_EPILOG.format(formats=formats),
    )
    parser.add_argument(
        "--model",
        required=True,
        help="model to export: a published name (python -m bit_paddle.catalog lists them), an .npz "
        "file, or the folder of a complete run",
    )
    parser.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        help="format of the export: one of the formats below",
    )
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="file or folder to write; must not exist"
    )
    parser.add_argument(
        "--bit_pretrained_dir", metavar="DIR", help=settings.help_of("bit_pretrained_dir")
    )
    parser.add_argument(
        "--crop",
        type=whole(32),
        metavar="N",
        help="for huggingface: side in pixels to which images are resized (default: that of the "
        "checkpoint)",
    )
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags; raise one `ConfigError` that lists every fault."""
    flags = parser().parse_args(arguments)
    faults = []
    if flags.format not in FORMATS:
        faults.append(f"--format: is {flags.format!r}: {did_you_mean(flags.format, FORMATS)}")
    else:
        chosen = FORMATS[flags.format]
        faults += [
            f"--format {flags.format}: needs {package}: {errors.install_hint(chosen.extra)}"
            for package in chosen.packages
            if not installed(package)
        ]
    output = Path(flags.output)
    if os.path.lexists(output):
        faults.append(f"--output: {output} exists; remove it, or choose another name")
    elif not output.parent.is_dir():
        faults.append(f"--output: {output.parent} is not a folder")
    try:
        published.resolve(flags.model)
    except BitPaddleError as fault:
        faults.append(f"--model: {fault}")
    if faults:
        raise ConfigError(
            faults[0] if len(faults) == 1 else f"{len(faults)} faults\n  " + "\n  ".join(faults)
        )
    return flags


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
