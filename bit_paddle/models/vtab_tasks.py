"""The tasks of VTAB-1k for which the authors published fine-tuned checkpoints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VtabTask:
    """A VTAB-1k task of BiT's fine-tuning; ``small`` tasks have a crop of 128, others of 480."""

    name: str
    classes: int
    small: bool = False


VTAB_TASKS = (
    VtabTask("caltech101", 102),
    VtabTask("cifar100", 100, small=True),
    VtabTask("dtd", 47),
    VtabTask("oxford_flowers102", 102),
    VtabTask("oxford_iiit_pet", 37),
    VtabTask("sun397", 397),
    VtabTask("svhn", 10, small=True),
    VtabTask("patch_camelyon", 2),
    VtabTask("eurosat", 10, small=True),
    VtabTask("resisc45", 45),
    VtabTask("diabetic_retinopathy", 5),
    VtabTask("clevr-count", 8),
    VtabTask("clevr-distance", 6),
    VtabTask("dmlab", 6),
    VtabTask("kitti-distance", 4),
    VtabTask("dsprites-xpos", 16, small=True),
    VtabTask("dsprites-orientation", 16, small=True),
    VtabTask("smallnorb-azimuth", 18),
    VtabTask("smallnorb-elevation", 9),
)

VTAB_MODELS = ("R50x1", "R101x1", "R50x3", "R101x3", "R152x4")

VTAB_RUNS = (0, 1, 2)
