"""Write one network in the files of other libraries, and the logits that those libraries compute.

    python scripts/make_foreign_models.py start FOLDER          weights and images
    python scripts/make_foreign_models.py timm FOLDER           in an environment with timm
    python scripts/make_foreign_models.py transformers FOLDER   … with transformers
    python scripts/make_foreign_models.py reference FOLDER      … with torch; needs --clone
    python scripts/make_foreign_models.py paddle FOLDER         … with Paddle 2.6.2, and with 3.x
    python scripts/make_foreign_models.py pack FOLDER tests/data/foreign-models.tar.xz

Each library fills its own network from the published layout, timm and the reference by code of
their own. ``FOLDER/<library>.json`` lists versions and files: class names, the side of the images
if the file does not say it, outputs in float32 and in float64. For a larger trial
add ``--net R50x1 --weights random --crop 224``, and put photos into ``FOLDER/images`` first. The
reference is google-research/big_transfer; ``--clone`` is a folder with its
``bit_pytorch/models.py``.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PERIOD = 997  # of the repeated numbers: a prime, so that no two kernels of a layer are alike

CLASSES = [f"class {letter}" for letter in "abcdefghij"]

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


# --- Weights and images -------------------------------------------------------------------------


def arrays(net: str, kind: str = "repeated") -> Iterator[tuple[str, np.ndarray]]:
    """Yield (published key, array) of the network ``net``, such as ``R14x0.5``.

    ``kind`` "repeated" numbers compress well in the layout [O, I, H, W] of every library; "random"
    ones are normally distributed. Neither leaves a GroupNorm at identity, nor the head at zero.
    """
    from bit_paddle.models import npz
    from bit_paddle.models.architecture import Architecture

    table = np.random.default_rng(18).standard_normal(PERIOD)
    for key, shape in npz.shapes(Architecture.parse(net), len(CLASSES)):
        start, size = zlib.crc32(key.encode()), int(np.prod(shape))
        if kind == "repeated":
            values = table[(start + np.arange(size)) % PERIOD]
        else:
            values = np.random.default_rng(start).standard_normal(size)
        if key.endswith("kernel"):
            flipped = values.reshape([shape[3], shape[2], shape[0], shape[1]])
            scale = 0.05 if kind == "repeated" else np.sqrt(2 / np.prod(shape[:3]))
            values = scale * flipped.transpose(2, 3, 1, 0)
        else:
            values = 0.1 * values + key.endswith("gamma")
        yield key, np.ascontiguousarray(values, np.float32)


def pictures() -> dict[str, Any]:
    """Return two PIL images, one wide and one tall, of waves and edges."""
    from PIL import Image

    images = {}
    for name, width, height in (("wide", 211, 153), ("tall", 139, 246)):
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        waves = [np.sin(x / 7 + k) * np.cos(y / (5 + 2 * k)) for k in range(3)]
        edges = [x * y % (31 + k) < 9 for k in range(3)]
        pixels = np.clip(100 + 60 * np.stack(np.add(waves, edges), 2), 0, 255)
        pixels = pixels.astype(np.uint8) // 8 * 8  # a smaller file
        images[name] = Image.fromarray(pixels if name == "wide" else pixels[:, :, ::-1].copy())
    return images


def start(folder: Path, net: str, kind: str) -> None:
    """Write ``published.npz``, and `pictures` if there are no images yet."""
    from bit_paddle.models import npz

    npz.write(folder / "published.npz", arrays(net, kind))
    if not (folder / "images").is_dir():
        (folder / "images").mkdir()
        for name, image in pictures().items():
            image.save(folder / "images" / f"{name}.png")


def photos(folder: Path) -> list:
    """Return the images as PIL images, in the order of their names."""
    from PIL import Image

    return [Image.open(path).convert("RGB") for path in sorted((folder / "images").iterdir())]


# --- timm ---------------------------------------------------------------------------------------

TIMM_VIEWS = {
    "squash": {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
    "centre": {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bilinear"},
    "clip": {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic", **CLIP},
}


def timm(folder: Path, net: str, crop: int) -> dict[str, Any]:
    """Write timm's files: bare tensors, a checkpoint of its training, folders of its hub."""
    import timm
    import torch
    from safetensors.torch import save_file
    from timm.models import resnetv2
    from timm.models._hub import save_for_hf
    from timm.utils import CheckpointSaver

    units, width = shape_of(net)
    model = resnetv2._create_resnetv2_bit(
        "resnetv2_50x1_bit", layers=units, width_factor=width, num_classes=len(CLASSES)
    ).eval()
    model.load_pretrained(str(folder / "published.npz"))
    here = folder / "timm"
    here.mkdir()
    state = model.state_dict()
    save_file(state, here / "net.safetensors")
    torch.save(state, here / "net.pth")
    torch.save(state, here / "legacy.pth", _use_new_zipfile_serialization=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    args = argparse.Namespace(model="resnetv2_50x1_bit", lr=0.003, mean=None)
    average = timm.utils.ModelEmaV3(model)  # timm loads it rather than the newest weights
    model.head.fc.bias.data.zero_()
    saver = CheckpointSaver(model, optimizer, args, model_ema=average, checkpoint_dir=str(here))
    saver.save_checkpoint(epoch=3, metric=71.5)
    (here / "last.pth.tar").rename(here / "training.pth.tar")
    for name in ("checkpoint-3", "model_best"):  # the same file
        (here / f"{name}.pth.tar").unlink()
    model.load_pretrained(str(folder / "published.npz"))

    versions = {"timm": timm.__version__, "torch": torch.__version__}
    facts = {}
    for view, settings in TIMM_VIEWS.items():
        model.pretrained_cfg.update(input_size=(3, crop, crop), **settings)
        config = timm.data.resolve_data_config({}, model=model)
        prepare = timm.data.create_transform(**config)
        images = torch.stack([prepare(photo) for photo in photos(folder)])
        facts[f"timm/{view}"] = measured(model, images, classes=CLASSES)
        save_for_hf(
            model,
            str(here / view),
            model_config={"label_names": CLASSES},
            safe_serialization=view != "clip",
        )
        if view == "squash":
            for name in ("net.safetensors", "net.pth", "legacy.pth", "training.pth.tar"):
                facts[f"timm/{name}"] = measured(model, images, crop=crop)
    return {"versions": versions, "files": facts}


# --- transformers -------------------------------------------------------------------------------


def processor_settings(crop: int) -> dict[str, dict[str, Any]]:
    """Return the settings of BitImageProcessor; "default" has CLIP's mean and a bicubic filter."""
    square, half = (
        {"height": crop, "width": crop},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    )
    shorter = {"shortest_edge": round(crop / 0.875)}
    return {
        "squash": {"size": square, "do_center_crop": False, "resample": 2, **half},
        "centre": {"size": shorter, "crop_size": square, "resample": 2, **half},
        "default": {"size": {"shortest_edge": crop}, "crop_size": square},
    }


def transformers(folder: Path, net: str, crop: int) -> dict[str, Any]:
    """Write folders of transformers: with and without a head, safetensors and pytorch_model.bin."""
    import torch
    import transformers

    try:
        processor_class = transformers.BitImageProcessorPil  # version 5, without torchvision
    except AttributeError:
        processor_class = transformers.BitImageProcessor
    units, width = shape_of(net)
    config = transformers.BitConfig(
        embedding_size=int(64 * width),
        hidden_sizes=[int(256 * width * 2**block) for block in range(4)],
        depths=units,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    model = transformers.BitForImageClassification(config).eval()
    fill_transformers(model, dict(np.load(folder / "published.npz")))
    facts, here = {}, folder / "transformers"
    for view, settings in processor_settings(crop).items():
        processor = processor_class(**settings)
        images = processor(photos(folder), return_tensors="pt")["pixel_values"]
        model.save_pretrained(here / view)
        processor.save_pretrained(here / view)
        facts[f"transformers/{view}"] = measured(model, images, classes=CLASSES)
        if view == "squash":
            (here / "bin").mkdir()
            for name in ("config.json", "preprocessor_config.json"):
                (here / "bin" / name).write_bytes((here / view / name).read_bytes())
            torch.save(model.state_dict(), here / "bin" / "pytorch_model.bin")
            model.save_pretrained(here / "shards", max_shard_size="4MB")
            processor.save_pretrained(here / "shards")
            facts["transformers/bin"] = facts["transformers/shards"] = facts[f"transformers/{view}"]
            model.bit.save_pretrained(here / "features")
            processor.save_pretrained(here / "features")
            facts["transformers/features"] = measured(model.bit, images, features=True)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return {"versions": versions, "files": facts}


def fill_transformers(model: Any, published: dict[str, np.ndarray]) -> None:
    """Fill BitForImageClassification layer by layer, without names of tensors."""
    import torch

    def copy(layer: Any, name: str) -> None:
        if f"{name}/gamma" in published:
            pairs = ((layer.weight, "gamma"), (layer.bias, "beta"))
        else:
            pairs = ((layer.weight, "kernel"), (getattr(layer, "bias", None), "bias"))
        for parameter, part in pairs:
            if parameter is not None:
                array = published[f"{name}/{part}"]
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
                parameter.data.copy_(torch.from_numpy(array.reshape(parameter.shape)))

    copy(model.bit.embedder.convolution, "resnet/root_block/standardized_conv2d")
    copy(model.bit.norm, "resnet/group_norm")
    copy(model.classifier[1], "resnet/head/conv2d")
    for b, stage in enumerate(model.bit.encoder.stages, 1):
        for u, unit in enumerate(stage.layers, 1):
            prefix = f"resnet/block{b}/unit{u:02d}"
            for letter, norm, convolution in (
                ("a", unit.norm1, unit.conv1),
                ("b", unit.norm2, unit.conv2),
                ("c", unit.norm3, unit.conv3),
            ):
                copy(norm, f"{prefix}/{letter}/group_norm")
                copy(convolution, f"{prefix}/{letter}/standardized_conv2d")
            if unit.downsample is not None:
                copy(unit.downsample.conv, f"{prefix}/a/proj/standardized_conv2d")


# --- The reference code -------------------------------------------------------------------------


class _Half:
    """The width 0.5 for the reference, whose channels must be whole: ``64 * _Half()`` is 32."""

    def __rmul__(self, channels: int) -> int:
        return channels // 2


def reference(folder: Path, net: str, crop: int, clone: str) -> dict[str, Any]:
    """Write ``bit.pth.tar`` as the reference's train.py saves it."""
    import torch
    from PIL import Image

    sys.path.insert(0, clone)
    from bit_pytorch.models import ResNetV2

    units, width = shape_of(net)
    model = ResNetV2(units, _Half() if width == 0.5 else int(width), len(CLASSES))
    model.load_from(np.load(folder / "published.npz"))
    model = torch.nn.DataParallel(model.eval())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    (folder / "reference").mkdir()
    torch.save(
        {"step": 20, "model": model.state_dict(), "optim": optimizer.state_dict()},
        folder / "reference" / "bit.pth.tar",
    )
    squashed = [
        np.asarray(photo.resize((crop, crop), Image.Resampling.BILINEAR))
        for photo in photos(folder)
    ]
    images = torch.from_numpy(np.stack(squashed).transpose(0, 3, 1, 2)).float() / 255
    facts = measured(model.module, (images - 0.5) / 0.5, crop=crop)
    return {"versions": {"torch": torch.__version__}, "files": {"reference/bit.pth.tar": facts}}


# --- Paddle -------------------------------------------------------------------------------------


def paddle(folder: Path, net: str, crop: int) -> dict[str, Any]:
    """Write a ``.pdparams`` file, as this package and `paddle.save` write it."""
    import paddle

    from bit_paddle import create_model
    from bit_paddle.data.preprocessing import Preprocessing
    from bit_paddle.data.transforms import evaluation_view

    model = create_model(folder / "published.npz")
    model.eval()
    name = f"paddle/{paddle.__version__}.pdparams"
    (folder / "paddle").mkdir(exist_ok=True)
    paddle.save(model.state_dict(), str(folder / name))
    images = np.stack([evaluation_view(photo, Preprocessing(crop)) for photo in photos(folder)])
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images.astype(np.float32) / np.float32(127.5) - 1)).numpy()
    facts = {"crop": crop, "float32": logits.tolist()}
    return {"versions": {"paddle": paddle.__version__}, "files": {name: facts}}


# --- All ----------------------------------------------------------------------------------------


def shape_of(net: str) -> tuple[list[int], float]:
    """Return the units and the width of ``R<layers>x<width>``."""
    from bit_paddle.models.architecture import Architecture

    architecture = Architecture.parse(net)
    width = architecture.width
    return list(architecture.units), int(width) if width == int(width) else width


def measured(model: Any, images: Any, **facts: Any) -> dict[str, Any]:
    """Return ``facts`` with the outputs of ``model`` in float32 and float64."""
    import torch

    def outputs(pixels: Any) -> list[list[float]]:
        with torch.no_grad():
            result = model(pixels)
        for name in ("logits", "pooler_output"):
            result = getattr(result, name, result)
        return result.reshape(len(pixels), -1).tolist()

    single = outputs(images)
    model.double()
    double = outputs(images.double())
    model.float()
    return {**facts, "float32": single, "float64": double}


def pack(folder: Path, target: str) -> None:
    """Write everything but ``published.npz`` as a .tar.xz archive."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 27}]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with lzma.open(target, "w", filters=filters) as xz, tarfile.open(fileobj=xz, mode="w") as tar:
        for path in files:
            if path.name != "published.npz":
                info = tarfile.TarInfo(path.relative_to(folder).as_posix())
                info.size = path.stat().st_size
                with open(path, "rb") as content:
                    tar.addfile(info, content)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = ("start", "timm", "transformers", "reference", "paddle", "pack")
    parser.add_argument("step", choices=steps)
    parser.add_argument("folder", type=Path)
    parser.add_argument("archive", nargs="?", help="for pack: the archive to write")
    parser.add_argument("--net", default="R14x0.5")
    parser.add_argument("--weights", choices=("repeated", "random"), default="repeated")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--clone", help="folder of google-research/big_transfer")
    flags = parser.parse_args()
    if flags.step == "start":
        flags.folder.mkdir(parents=True, exist_ok=True)
        return start(flags.folder, flags.net, flags.weights)
    if flags.step == "pack":
        return pack(flags.folder, flags.archive)
    more = (flags.clone,) if flags.step == "reference" else ()
    facts = globals()[flags.step](flags.folder, flags.net, flags.crop, *more)
    version = f"-{facts['versions']['paddle']}" if flags.step == "paddle" else ""
    (flags.folder / f"{flags.step}{version}.json").write_text(json.dumps(facts) + "\n")
    return None


if __name__ == "__main__":
    main()
