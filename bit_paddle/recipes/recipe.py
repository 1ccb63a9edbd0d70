"""Recipes: the settings that a rule chooses for a run. ``--rule`` takes the names of `RECIPES`.

A new recipe is a subclass of `Recipe` and an entry of `RECIPES`.
"""

from __future__ import annotations

from bit_paddle.recipes import distill, hyperrule, upstream
from bit_paddle.recipes.hyperrule import Resolution, Schedule

#: Height and width assumed for the originals of a data set that is declared small or large
SIDES = {"small": (32, 32), "large": (512, 512)}


class Recipe:
    """BiT-HyperRule as in the authors' code; subclasses override what differs."""

    name = "code"
    #: Whether training views are Inception crops; else images are squashed to `Resolution.precrop`,
    #: and cropped
    inception_crops = False
    #: Whether a new run keeps a head for the same classes; else every run starts with a new head
    keeps_head = False
    #: Whether validation resizes the shorter side and crops the centre; else images are squashed
    evaluation_keeps_shape = False
    #: Whether a teacher's outputs are learned (--teacher), not labels
    taught = False
    optimizer = "sgd"  #: or "adam"; see `training.optimizer`
    batch = hyperrule.BATCH
    weight_decay = 0.0
    #: Length of a run in passes over the images; None: `schedule` fixes the number of steps
    epochs: int | None = None

    def base_lr(self, batch: int) -> float:
        """Return the learning rate after the warm-up."""
        return hyperrule.BASE_LR

    def defaults(self, chosen: dict) -> dict:
        """Return the recipe's defaults of settings, which may depend on the ``chosen`` ones."""
        batch = chosen.get("batch", self.batch)
        values = {
            "batch": batch,
            "base_lr": self.base_lr(batch),
            "weight_decay": self.weight_decay,
        }
        if self.epochs is not None and not chosen.get("steps"):
            values["epochs"] = self.epochs
        return values

    def schedule(self, images: int, batch: int, epochs: int | None = None) -> Schedule:
        """Return the schedule for ``images`` training images."""
        return hyperrule.schedule(images, self.name)

    def resolution(self, height: float, width: float, model: str) -> Resolution:
        """Return the resolution for originals of ``height`` x ``width`` pixels."""
        return hyperrule.resolution(height, width, self.name, model)

    def resolution_reason(self, size: tuple[int, int] | None, declared: str | None) -> str:
        """Return the reason for `resolution`, in words.

        ``size`` is (height, width) of the originals, None if unknown. ``declared`` is small or
        large if the data set's description declares it, else None.
        """
        if declared:
            return f"by the {self.name} rule for {declared} images"
        if size is None:
            return (
                f"by the {self.name} rule, if originals are not under 96 x 96 "
                "(else: --precrop 160 --crop 128)"
            )
        height, width = size
        under = "under" if height * width < hyperrule.SMALL_AREA else "not under"
        return f"by the {self.name} rule, as {height} x {width} is {under} 96 x 96"

    def mixup_alpha(self, images: int) -> float:
        """Return MixUp's alpha for ``images`` training images; 0 means no MixUp."""
        return hyperrule.mixup_alpha(images)

    def mixup_reason(self, images: int) -> str:
        """Return MixUp's distribution, or the reason for no MixUp, in words."""
        alpha = self.mixup_alpha(images)
        if alpha:
            return f"Beta({alpha}, {alpha})"
        return f"none below {hyperrule.SMALL_TASK:,} training images"

    def notes(self, images: int, batch: int) -> list[str]:
        """Return notes for the user about a run on ``images`` training images, one per line."""
        return []


class Paper(Recipe):
    """BiT-HyperRule as in the paper's text."""

    name = "paper"


class Upstream(Recipe):
    """Upstream training (pre-training), which produced the published checkpoints."""

    name = upstream.RULE
    inception_crops = True
    keeps_head = True
    evaluation_keeps_shape = True
    batch = upstream.BATCH
    weight_decay = upstream.WEIGHT_DECAY
    epochs = upstream.EPOCHS

    def base_lr(self, batch: int) -> float:
        return upstream.base_lr(batch)

    def schedule(self, images: int, batch: int, epochs: int | None = None) -> Schedule:
        return upstream.schedule(images, batch, epochs or self.epochs)

    def resolution(self, height: float, width: float, model: str) -> Resolution:
        return upstream.RESOLUTION

    def resolution_reason(self, size: tuple[int, int] | None, declared: str | None) -> str:
        return "by the upstream rule"

    def mixup_alpha(self, images: int) -> float:
        return 0.0

    def mixup_reason(self, images: int) -> str:
        return "none, as upstream"

    def notes(self, images: int, batch: int) -> list[str]:
        if batch <= images:
            return []
        return [
            f"an epoch is one step of {batch:,} images, {batch / images:.1f} times the training "
            "set; with a smaller --batch an epoch sees each image once"
        ]


class Distill(Upstream):
    """Distillation by function matching, which produced the published student R50x1_224."""

    name = distill.RULE
    taught = True
    optimizer = "adam"
    batch = distill.BATCH
    weight_decay = distill.WEIGHT_DECAY
    epochs = distill.EPOCHS

    def base_lr(self, batch: int) -> float:
        return distill.BASE_LR

    def schedule(self, images: int, batch: int, epochs: int | None = None) -> Schedule:
        return distill.schedule(images, batch, epochs or self.epochs)

    def resolution_reason(self, size: tuple[int, int] | None, declared: str | None) -> str:
        return f"by the {self.name} rule"

    def mixup_alpha(self, images: int) -> float:
        return distill.MIXUP_ALPHA

    def mixup_reason(self, images: int) -> str:
        alpha = self.mixup_alpha(images)
        return f"Beta({alpha:g}, {alpha:g}), lambda from 0 to 1" if alpha else "none"


#: Recipes by the name that ``--rule`` takes.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (Recipe(), Paper(), Upstream(), Distill())
}
