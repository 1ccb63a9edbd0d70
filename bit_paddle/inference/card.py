"""The model card: ``README.md`` of an export for Hugging Face.

It says what is known: of a run from its folder, of a published model from the catalogue. A line
about an unknown fact is left out. No path of this machine gets into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bit_paddle import __version__
from bit_paddle.data import spec as specs
from bit_paddle.errors import BitPaddleError
from bit_paddle.inference.metrics import interval
from bit_paddle.inference.model import TrainedModel
from bit_paddle.inference.trained import TrainedFile
from bit_paddle.models import hub, published
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.runs import checkpoints, history
from bit_paddle.runs import folder as runs_folder

if TYPE_CHECKING:
    from bit_paddle.inference.verify import Verified

NAME = "README.md"

_PUBLISHED_DATA = {  # name, number of images of the published accuracy, id on the hub
    "ilsvrc2012": ("ILSVRC-2012", 50_000, "imagenet-1k"),
    "imagenet21k": ("ImageNet-21k", 0, ""),
    "cifar10": ("CIFAR-10", 10_000, "cifar10"),
}

_ROWS = ("learns", "teacher", "resolution", "preprocessing", "schedule", "batch", "MixUp")
_ROWS += ("loss", "optimizer")

_MOST_CLASSES = 100  # that are listed


@dataclass
class Facts:
    """What the card says; empty or None where a fact is unknown."""

    title: str
    licence: str = ""
    start: str = ""  # the weights that training started from
    data: str = ""
    data_id: str = ""  # on the hub
    images: dict[str, int] = field(default_factory=dict)  # "training images": 3680, …
    recipe: list[tuple[str, str]] = field(default_factory=list)
    top1: float | None = None  # from 0 to 1
    measured: int = 0  # number of images
    how: str = ""


def write(
    path: Path, trained: TrainedFile, network: Architecture, verified: Verified, address: str
) -> None:
    """Write the card into the folder ``path``.

    ``address`` is the folder's final name, or OWNER/NAME on the hub.
    """
    text = "\n\n".join(_parts(trained, network, verified, address)) + "\n"
    # names of files may have bytes outside UTF-8
    (path / NAME).write_text(text, encoding="utf-8", errors="backslashreplace")


# --- Facts ---------------------------------------------------------------------------------------


def facts_of(trained: TrainedFile) -> Facts:
    """Return the facts about a checkpoint, from the catalogue, or from the file and its run."""
    with CheckpointFile(trained.path) as file:
        notes, network = file.notes(), file.architecture()
    settings, data, title = notes.get("settings"), notes.get("data"), _title(trained.path)
    entry = published.known(trained.path)
    shape = (trained.outputs, network)
    if entry is not None and settings is None and (entry.classes, entry.architecture) == shape:
        return _of_published(entry)
    facts = Facts(title)
    if isinstance(settings, dict):
        _add_settings(facts, settings)
        _add_run(facts, trained.path, notes.get("steps"))
    if isinstance(data, dict):
        kinds = ("training images", "validation images")
        facts.images = {kind: data[kind] for kind in kinds if isinstance(data.get(kind), int)}
    return facts


def _title(path: Path) -> str:
    """Return the name of a model's file or run; of a repository in the hub's cache, OWNER/NAME."""
    repository = hub.repository_of(path)
    return repository.id if repository else runs_folder.model_name(path)


def _of_published(entry: published.Entry) -> Facts:
    name, images, hub_id = _PUBLISHED_DATA.get(entry.data, (entry.data, 0, ""))
    facts = Facts(entry.name, "apache-2.0", data=name, data_id=hub_id)
    if entry.accuracy is not None:
        facts.top1, facts.measured = entry.accuracy / 100, images
        if entry.packaged:
            facts.how = "test images"
        elif entry.file.startswith("distill/"):
            facts.how = "validation images, as its authors report"
        else:
            side = 480 if entry.architecture.name == "R152x4" else 448
            facts.how = f"validation images, as timm measured with a centre crop of {side} pixels"
    return facts


def _add_settings(facts: Facts, settings: dict[str, Any]) -> None:
    model, dataset = str(settings.get("model")), str(settings.get("dataset"))
    facts.start = Path(model).name if published.is_path(model) else model
    if settings.get("from_scratch"):
        facts.start = "random weights"
    facts.data = specs.short_name(dataset, settings.get("datadir"))
    facts.data_id = "imagefolder" if dataset in ("folder", "list") else facts.data
    few, batch = settings.get("examples_per_class"), settings.get("batch")
    facts.recipe = [("examples per class", str(few))] if few else []
    facts.recipe += [("batch", f"{batch} images per step")] if batch else []


def _add_run(facts: Facts, path: Path, step: Any) -> None:
    """Add what the folder of the run says, if the model still lies there."""
    parent = path.resolve().parent
    folder = parent.parent if parent.name == checkpoints.CHECKPOINTS else parent
    if path.name != published.MODEL and folder == parent:
        return
    try:
        (run,) = history.read(folder)
        plan = json.loads((folder / history.PLAN).read_text(encoding="utf-8"))
        rows = {str(title): str(text) for title, text in plan["rows"] if title in _ROWS}
    except (BitPaddleError, OSError, ValueError, KeyError, TypeError):
        return
    facts.recipe = list({**dict(facts.recipe), **rows}.items())
    measured = next((line for line in reversed(run.val) if line["step"] == step), {})
    if "agreement" not in measured:  # with a teacher, which may be wrong
        facts.top1, facts.measured = measured.get("top1"), measured.get("images", 0)
    facts.how = f"validation images, after step {step:,}"


# --- The page ------------------------------------------------------------------------------------


def _parts(
    trained: TrainedFile, network: Architecture, verified: Verified, address: str
) -> Iterator[str]:
    facts = facts_of(trained)
    yield _front_matter(facts, trained)
    yield f"# {_inline(facts.title)}"
    millions = network.parameters(trained.outputs) / 1e6
    outputs = f"{trained.outputs:,} outputs" if trained.outputs else "features, without a head"
    yield (
        f"An {network.name} of [Big Transfer](https://arxiv.org/abs/1912.11370) (BiT), "
        f"{millions:,.1f} million parameters, {outputs}. bit_paddle {__version__} exported it."
    )
    if facts.data:
        counts = [f"{count:,} {kind}" for kind, count in facts.images.items()]
        counts += [f"{trained.outputs:,} classes"] if trained.outputs else []
        yield f"## Data\n\nData set: {', '.join([_inline(facts.data), *counts])}."
    if trained.classes:
        yield _classes(trained.classes)
    rows = [*([("start", facts.start)] if facts.start else []), *facts.recipe]
    if rows:
        lines = [f"| {_inline(title)} | {_inline(text)} |" for title, text in rows]
        yield "\n".join(["## Training", "", "| | |", "|---|---|", *lines])
    if facts.top1 is not None and facts.measured:
        low, high = interval(facts.top1, facts.measured)
        yield (
            f"## Accuracy\n\n{facts.top1:.2%} top-1 on {facts.measured:,} {facts.how}. The 95% "
            f"interval (Wilson's) is {low:.2%} to {high:.2%}."
        )
    if trained.calibration is not None:
        found = trained.calibration
        yield (
            f"## Calibration\n\nDivide the logits by {found.temperature:.6g} before they become "
            f"probabilities. This temperature was fitted on {found.images:,} images "
            f"({_inline(found.data)}); it changes no prediction. bit_paddle uses it with "
            "`predict --calibrated`, and the thresholds in `config.json` with `predict --unknown`."
        )
    yield from _use(trained, network, address)
    yield (
        "## What was verified\n\nbit_paddle loaded this folder again. Every parameter has the same "
        f"bits as in the source, and {verified}. transformers and timm were not run for this."
    )


def _front_matter(facts: Facts, trained: TrainedFile) -> str:
    task = "image-classification" if trained.outputs else "image-feature-extraction"
    content: dict[str, Any] = {"license": facts.licence} if facts.licence else {}
    content.update(library_name="transformers", pipeline_tag=task, tags=["bit", "bit_paddle"])
    if facts.top1 is not None and facts.data_id:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": facts.data, "type": facts.data_id},
            "metrics": [{"type": "accuracy", "value": round(facts.top1, 6)}],
        }
        content["model-index"] = [{"name": facts.title, "results": [result]}]
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _classes(names: list[str]) -> str:
    lines = [json.dumps(name, ensure_ascii=False) for name in names[:_MOST_CLASSES]]
    more = len(names) - len(lines)
    rest = f"\n\n{more:,} more names are in `config.json`." if more else ""
    return "\n".join(["## Classes", "", "```", *lines, "```"]) + rest


def _inline(text: str) -> str:
    """Return ``text`` in one line of Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", " ".join(text.split()))


# --- How to load it ------------------------------------------------------------------------------

_TRANSFORMERS = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, BitForImageClassification

processor = AutoImageProcessor.from_pretrained({place}, backend="pil")
model = BitForImageClassification.from_pretrained({place}).eval()
images = processor(Image.open("cat.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    {result} = model(**images).logits
"""

_BIT_PADDLE = """\
import bit_paddle as bit

model = bit.load({place})
print({call}("cat.jpg"))
"""

_TIMM = """\
from functools import partial

import torch
{download}from safetensors.torch import load_file
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2

weights = load_file({file})
for name, timms in (
    ("bit.encoder.", ""),
    ("bit.embedder.convolution.", "stem.conv."),
    ("bit.norm.", "norm."),
    (".layers.", ".blocks."),
    ("classifier.1.", "head.fc."),
):
    weights = {{key.replace(name, timms): array for key, array in weights.items()}}
{head}model = ResNetV2(
    {units},
    num_classes={outputs},
    width_factor={width:g},
    stem_type="fixed",
    conv_layer=partial(StdConv2d, eps=1e-8),
)
model.load_state_dict(weights)
model.eval()
with torch.no_grad():
    {result} = model(images["pixel_values"])  # of the processor above
"""


def _use(trained: TrainedFile, network: Architecture, address: str) -> Iterator[str]:
    remote = "/" in address
    place = json.dumps(address)
    file = f'hf_hub_download({place}, "model.safetensors")'
    result = "logits" if trained.outputs else "features"
    yield "## Use\n\nWith transformers:\n\n" + _code(
        _TRANSFORMERS + (_BEST if trained.outputs else ""), place=place, result=result
    )
    view = trained.preprocessing
    text = (
        f"The preprocessing is: {TrainedModel(trained).preprocessing}. "
        'With `backend="pil"` the processor makes the same pixels as bit_paddle. Without it, and '
        "with torchvision installed, they differ slightly."
    )
    if view is not None and view.resize is not None and view.centre == "even":
        text += (
            " The model was measured with the centre of torchvision. For some shapes of images "
            "that lies one pixel to the right of the processor's, or below it."
        )
    yield text
    yield "With bit_paddle:\n\n" + _code(
        _BIT_PADDLE,
        place=json.dumps(f"hf:{address}") if remote else place,
        call="model" if trained.outputs else "model.features",
    )
    yield "With timm, which has other names for the arrays:\n\n" + _code(
        _TIMM,
        download="from huggingface_hub import hf_hub_download\n" if remote else "",
        file=file if remote else json.dumps(f"{address}/model.safetensors"),
        head=_HEAD if trained.outputs else "",
        units=list(network.units),
        outputs=trained.outputs,
        width=network.width,
        result=result,
    )


_BEST = "print(model.config.id2label[int(logits.argmax())])\n"

_HEAD = 'weights["head.fc.weight"] = weights["head.fc.weight"][:, :, None, None]\n'


def _code(template: str, **values: Any) -> str:
    return f"```python\n{template.format(**values)}```"
