"""Write a trained model in another format: ``python -m bit_paddle.export --help``.

The export is loaded back and its outputs are compared with the model's. Only then does it get the
name of ``--output``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bit_paddle import _make_callable, api, errors
from bit_paddle.config import parsing, settings
from bit_paddle.config.types import MODELS, file_path, whole
from bit_paddle.inference import onnx_data
from bit_paddle.inference.formats import FORMATS
from bit_paddle.inference.verify import IMAGES

_EPILOG = """\
formats:
{formats}

The model computes logits, or features if it has no head, from images [N, 3, H, W]: RGB in [-1, 1].
Every export takes any batch and any image size.

examples:
  python -m bit_paddle.export --model bit_logs/pets/model.npz --format onnx --output pets.onnx
  python -m bit_paddle.export --model bit_logs/pets --format onnx --quantize pets/ --output small.onnx
      calibrates on pets' training images, and prints the accuracy on its validation images in
      float32 and in int8; then: evaluate and predict with --model small.onnx
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
    flags = parser().parse_args(arguments)
    done = api.export(
        flags.model,
        flags.format,
        flags.output,
        push=flags.push,
        private=flags.private,
        quantize=flags.quantize,
        datadir=flags.datadir,
        crop=flags.crop,
        directory=flags.bit_pretrained_dir,
    )
    output, verified = done.path, done.verified
    places = output.rglob("*") if output.is_dir() else (output, onnx_data.path_of(output))
    files = sorted(path for path in places if path.is_file())
    size = sum(path.stat().st_size for path in files)
    print(f"{output}: {done.architecture} as {flags.format}, {size / 1e6:.1f} MB")
    if len(files) > 1:
        print("\n".join(f"  {path.name}" for path in files))
    if len(files) > 1 and not output.is_dir():
        print("both files belong together: keep them in one folder; do not rename the second")
    sizes = " and ".join(f"{height} x {width}" for *_, height, width in IMAGES)
    if verified is None:
        print("only checked by onnx; not run, because onnxruntime is not installed")
    else:
        if not FORMATS[flags.format].graph:
            print("loaded back: every parameter has the same bits")
        before = "before it was quantized: " if done.int8 else ""
        print(f"{before}loaded back and run on images of {sizes} pixels: {verified}")
    if done.int8 is not None:
        print(done.int8)
    if not FORMATS[flags.format].has_facts:
        print("class names and preprocessing are not in this format: keep the source for them")
    if done.address is not None:
        print(f"uploaded to {done.address}")
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
        type=file_path,
        required=True,
        help=f"model to export: {MODELS}",
    )
    parser.add_argument(
        "--format",
        required=True,
        metavar="FORMAT",
        help="format of the export: one of the formats below",
    )
    parser.add_argument(
        "--output",
        type=file_path,
        required=True,
        metavar="PATH",
        help="file or folder to write; must not exist",
    )
    parser.add_argument(
        "--bit_pretrained_dir",
        type=file_path,
        metavar="DIR",
        help=settings.help_of("bit_pretrained_dir"),
    )
    parser.add_argument(
        "--crop",
        type=whole(32),
        metavar="N",
        help="for huggingface: side in pixels to which images are resized (default: that of the "
        "checkpoint)",
    )
    parser.add_argument(
        "--quantize",
        type=file_path,
        metavar="DATASET",
        help="for onnx: quantize the convolutions to int8. The training images of this data set, "
        "as for evaluate --dataset, give the ranges of the activations. Its validation images "
        "measure the accuracy before and after; both are printed and kept in the file",
    )
    parser.add_argument(
        "--datadir", type=file_path, metavar="DIR", help="for --quantize: as for evaluate"
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="for huggingface: upload the verified folder to this repository of the Hugging Face "
        "hub; log in with `hf auth login`, or set HF_TOKEN",
    )
    parser.add_argument(
        "--private", action="store_true", help="with --push: only you can see a new repository"
    )
    return parser


_make_callable(__name__, api.export)

if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
