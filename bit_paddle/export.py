"""Write a trained model in another format: ``python -m bit_paddle.export --help``.

Nothing appears under the name given by ``--output`` before it has been loaded back and found to
compute what the model computes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bit_paddle import argtypes, catalog, cli, config, errors, exported, source
from bit_paddle.errors import (
    BitPaddleError,
    ConfigError,
    DifferenceError,
    WriteError,
    did_you_mean,
)
from bit_paddle.exported import Run
from bit_paddle.formats import FORMATS, as_run, installed
from bit_paddle.source import Source

if TYPE_CHECKING:
    from bit_paddle.models import ResNetV2

LIMIT = 1e-5  # relative difference between the export's outputs and the model's
_IMAGES = ((2, 3, 64, 64), (1, 3, 97, 130))  # what both are given
_EPILOG = """\
formats:
{formats}

The model computes logits, or features if it has no head, from images [N, 3, H, W]: RGB in [-1, 1].
Every export takes any batch and any image size.

examples:
  python -m bit_paddle.export --model bit_logs/pets/model.npz --format onnx --output pets.onnx
  python -m bit_paddle.export --model BiT-M-R50x1-ILSVRC2012 --format paddle --output served
      then: paddle.jit.load("served/inference"), Paddle Inference, or --model served of evaluate
      and predict; those two run it by oneDNN on every core, with --amp bf16 in bfloat16
  python -m bit_paddle.export --model bit_logs/pets/model.npz --format huggingface --output pets_hf
      then: transformers.BitForImageClassification.from_pretrained("pets_hf")
  python -m bit_paddle.export --model BiT-M-R50x1 --format safetensors-timm --output r50x1.safetensors
      then: timm.create_model("resnetv2_50x1_bit", num_classes=21843,
                              checkpoint_path="r50x1.safetensors")
"""  # noqa: E501


# --- Verification -------------------------------------------------------------------------------


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest of ``expected``; NaN if any is."""
    if found.shape != expected.shape:
        return np.inf
    scale = np.abs(expected).max()
    return float(np.abs(found - expected).max() / (scale if scale != 0 else 1))


class Verified(NamedTuple):
    """Largest relative differences; the last two are None where the first is within `LIMIT`."""

    difference: float  # of the export from the model
    inexact: float | None = None  # of the export from the model in float64
    rounding: float | None = None  # of the model from itself in float64

    def __str__(self) -> str:
        text = f"outputs within {self.difference:.1e} of the model's largest"
        if self.inexact is None:
            return text
        return (
            f"{text}, by rounding: within {self.inexact:.1e} of those in float64, where the "
            f"model's are within {self.rounding:.1e}"
        )


def verify(run: Run, model: ResNetV2) -> Verified:
    """Compare ``run`` with ``model`` over two sizes of images; raise `DifferenceError` if it fails.

    Their outputs may differ by `LIMIT` of the largest. Deep networks round more than that in
    float32; for them the export may be twice as far from the outputs in float64 as the model is.
    """
    random = np.random.default_rng(0)
    batches = [random.uniform(-1, 1, shape).astype(np.float32) for shape in _IMAGES]
    found = [run(batch) for batch in batches]
    expected = [as_run(model)(batch) for batch in batches]
    difference = _largest(found, expected)
    if difference <= LIMIT:
        return Verified(difference)
    exact = [as_run(_in_float64(model))(batch.astype(np.float64)) for batch in batches]
    result = Verified(difference, _largest(found, exact), _largest(expected, exact))
    if not result.inexact <= max(LIMIT, 2 * result.rounding):
        raise DifferenceError(
            f"loaded back, its outputs differ from the model's by {difference:.1e} of the largest, "
            f"more than {LIMIT:g} and than float32 explains; nothing was kept"
        )
    return result


def _largest(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return float(np.max(list(map(relative_difference, found, expected))))  # NaN if any is


def _in_float64(model: ResNetV2) -> ResNetV2:
    from bit_paddle.models import ResNetV2

    exact = ResNetV2(model.architecture, model.num_classes)
    exact.set_state_dict(model.state_dict())
    return exact.to(dtype="float64")


# --- The command --------------------------------------------------------------------------------


def export(
    model: ResNetV2, trained: Source, format: str, output: str | os.PathLike
) -> Verified | None:
    """Write ``model``, whose checkpoint is ``trained``, as ``output``; return what `verify` does.

    None means that it could not be run (onnxruntime is missing). ``output`` appears when it is
    complete and verified, and is not there otherwise. Errors: `ConfigError` for what the format
    cannot hold, `DifferenceError`, `WriteError`.
    """
    output = Path(output)
    partial = output.with_name(f"{output.name}.{os.getpid()}.part")
    write, read = FORMATS[format].write, FORMATS[format].read
    try:
        write(model, trained, partial)
        run = read(partial, model)
        verified = None if run is None else verify(run, model)
        os.rename(partial, output)
    except (OSError, RuntimeError) as error:  # the latter are Paddle's, of which a full disk is one
        if isinstance(error, BitPaddleError) and not isinstance(error, WriteError):
            raise
        reason = error.__cause__ if isinstance(error, WriteError) else error
        reason = getattr(reason, "strerror", None) or " ".join(str(reason).split())
        raise WriteError(
            f"{output}: cannot be written, or not be loaded back ({reason}); is there room on the "
            "disk? Nothing was kept"
        ) from error
    finally:
        with suppress(OSError):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)
    return verified


def main(arguments: Sequence[str]) -> int:
    """Run the command ``arguments``; `bit_paddle.errors` says what it raises."""
    flags = _parse(arguments)
    output = Path(flags.output)
    wants_names = flags.format == "huggingface"
    trained = source.find(flags.model, flags.bit_pretrained_dir, flags.crop, wants_names)
    if flags.format == "huggingface":
        source.required_preprocessing(trained)
    exported.hush()

    import paddle

    from bit_paddle.checkpoint import create_model

    paddle.set_device("cpu")  # in full float32, and no larger than the machine's memory
    model = create_model(trained.path)
    model.eval()
    verified = export(model, trained, flags.format, output)
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    size = sum(path.stat().st_size for path in files)
    print(f"{output}: {model.architecture.name} as {flags.format}, {size / 1e6:.1f} MB")
    if output.is_dir():
        print("\n".join(f"  {path.name}" for path in sorted(files)))
    sizes = " and ".join(f"{height} x {width}" for *_, height, width in _IMAGES)
    print(
        "not run, as onnxruntime is not installed; onnx found the file well-formed"
        if verified is None
        else f"loaded back, at {sizes}: {verified}"
    )
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags; raise one `ConfigError` that lists every fault."""
    formats = "\n".join(f"  {name:17} {entry.about}" for name, entry in FORMATS.items())
    parser = cli.Parser(
        prog="python -m bit_paddle.export",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a trained BiT model in another format, and check that it computes "
        "the same.",
        epilog=_EPILOG.format(formats=formats),
    )
    parser.add_argument("--model", required=True, help=config.help_of("model").split(", or")[0])
    parser.add_argument("--format", required=True, metavar="FORMAT", help="one of those below")
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="file or folder to write; must not exist"
    )
    parser.add_argument(
        "--bit_pretrained_dir", metavar="DIR", help=config.help_of("bit_pretrained_dir")
    )
    parser.add_argument(
        "--crop",
        type=argtypes.whole(32),
        metavar="N",
        help="huggingface: squash images to this side (default: what belongs to the checkpoint)",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    flags = parser.parse_args(arguments)

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
        catalog.resolve(flags.model)
    except BitPaddleError as fault:
        faults.append(f"--model: {fault}")
    if faults:
        raise ConfigError(
            faults[0] if len(faults) == 1 else f"{len(faults)} faults\n  " + "\n  ".join(faults)
        )
    return flags


if __name__ == "__main__":
    sys.exit(errors.run_command(main, sys.argv[1:]))
