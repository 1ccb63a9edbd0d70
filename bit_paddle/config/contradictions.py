"""Settings that contradict one another, or what they are for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from bit_paddle.config.data_options import data_options
from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.config.run_settings import fields_of
from bit_paddle.config.settings import AUTO, Settings
from bit_paddle.errors import BitPaddleError
from bit_paddle.models import published
from bit_paddle.models.architecture import GROUPS
from bit_paddle.recipes.recipe import RECIPES
from bit_paddle.system.hub import Repository

_SEVERAL = "sigmoid"  # the loss of images with several labels


def defaults_of_data(values: dict[str, Any], find_dataset: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults that the data decide: the loss, if an image may have several labels.

    The arguments are those of `contradictions`.
    """
    if values["dataset"] is MISSING:
        return {}
    try:
        found = find_dataset(values["dataset"], **data_options(values))
    except BitPaddleError:  # which `contradictions` reports
        return {}
    return {"loss": _SEVERAL} if found.several and not RECIPES[values["rule"]].taught else {}


def contradictions(
    values: dict[str, Any], unclear: set[str], find_dataset: Callable[..., Any]
) -> list[str]:
    """Return the faults of settings that contradict one another or their surroundings.

    A required setting that is not given is MISSING. ``unclear`` settings are faulty themselves,
    and not compared with others.
    """
    faults: list[str] = []
    dataset = values["dataset"]
    if dataset is not MISSING:
        try:
            found = find_dataset(dataset, **data_options(values))
            faults += _label_faults(values) if found.several else []
        except BitPaddleError as fault:
            faults.append(str(fault))
    faults += _model_faults(values)
    faults += _split_faults(values, unclear)
    if values["epochs"] is not None and RECIPES[values["rule"]].epochs is None:
        by_epochs = " or ".join(
            name for name, recipe in RECIPES.items() if recipe.epochs is not None
        )
        faults.append(f"--epochs: is for --rule {by_epochs}; the length of fine-tuning is --steps")
    else:
        faults += _length_faults(values)
    faults += _fold_faults(values)
    faults += [] if unclear & {"rule", "teacher"} else _teacher_faults(values)
    faults += _nproc_faults(values, unclear)
    precrop, crop = values["precrop"], values["crop"]
    pair = not unclear & {"precrop", "crop"}
    if pair and (precrop is None) != (crop is None):
        faults.append("--precrop and --crop: only one is given; give both, or neither")
    elif pair and crop is not None and precrop < crop:
        faults.append(
            f"--precrop: is {precrop}, smaller than --crop {crop}, which is cut out of it"
        )
    if values["alternate_crop"] is not None:
        if not RECIPES[values["rule"]].inception_crops:
            by_crops = " or ".join(
                name for name, recipe in RECIPES.items() if recipe.inception_crops
            )
            faults.append(f"--alternate_crop: is for --rule {by_crops}, which resizes its crops")
        elif values["random_crop"] is False:
            faults.append("--alternate_crop and --no-crop: without crops all views have one size")
    datadir = values["datadir"] or "."
    if "://" not in datadir and not Path(datadir).exists():
        faults.append(f"--datadir: {datadir}: no such folder or archive")
    return faults + _run_faults(values)


def _label_faults(values: Mapping[str, Any]) -> list[str]:
    """Return the faults of settings for data whose images may have several labels."""
    faults, rule = [], values["rule"]
    if RECIPES[rule].taught:
        return [f"--rule: is {rule}, but an image of these data may have several labels: a student "
                "learns one softmax over the classes"]  # fmt: skip
    for name, usual, why in (
        ("loss", _SEVERAL, f"with softmax exactly one label is right; {_SEVERAL} takes several"),
        ("balance", 0.0, "the weight of an image is that of its only class"),
    ):
        if values[name] != usual:
            faults.append(
                f"--{name}: is {values[name]}, but an image of these data may have several labels: "
                f"{why}; omit --{name}"
            )
    return faults


def _fold_faults(values: Mapping[str, Any]) -> list[str]:
    """Return the faults of settings that contradict --folds."""
    folds, fold, faults = values["folds"], values["fold"], []
    if fold is not None and (folds is None or fold > folds):
        faults.append(f"--fold: is {fold}, expected a number from 1 to --folds, which is {folds}")
    if folds is not None and values["val_fraction"] is not None:
        faults.append("--val_fraction and --folds: each fold is held out in turn; give only one")
    if folds is not None and values["repeats"] > 1:
        faults.append(
            "--repeats and --folds: both make several runs; give only one. To repeat a "
            "cross-validation, give --folds with another --seed"
        )
    return faults


def _teacher_faults(values: Mapping[str, Any]) -> list[str]:
    """Return the faults of --teacher, and of settings that contradict a rule with a teacher."""
    rule, teacher = values["rule"], values["teacher"]
    if not RECIPES[rule].taught:
        taught = " or ".join(name for name, recipe in RECIPES.items() if recipe.taught)
        flags = ("teacher", "teacher_crop")
        return [
            f"--{flag}: is for --rule {taught} only" for flag in flags if values[flag] is not None
        ]
    faults = []
    if teacher is None:
        faults.append(f"--teacher: is required by --rule {rule}: the model that the student learns")
    else:
        try:
            published.resolve(teacher)
        except BitPaddleError as fault:
            faults.append(f"--teacher: {fault}")
    for name, why in (
        ("loss", "the loss is the divergence from the teacher's softmax probabilities"),
        ("balance", "no labels are used, so no class has a weight"),
        ("learn", "the whole student learns"),
    ):
        usual = fields_of(Settings)[name].default
        if values[name] != usual:
            faults.append(f"--{name}: is {values[name]}, but with --rule {rule} {why}; omit it")
    return faults


def of_detection(values: dict[str, Any], unclear: set[str], opened: bool = True) -> list[str]:
    """Return the faults of a detection's settings; the arguments are those of `contradictions`.

    The data must be there if they will be ``opened``.
    """
    faults = []
    for name in ("boxes", "images", "val_boxes", "val_images", "test_boxes", "test_images"):
        path = values[name]
        given = path is not None and path is not MISSING
        if opened and given and not Path(path).exists():
            faults.append(f"--{name}: {path}: no such file or folder")
    for part in ("val", "test"):
        if values[f"{part}_images"] is not None and values[f"{part}_boxes"] is None:
            faults.append(f"--{part}_images: needs --{part}_boxes, the boxes in these images")
    if values["val_fraction"] is not None and values["val_boxes"] is not None:
        faults.append("--val_fraction and --val_boxes: both choose validation images; give one")
    faults += [*_model_faults(values), *_split_faults(values, unclear), *_length_faults(values)]
    for name in ("regions", "box_loss", "depth"):
        only = "faster_rcnn" if name == "regions" else "retinanet"
        usual = fields_of(DetectionSettings)[name].default
        if values[name] != usual and values["detector"] != only and "detector" not in unclear:
            faults.append(f"--{name}: is for --detector {only} only")
    if values["channels"] % GROUPS:
        faults.append(
            f"--channels: is {values['channels']}, expected a multiple of {GROUPS}, the number of "
            "groups of GroupNorm"
        )
    low, high = values["scale_min"], values["scale_max"]
    if not unclear & {"scale_min", "scale_max"} and low > high:
        faults.append(f"--scale_min: is {low:g}, larger than --scale_max {high:g}")
    return [*faults, *_nproc_faults(values, unclear), *_run_faults(values)]


# --- Of every task ------------------------------------------------------------------------------


def _model_faults(values: Mapping[str, Any]) -> list[str]:
    """Return the faults of --model, --from_scratch and --learn."""
    faults, model = [], values["model"]
    if model is not MISSING:
        try:
            resolved = published.resolve(model, pretrained=not values["from_scratch"])
            if values["from_scratch"] and isinstance(resolved, (Path, Repository)):
                faults.append(
                    f"--model: {model} is a checkpoint, which --from_scratch would not "
                    "read; give an architecture such as R50x1"
                )
        except BitPaddleError as fault:
            faults.append(f"--model: {fault}")
    if values["learn"] != "all" and values["from_scratch"]:
        faults.append(
            f"--learn: is {values['learn']}, which keeps the weights before it, but --from_scratch "
            "makes them random; give a checkpoint as --model, or --learn all"
        )
    return faults


def _split_faults(values: Mapping[str, Any], unclear: set[str]) -> list[str]:
    """Return the fault of a --batch_split that does not divide --batch."""
    batch, split = values["batch"], values["batch_split"]
    if split == AUTO or not batch % split or "batch" in unclear:
        return []
    below = next(n for n in range(min(split, batch), 0, -1) if batch % n == 0)
    above = [n for n in range(split, min(batch, 2 * split) + 1) if batch % n == 0][:1]
    near = [below, *above]
    return [
        f"--batch_split: is {split}, which does not divide --batch {batch}; "
        f"{' or '.join(map(str, sorted(near)))} would"
    ]


def _length_faults(values: Mapping[str, Any]) -> list[str]:
    """Return the fault of a length that is given twice."""
    if values["epochs"] is None or values["steps"] is None:
        return []
    return ["--epochs and --steps: both set the length of the run; give only one"]


def _nproc_faults(values: Mapping[str, Any], unclear: set[str]) -> list[str]:
    """Return the fault of more processes than images."""
    nproc, batch = values["nproc"], values["batch"]
    if nproc <= batch or "batch" in unclear:
        return []
    return [f"--nproc: is {nproc}, more than --batch {batch}; each process needs an image"]


def _run_faults(values: Mapping[str, Any]) -> list[str]:
    """Return the faults of --devices and --name."""
    faults = []
    if values["devices"] is not None and values["device"] == "cpu":
        faults.append(f"--devices: is {values['devices']}, but --device is cpu")
    name = values["name"]
    if name is not None and (Path(name).name != name or name in (".", "..")):
        faults.append(f"--name: is {name!r}, expected a folder's name, without {os.sep}")
    return faults
