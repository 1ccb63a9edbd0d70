"""The settings of a classification: a frozen dataclass. `config.saved` reads it from YAML."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any

from bit_paddle.config import run_settings
from bit_paddle.config.data_options import data_options
from bit_paddle.config.run_settings import RunSettings
from bit_paddle.config.types import (
    AUTO,
    MODELS,
    Kind,
    auto_or_whole,
    file_path,
    fraction,
    model_name,
    name_or_path,
    not_negative,
    one_of,
    positive,
    setting,
    share,
    switch,
    text,
    whole,
)
from bit_paddle.data import spec as specs
from bit_paddle.models import heads, losses
from bit_paddle.models.architecture import LEARN, Architecture
from bit_paddle.recipes import distill, hyperrule, upstream
from bit_paddle.recipes.recipe import RECIPES, Recipe

_what = functools.partial(setting, "what")
_how = functools.partial(setting, "how")


@dataclass(frozen=True)
class TaskSettings:
    """The model and the data of a classification, and its recipe."""

    model: str = _what(
        model_name,
        f"model to train: {MODELS}; with --from_scratch also R<layers>x<width>",
    )
    dataset: str = _what(
        name_or_path,
        "data set: folder or list (your own images, with --datadir), table or coco (the same, with "
        "several labels per image), cifar10, cifar100, "
        "imagenet2012, oxford_flowers102, oxford_iiit_pet, tf_flowers, digits, vtab/<task>, "
        "shards (tars of many images, with --datadir), "
        "unlabelled (images for --rule distill, with --datadir), "
        "hf:OWNER/NAME (a data set of the Hugging Face hub with parquet files; @REVISION may "
        "follow), hf (local parquet files, with --datadir), or a .yaml file that describes a data "
        "set (examples: configs/data)",
    )
    datadir: str | None = _what(
        file_path,
        "folder of the data. For folder it holds train/<class>/*, val/<class>/* and perhaps "
        "test/<class>/*, or <class>/* alone. For list it holds train.csv, val.csv and perhaps "
        "test.csv (or .tsv, .txt) with a path and a label per line; for table with a path and a "
        "column of 0 and 1 per label. For coco it holds annotations.json, or train.json and "
        "val.json. For these four it may be an archive (.zip, .tar, .tar.gz). For the other data "
        "sets it holds the official files",
        None,
        default_help="the cache, for data sets that can be downloaded",
        affects_result=False,
    )
    val_fraction: float | None = _what(
        fraction,
        "fraction of each class that is held out for validation if a folder or list has no "
        "validation images. With train and test alone, it keeps test for the end of the run; "
        "without it, the test images are used for validation",
        None,
        default_help="0.1",
    )
    separator: str | None = _what(
        text,
        "an image may have several labels, or none: the text between them in a list, such as ';'. "
        "For folder it names them in labels.csv, a path and labels per line. The loss is then "
        "sigmoid",
        None,
        default_help="one label per image; the data set's .yaml file decides",
    )
    group: str | None = _what(
        text,
        "the images of one group (a patient, an object) are never split: all of them train, or all "
        "of them validate. Either a column of the list (its name, or its number from 1 on), or a "
        "regular expression with one group in ( ) that finds the group's name in a path, such as "
        r"'(patient\d+)_'. For --val_fraction and --folds",
        None,
        default_help="each image by itself",
    )
    exclude: str | None = _what(
        file_path,
        "file of images to leave out: a path per line, relative to the folder of the data, as "
        "`bit_paddle audit` writes it. The other images stay in their part",
        None,
        affects_result=False,
    )
    folds: int | None = _what(
        whole(2),
        "cross-validation: N runs; each validates on another N-th of the training and validation "
        "images, and trains on the others. Reports the accuracy over all images",
        None,
        default_help="one run, without cross-validation",
    )
    fold: int | None = _what(
        whole(1), "make only this run of --folds, from 1 to N", None, default_help="all of them"
    )
    on_bad_image: str = _what(
        one_of("error", "skip"),
        "handling of unreadable images. error: list them before training, and stop. skip: decode "
        "every image once before training, and skip the unreadable ones",
        "error",
    )
    bit_pretrained_dir: str | None = _what(
        file_path,
        "folder of the published .npz files; a missing file is downloaded into it",
        None,
        default_help="the cache, $BIT_PADDLE_HOME or ~/.cache/bit_paddle",
        affects_result=False,
    )
    from_scratch: bool = _what(switch, "random initial weights instead of a checkpoint", False)
    examples_per_class: int | None = _what(
        whole(1),
        "few-shot training: number of training images per class",
        None,
        default_help="all images",
    )
    examples_per_class_seed: int = _what(whole(0), "seed of the few-shot selection", 0)

    rule: str = _how(
        one_of(*RECIPES),
        "recipe that chooses the settings which are not given. code: BiT-HyperRule as in the "
        "authors' code, which produced the published accuracies. paper: BiT-HyperRule as in the "
        "paper's text. distill: a student learns the outputs of --teacher, without labels. "
        "upstream: pre-training, the recipe of bit_paddle.pretrain",
        "code",
    )
    teacher: str | None = _how(
        model_name,
        f"trained model whose outputs are learned, with --rule {distill.RULE}; named as for "
        "--model. The student gets its classes",
        None,
        affects_result=False,  # a resumed run compares the weights
    )
    teacher_crop: int | None = _how(
        whole(32),
        "side in pixels to which the teacher's views are resized",
        None,
        default_help="that of --crop",
    )
    learn: str = _how(
        one_of(*LEARN),
        "what learns: all, the head alone, or a block and all that follows (block4: block "
        "4, the last norm, the head). What comes before is frozen: less time, less memory",
        "all",
    )
    head: str = _how(Kind(heads.parse, heads.METAVAR), heads.HELP, heads.LINEAR)
    batch: int = _how(
        whole(1),
        f"batch size: images per optimizer step; with --rule upstream or distill {upstream.BATCH}",
        hyperrule.BATCH,
    )
    batch_split: int | str = _how(
        auto_or_whole,
        "micro-batches per batch (gradient accumulation): more of them take less memory, with the "
        "same result. auto: as few as fit in memory, by estimate on a CPU and by trial on a GPU; "
        "a run that is out of memory later takes more",
        AUTO,
        affects_result=False,
    )
    recompute: str = _how(
        one_of("off", "unit", "block"),
        "activation recomputation: less memory, more time, the same result. Only the inputs of "
        "the residual units (unit) or of the four blocks (block) are stored; the backward pass "
        "computes the rest again",
        "off",
        affects_result=False,
    )
    amp: str = _how(
        one_of("auto", "off", "bf16", "fp16"),
        "mixed precision: half precision between layers and in convolutions, float32 elsewhere; "
        "fp16 scales the loss. auto: bf16 on GPUs from Ampere on, fp16 on Volta and Turing, else "
        "off. bf16 is also faster on CPUs with AMX or AVX-512 bfloat16, but auto does not choose "
        "it there",
        "auto",
    )
    base_lr: float = _how(
        positive,
        "base learning rate, reached after the warm-up; with --rule upstream 0.03 per 256 images "
        f"of the batch, with --rule distill {distill.BASE_LR:g}",
        hyperrule.BASE_LR,
    )
    weight_decay: float = _how(
        not_negative,
        "weight decay, added to the gradients of kernels; with --rule upstream "
        f"{upstream.WEIGHT_DECAY:g}. With --rule distill {distill.WEIGHT_DECAY:g}, subtracted from "
        "kernels in proportion to the schedule",
        0.0,
    )
    loss: str = _how(
        one_of(*losses.LOSSES),
        "loss function. "
        + "; ".join(f"{name}: {loss.about}" for name, loss in losses.LOSSES.items())
        + ". For data with several labels per image it is sigmoid",
        losses.DEFAULT,
    )
    balance: float = _how(
        share,
        "weight of rare classes in the loss: an image whose class has n training images has the "
        "weight n^-X, scaled to a mean of 1 over the images. 0: all images weigh the same, the "
        "rule; 1: all classes weigh the same. Validation has no weights",
        0.0,
    )
    epochs: int | None = _how(
        whole(1),
        "length of the run in passes over the training images, with --rule upstream or distill",
        None,
        default_help=f"{upstream.EPOCHS}, {distill.EPOCHS}",
    )
    warmup: int | None = _how(
        whole(0),
        "length of the linear warm-up of the learning rate from 0, in steps",
        None,
        default_help="the rule's",
    )
    steps: int | None = _how(
        whole(1),
        "length of the run in optimizer steps; the rule's schedule is scaled in proportion",
        None,
        default_help="the rule's",
    )
    precrop: int | None = _how(
        whole(1),
        "side in pixels of the training images before the random crop; needs --crop. With --rule "
        "upstream or distill: shorter side of the validation images before the centre crop",
        None,
        default_help="the rule's; of --rule distill the teacher's",
    )
    crop: int | None = _how(
        whole(32),
        "side in pixels of the random crop and of the validation images; needs --precrop",
        None,
        default_help="the rule's; of --rule distill the teacher's",
    )
    alternate_crop: int | None = _how(
        whole(32),
        "side in pixels of the training images in every second step, such as 320 beside 224; "
        "with --rule upstream or distill",
        None,
        default_help="--crop in every step",
    )
    flip: bool | None = _how(
        switch,
        "no random mirroring of training images, for data whose labels a mirror would change",
        None,
        default_help="the data set's .yaml file decides; else half of the images are mirrored",
    )
    random_crop: bool | None = _how(
        switch,
        "no random crops: training images are resized to --crop, for data whose labels a crop "
        "would change",
        None,
        default_help="the data set's .yaml file decides; else images are cropped",
    )
    seed: int = _how(
        whole(0), "seed of the data's order, crops, flips, MixUp and random weights", 0
    )


@dataclass(frozen=True)
class Settings(RunSettings, TaskSettings):
    """All settings of a run. The field names are also the flags and the YAML keys.

    Their order is that of the help: a dataclass takes the fields of its last base first.
    """

    task = "classification"
    prog = "python -m bit_paddle.train"
    size = "crop"
    groups = {
        "what": "model and data",
        "how": "training recipe: --rule chooses what is not given",
        "run": "run: files, checkpoints, hardware",
    }
    seeds = ("seed", "examples_per_class_seed")

    @classmethod
    def recipe_defaults(cls, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults of --rule, which may depend on the ``chosen`` settings.

        Pre-training starts from random weights if --model is an architecture.
        """
        if "rule" not in chosen:
            return {}
        recipe, model = RECIPES[chosen["rule"]], chosen.get("model", "")
        random = {"from_scratch": True} if recipe.keeps_head and Architecture.parse(model) else {}
        return {**recipe.defaults(dict(chosen)), **random}

    def recipe_schedule(self, images: int) -> hyperrule.Schedule:
        """Return the schedule of --rule for ``images`` training images."""
        return self.recipe.schedule(images, self.batch, self.epochs)

    @property
    def recipe(self) -> Recipe:
        """The recipe named by --rule."""
        return RECIPES[self.rule]

    @property
    def optimizer(self) -> str:
        """The optimizer of --rule."""
        return self.recipe.optimizer

    @property
    def runs(self) -> int:
        """The number of runs in the folder."""
        return self.folds if self.folds and self.fold is None else self.repeats

    @property
    def data_options(self) -> dict[str, Any]:
        """The arguments of `registry.open_dataset` beside the name of the data set."""
        return data_options(vars(self))

    @property
    def data_title(self) -> str:
        """The data set as it was given."""
        return self.dataset

    @property
    def data_name(self) -> str:
        """The data set, few-shot selection, repeats and folds in short."""
        name = specs.short_name(self.dataset, self.datadir)
        name += f"-{self.examples_per_class}shot" if self.examples_per_class else ""
        name += f"-x{self.repeats}" if self.repeats > 1 else ""
        if self.folds:
            name += f"-fold{self.fold}of{self.folds}" if self.fold else f"-folds{self.folds}"
        return name


FIELDS: dict[str, Field] = run_settings.fields_of(Settings)


def help_of(name: str) -> str:
    """Return the help of a setting with its ``default_help``, for every command with that flag."""
    return run_settings.help_of(FIELDS[name])
