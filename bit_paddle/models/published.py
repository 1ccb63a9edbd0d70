"""All published BiT checkpoints and BiT-Mini: name, architecture, outputs, file, preprocessing.

    python -m bit_paddle.catalog              all checkpoints
    python -m bit_paddle.catalog R50x1 vtab   the checkpoints whose row contains both words

Names, files and heads are those of https://storage.googleapis.com/bit_models/. Accuracies are top-1
on ILSVRC-2012's validation set in %. For BiT they are timm's measurements (with a centre crop of
448, or 480 for R152x4, not squashed); for the models of the distillation paper (arXiv 2106.05237)
they are the authors'. BiT-Mini comes with this package; its accuracy is on CIFAR-10's test images.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import ConfigError, MissingFileError, did_you_mean, printable
from bit_paddle.models import aliases, hub, mirrors
from bit_paddle.models.architecture import UNITS, Architecture
from bit_paddle.models.checkpoint import CheckpointFile, fault_of
from bit_paddle.models.containers.folder import WEIGHTS, weights_in
from bit_paddle.models.vtab_tasks import VTAB_MODELS, VTAB_RUNS, VTAB_TASKS
from bit_paddle.system.fetch import ServerFault, cache_dir
from bit_paddle.system.hub import PREFIX, Repository

LEMMAS = {data: f"{data}_wordnet_lemmas.txt" for data in ("ilsvrc2012", "imagenet21k")}

MODEL = "model.npz"  # the model in the folder of a complete run

MINI = "BiT-Mini"  # this project's own model, shipped in the package

NETWORKS = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")  # the published ones


@dataclass(frozen=True)
class Entry:
    """One published file. ``data`` is the data set that its head was last trained on."""

    name: str
    architecture: Architecture
    classes: int
    file: str
    data: str
    preprocessing: Preprocessing
    accuracy: float | None = None
    aliases: tuple[str, ...] = ()  # names in other libraries, timm's present name first
    packaged: bool = False  # shipped in this package, in float16

    @property
    def url(self) -> str:
        return mirrors.addresses(self.file)[0]

    @property
    def hub(self) -> str | None:
        """The repository of the Hugging Face hub with the same weights, or None."""
        timm = next((name for name in self.aliases if "_bit.goog" in name), None)
        return timm and f"timm/{timm}"

    def fault_of(self, path: Path) -> str | None:
        """Return what is wrong with a file that should hold this model, or None."""
        return fault_of(path, self.architecture, self.classes)

    @property
    def parameters(self) -> int:
        return self.architecture.parameters(self.classes)

    @property
    def bytes(self) -> int:
        """Bytes of the parameters in the file; the names add some kilobytes."""
        return (2 if self.packaged else 4) * self.parameters


_UPSTREAM = Preprocessing(224, resize=256)  # a ratio of 0.875, as in timm for these files

_LARGE, _SMALL = Preprocessing(480), Preprocessing(128)

_ILSVRC_ACCURACY = {
    "R50x1": 80.386,
    "R101x1": 82.332,
    "R50x3": 83.982,
    "R101x3": 84.430,
    "R152x2": 84.468,
    "R152x4": 84.936,
}

_DISTILLATION = (  # name, classes, data, preprocessing, accuracy
    ("R50x1_224", 1000, "ilsvrc2012", _UPSTREAM, 82.8),
    ("R50x1_160", 1000, "ilsvrc2012", Preprocessing(160, resize=183), 80.5),
    ("R152x2_T_224", 1000, "ilsvrc2012", _UPSTREAM, 83.0),
    ("R152x2_T_384", 1000, "ilsvrc2012", Preprocessing(384, resize=384), 84.3),
    ("R152x2_T_flowers128", 102, "oxford_flowers102", _SMALL),
    ("R152x2_T_pet128", 37, "oxford_iiit_pet", _SMALL),
    ("R152x2_T_food128", 101, "food101", _SMALL),
    ("R152x2_T_sun128", 397, "sun397", _SMALL),
)


def _entries() -> Iterator[Entry]:
    networks = {name: Architecture.parse(name) for name in NETWORKS}
    others = aliases.other_names(NETWORKS)

    def plain(name: str, classes: int, *rest: Any, folder: str = "") -> Entry:
        return Entry(
            name,
            networks[re.search(r"R\d+x\d", name)[0]],
            classes,
            f"{folder}{name}.npz",
            *rest,
            aliases=others.get(name, ()),
        )

    mini = Architecture(UNITS[26], 0.5)
    view = Preprocessing(64, resize=64)
    yield Entry(MINI, mini, 10, f"{MINI}.npz", "cifar10", view, 75.74, packaged=True)
    for name in networks:
        yield plain(f"BiT-S-{name}", 1000, "ilsvrc2012", _UPSTREAM)
    for name in networks:
        yield plain(f"BiT-M-{name}", 21843, "imagenet21k", _UPSTREAM)
    for name in networks:
        accuracy = _ILSVRC_ACCURACY[name]
        yield plain(f"BiT-M-{name}-ILSVRC2012", 1000, "ilsvrc2012", _LARGE, accuracy)
    yield plain("BiT-M-R50x1-CIFAR10", 10, "cifar10", _SMALL)
    for name, *rest in _DISTILLATION:
        yield plain(name, *rest, folder="distill/")
    for name in VTAB_MODELS:
        for run in VTAB_RUNS:
            for task in VTAB_TASKS:
                yield plain(
                    f"BiT-M-{name}-run{run}-{task.name}",
                    task.classes,
                    f"vtab {task.name}",
                    _SMALL if task.small else _LARGE,
                    folder="vtab/",
                )


CATALOG = {entry.name: entry for entry in _entries()}

ALIASES = {alias: entry.name for entry in CATALOG.values() for alias in entry.aliases}

_FOLDED = {
    aliases.fold(name): entry.name
    for entry in CATALOG.values()
    for name in (*entry.aliases, entry.name)
}


def lookup(name: str) -> Entry | None:
    """Return the entry with this name in the catalogue or in another library, or None.

    If no name is exactly ``name``, then addresses, versions, endings of files and upper case do not
    count; see `models.aliases`.
    """
    name = ALIASES.get(name, name)
    return CATALOG.get(name if name in CATALOG else _FOLDED.get(aliases.fold(name), ""))


def find(name: str) -> Entry:
    """Return the entry that `lookup` finds; the `ConfigError` suggests similar names."""
    entry = lookup(name)
    if entry is not None:
        return entry
    if re.match(r"bit[-/]l\b", aliases.fold(name)):
        raise ConfigError(
            f"{name}: BiT-L was pre-trained on JFT-300M, which is not public, and was "
            "never released; the largest published model is BiT-M-R152x4"
        )
    near = nearest(name)
    advice = f"did you mean {' or '.join(near)}?" if near else did_you_mean(name, CATALOG)
    raise ConfigError(f"unknown model {name!r}: {advice}")


def nearest(name: str) -> list[str]:
    """Return up to four names that are similar to the wrong ``name``, the nearest first."""
    entries = [aliases.Known(entry.name, entry.data, entry.aliases) for entry in CATALOG.values()]
    return aliases.nearest(name, entries)


def canonical(model: str) -> str:
    """Return the catalogue's name of a published model in any spelling; else ``model`` itself."""
    entry = None if is_path(model) else lookup(model)
    return model if entry is None else entry.name


def known(path: Path, origin: str | None = None) -> Entry | None:
    """Return the published checkpoint of a file's name, ``origin`` (timm's name) or repository."""
    origin = origin or getattr(hub.repository_of(path), "id", "")
    return CATALOG.get(path.stem) or CATALOG.get(ALIASES.get(origin, ""))


ENDINGS = (".npz", ".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".pdparams", ".h5", ".onnx")


def is_path(model: str) -> bool:
    """Return whether ``model`` is the path of a file, not a name.

    A file or folder that exists is a path. If it has a known name of a model, then only if it holds
    one; the catalogue's own names and architectures are never paths.
    """
    if model.startswith(PREFIX) or model in CATALOG or Architecture.parse(model):
        return False
    if lookup(model) is None:
        return model.endswith(ENDINGS) or os.sep in model or os.path.exists(model)
    return os.path.isfile(model) or _holds_model(Path(model))


def _holds_model(folder: Path) -> bool:
    return os.path.isfile(folder / MODEL) or weights_in(folder) is not None


def resolve(model: str, pretrained: bool = True) -> Path | Entry | Repository | Architecture:
    """Return the file or folder, entry, repository of the hub, or architecture called ``model``.

    The folder of a complete run stands for the model in it. An architecture (``R<layers>x<width>``)
    has no weights, so it is an error with ``pretrained``. Errors: `ConfigError`, `MissingFileError`
    (no such file).
    """
    if model.startswith(PREFIX):
        return Repository.parse(model)
    if is_path(model):
        path = Path(model)
        if os.path.isfile(path / MODEL):
            return path / MODEL
        if os.path.isdir(path) and not weights_in(path):
            checkpoints = sorted(path.glob("checkpoints/step-*.npz")) or sorted(path.glob("*.npz"))
            newest = f"; to use the newest checkpoint give {checkpoints[-1]}" if checkpoints else ""
            raise MissingFileError(
                f"{model}: is a folder without {MODEL}; expected the folder of a complete run, a "
                f"folder of transformers or timm ({', '.join(WEIGHTS)}), or a file{newest}"
            )
        if not os.path.exists(path):  # False for a name that is too long, too
            raise MissingFileError(f"{model}: {_hub_advice(model) or 'no such checkpoint file'}")
        return path
    architecture = Architecture.parse(model)
    if architecture is None:
        return find(model)
    if pretrained:
        names = [entry.name for entry in CATALOG.values() if entry.architecture == architecture]
        advice = f"take a checkpoint ({', '.join(names[:2])} …), or " if names else ""
        raise ConfigError(
            f"{model} is an architecture, without weights: {advice}ask for random weights "
            "with --from_scratch"
        )
    return architecture


def _hub_advice(model: str) -> str:
    """Return the advice for a missing file whose name could be a repository, OWNER/NAME."""
    address = r"(?:hf[-_]hub:|https://huggingface\.co/)?(\w[\w.-]*/[\w.-]+(?:@[\w.-]+)?)"
    match = re.fullmatch(address, model)
    if match is None or model.endswith(ENDINGS):
        return ""
    near = nearest(model) if re.search(r"bit[-_/]|_bit", model.lower()) else []
    also = f" (or did you mean {near[0]}?)" if near else ""
    advice = f"for a repository of the Hugging Face hub write hf:{match[1]}"
    return f"neither a file here nor a known name{also}; {advice}"


def locate(entry: Entry, directory: str | os.PathLike | None = None) -> Path:
    """Return the path of a published checkpoint's file, which may still have to be downloaded.

    The file is in ``directory``. Without that, it is in the working folder if it exists there, else
    in the cache folder. A file that is shipped with this package is in the package. If the file is
    missing, but the same weights are in the cache of the Hugging Face hub, their path is returned.
    """
    name = Path(entry.file).name
    if entry.packaged:
        return Path(__file__).parents[1] / "pretrained" / name
    if directory is not None:
        path = Path(directory) / name
    else:
        path = Path(name) if Path(name).is_file() else cache_dir() / name
    if entry.hub is not None and not path.is_file():
        folder = hub.locate(Repository.parse(entry.hub))
        return _from_hub(entry, folder) if folder else path
    return path


def _from_hub(entry: Entry, folder: Path) -> Path:
    """Return the weights of ``entry`` in a repository's folder, after a check of their shapes."""
    weights = hub.weights_in(folder)
    with CheckpointFile(weights) as file:
        file.check(entry.architecture, entry.classes)
    return weights


def obtain(source: Entry | Repository, directory: str | os.PathLike | None = None) -> Path:
    """Return a published checkpoint's file or a repository's folder; download what is missing.

    A checkpoint comes from the first server, else from a mirror (see `mirrors`), else from the
    repository of the Hugging Face hub that has the same weights; a line on standard error tells the
    latter. Raises `DownloadError`.
    """
    if isinstance(source, Repository):
        return hub.download(source)
    path = locate(source, directory)
    if path.exists():
        return path
    try:
        return mirrors.fetch_published(source.file, path, source.fault_of)
    except ServerFault as error:
        fault = error

    def from_hub(repository: Repository) -> Path:
        print(printable(f"{fault}; now asking {repository}"), file=sys.stderr)
        return _from_hub(source, hub.download(repository))

    return hub.instead(source.hub, fault, from_hub)


def check_reachable(entry: Entry) -> None:
    """Raise `DownloadError` if no server answers that has the weights of ``entry``."""
    try:
        mirrors.check_reachable(entry.file)
    except ServerFault as fault:
        hub.instead(entry.hub, fault, hub.check_reachable)


def list_models(pattern: str = "*") -> list[str]:
    """Return the published names that match a shell pattern, in the order of the catalog.

    If no name of the catalog matches, then the matching names of other libraries (timm, Hugging
    Face, TensorFlow Hub) are returned. Each works wherever a model is named. The pattern is
    case-sensitive. Without a match the list is empty.

        bit_paddle.list_models("BiT-M-R50x1*")  # ["BiT-M-R50x1", "BiT-M-R50x1-ILSVRC2012", …]
        bit_paddle.list_models("timm/*")        # ["timm/resnetv2_50x1_bit.goog_in21k", …]
    """
    for names in (CATALOG, ALIASES):
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if found:
            return found
    return []
