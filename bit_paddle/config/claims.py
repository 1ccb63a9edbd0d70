"""Claims: published accuracies as data, each with the command that should reach it.

A claim is a YAML file below ``configs/claims``, or anywhere else:

    title: BiT-M on CIFAR-10        # in words
    source: https://…               # where the accuracies were published
    metric: top1                    # or top5
    data: imagenet2012              # folder that the user must name (default: none is needed)
    downloads: {file: 170498071}    # data that are downloaded, in bytes
    means: {natural: 80.77}         # published means over the rows of a group, or over all rows
    base: _tasks.yaml               # another file of such keys; this file's keys win
    rows:
      R50x1-5shot:
        command: train              # or evaluate
        settings: {config: cifar10_R50x1.yaml, examples_per_class: 5}  # the command's flags
        runs: 5                     # with consecutive seeds
        published: {min: 80.3, median: 82.3, max: 84.9, runs: 5}  # or one number
        others: {an earlier port: 82.0}  # figures of others, which decide nothing
        group: natural
        tolerance: 0.1              # points by which an evaluation of the same file may differ
        gpus: 4                     # that one run uses together
        hours: 0.5                  # of one run on one GPU; null is unknown
        memory_gib: 11              # measured memory of a GPU; null is unknown

Keys of rows may also stand beside ``rows``, for all of them. Accuracies are in %. ``{run}`` and
``{row}`` in settings stand for the number of the run, from 0, and for the name of the row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bit_paddle.config.types import BadValue, number, one_of, positive, text, whole
from bit_paddle.errors import BitPaddleError, ConfigError, did_you_mean
from bit_paddle.system import files

# Inside an installed package; next to the package in a clone.
_HOMES = [Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs"]

_EXAMPLE = "title: BiT-M on CIFAR-10"

OVERALL = "overall"  # the mean over the rows of all groups


@dataclass(frozen=True)
class Published:
    """A published accuracy in %: the median of ``runs`` runs (None: not told) and their range."""

    median: float
    min: float | None = None
    max: float | None = None
    runs: int | None = None

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest published accuracy; the median twice if they are not told."""
        if self.min is None or self.max is None:
            return self.median, self.median
        return self.min, self.max

    @property
    def _digits(self) -> int:
        values = (self.median, self.min, self.max)
        return max(len(repr(value).partition(".")[2]) for value in values if value is not None)

    @property
    def rounding(self) -> float:
        """Half a unit of the last published digit."""
        return 0.5 * 10.0**-self._digits

    def __str__(self) -> str:
        values = (self.min, self.median, self.max)
        return "-".join(f"{value:.{self._digits}f}" for value in values if value is not None)


@dataclass(frozen=True, eq=False)
class Row:
    """One accuracy of a claim, and how to reach it."""

    name: str
    command: str
    settings: Mapping[str, Any]
    runs: int = 1
    published: Published | None = None
    others: Mapping[str, Published] = field(default_factory=dict)
    group: str | None = None
    tolerance: float | None = None
    gpus: int = 1
    hours: float | None = None
    memory_gib: float | None = None


@dataclass(frozen=True, eq=False)
class Claim:
    """A table of published accuracies; ``content`` is that of its file and of its bases."""

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    metric: str = "top1"
    data: str | None = None
    downloads: Mapping[str, int] = field(default_factory=dict)
    means: Mapping[str, Published] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> str:
        """The name of the claim's folder of results."""
        return self.name.replace("/", "-")

    @property
    def groups(self) -> list[str]:
        """The groups of the rows, in their order, and `OVERALL`; [] without groups."""
        found = list(dict.fromkeys(row.group for row in self.rows if row.group))
        return [*found, OVERALL] if found else []


# --- Where claims are ---------------------------------------------------------------------------


def known() -> dict[str, Path]:
    """Return the files of configs/claims by their names, such as ``vtab/R50x1``."""
    return {
        path.relative_to(home / "claims").with_suffix("").as_posix(): path
        for home in _HOMES
        for path in sorted((home / "claims").rglob("*.yaml"))
        if not path.name.startswith("_")
    }


def find(words: Iterable[str]) -> list[Claim]:
    """Return the claims called ``words``: names of `known`, their folders, or YAML files.

    Raises one `ConfigError` for the faults of all of them.
    """
    every = known()
    claims: dict[str, Claim] = {}
    faults: list[str] = []
    for word in words:
        below = [name for name in every if name.startswith(f"{word.rstrip('/')}/")]
        if word.lower().endswith((".yaml", ".yml")):
            paths = {Path(word).stem: Path(files.expanded(word))}
        else:
            paths = {name: every[name] for name in ([word] if word in every else below)}
        if not paths:
            faults.append(f"{word}: no such claim; {did_you_mean(word, every)}")
        for name, path in paths.items():
            try:
                claim = read(path, name)
                if claims.setdefault(claim.folder, claim).content != claim.content:
                    faults.append(f"{path}: another claim has the name {claim.name!r} too")
            except BitPaddleError as error:
                faults.append(str(error))
    if faults:
        raise ConfigError(_listed(faults))
    return list(claims.values())


def _listed(faults: list[str]) -> str:
    return faults[0] if len(faults) == 1 else "\n  ".join([f"{len(faults)} faults", *faults])


# --- Reading ------------------------------------------------------------------------------------


def read(path: Path, name: str) -> Claim:
    """Return the claim in a YAML file, called ``name`` unless it names itself.

    Raises `MissingFileError`, and one `ConfigError` with all faults.
    """
    content = {"name": name, **_merged(path)}
    faults: list[str] = []
    common = {key: content[key] for key in content.keys() & _ROW.keys()}
    rows = content.get("rows")
    of_claim = {key: value for key, value in content.items() if key not in (*common, "rows")}
    values = _checked(of_claim, _CLAIM, "", faults)
    faults += [f"{key}: is missing" for key in ("title", "source") if key not in values]
    if not isinstance(rows, dict) or not rows:
        faults.append(f"rows: is {rows!r}, expected one or more rows")
        rows = {}
    shared = _checked(common, _ROW, "", faults)
    found = [_row(key, row, shared, faults) for key, row in rows.items()]
    groups = {row.group for row in found if row} | {OVERALL}
    for group in values.get("means", {}):
        if group not in groups:
            faults.append(f"means: no row has the group {group!r}")
    if faults:
        raise ConfigError(f"{path}: {_listed(faults)}")
    homes = [path.parent, *_HOMES]
    done = tuple(_with_config(row, homes) for row in found if row)
    return Claim(**values, rows=done, content=content)


def _merged(path: Path, depth: int = 4) -> dict[Any, Any]:
    """Return the content of a YAML file over that of its ``base``; settings are merged too."""
    content = files.read_yaml(path, str(path), _EXAMPLE)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or not depth:
        raise ConfigError(f"{path}: base is {base!r}, expected the name of a file that ends this")
    below = _merged(path.parent / base, depth - 1)
    merged = {**below, **content}
    first, second = below.get("settings"), content.get("settings")
    if isinstance(first, dict) and isinstance(second, dict):
        merged["settings"] = {**first, **second}
    return merged


def _row(name: Any, content: Any, shared: dict[str, Any], faults: list[str]) -> Row | None:
    """Return a row with the values that all rows share; add its mistakes to ``faults``."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name):
        faults.append(f"rows: {name!r} is no name; expected letters, digits and . + -")
        return None
    if not isinstance(content, (dict, type(None))):
        faults.append(f"rows: {name}: is {content!r}, expected keys such as published")
        return None
    own = _checked(content or {}, _ROW, f"rows: {name}: ", faults)
    values = {**shared, **own}
    values["settings"] = {**shared.get("settings", {}), **own.get("settings", {})}
    if "command" not in values:
        faults.append(f"rows: {name}: command: is missing, expected train or evaluate")
        return None
    if "tolerance" in values and values["command"] == "train":
        faults.append(f"rows: {name}: tolerance: is for evaluate; runs of train have a spread")
    return Row(name, **values)


def _with_config(row: Row, homes: list[Path]) -> Row:
    """Return ``row`` with the path of its file of settings: beside the claim, or in configs/."""
    if "config" not in row.settings:
        return row
    found = (home / row.settings["config"] for home in homes)
    path = next((path for path in found if path.is_file()), row.settings["config"])
    return Row(**{**vars(row), "settings": {**row.settings, "config": str(path)}})


def _checked(
    content: Mapping[Any, Any], kinds: Mapping[str, Callable], where: str, faults: list[str]
) -> dict[str, Any]:
    """Return the values of ``content`` by their ``kinds``; null is the same as no such key."""
    values = {}
    for key, value in content.items():
        if key not in kinds:
            every = sorted({*kinds, *(() if where else (*_ROW, "rows", "base"))})
            faults.append(f"{where}{key!r} is not a known key; {did_you_mean(str(key), every)}")
        elif value is not None:
            try:
                values[key] = kinds[key](value)
            except ValueError as fault:
                faults.append(f"{where}{key}: {fault}")
    return values


def _word(kind: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return the kind of YAML's values that a command's flag of the same kind takes."""

    def parse(value: Any) -> Any:
        if isinstance(value, (dict, list)):
            raise BadValue(f"is {value!r}, expected one value")
        return kind(str(value))

    return parse


_percent = _word(number(lambda value: 0 <= value <= 100, "an accuracy in %, from 0 to 100"))


def _published(value: Any) -> Published:
    kinds = {**dict.fromkeys(("min", "median", "max"), _percent), "runs": _word(whole(1))}
    faults: list[str] = []
    given = value if isinstance(value, dict) else {"median": value}
    values = _checked(given, kinds, "", faults)
    ends = [values.get(key, math.nan) for key in ("min", "median", "max")]
    if faults:
        raise BadValue("; ".join(faults))
    if "median" not in values or ("min" in values) != ("max" in values):
        raise BadValue(f"is {value!r}, expected a number, or min, median, max and runs")
    if "min" in values and ends != sorted(ends):
        raise BadValue(f"is {value!r}, expected min <= median <= max")
    return Published(**values)


def _mapping(kind: Callable[[Any], Any], expected: str) -> Callable[[Any], dict[str, Any]]:
    """Return the kind of mappings from names to values of ``kind``; null values are left out."""

    def parse(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BadValue(f"is {value!r}, expected {expected}")
        faults, values = [], {}
        for key, item in value.items():
            try:
                values.update({} if item is None else {str(key): kind(item)})
            except ValueError as fault:
                faults.append(f"{key}: {fault}")
        if faults:
            raise BadValue("; ".join(faults))
        return values

    return parse


def _setting(value: Any) -> Any:
    if not isinstance(value, (str, bool, int, float)):
        raise BadValue(f"is {value!r}, expected one value")
    return value


_name = _word(text)

_CLAIM: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("name", "title", "source", "data"), _name),
    "metric": _word(one_of("top1", "top5")),
    "downloads": _mapping(_word(whole(1)), "files and their bytes"),
    "means": _mapping(_published, "groups and their published means"),
}

_ROW: dict[str, Callable[[Any], Any]] = {
    "command": _word(one_of("train", "evaluate")),
    "settings": _mapping(_setting, "flags of the command and their values"),
    "runs": _word(whole(1)),
    "published": _published,
    "others": _mapping(_published, "names and their figures"),
    "group": _name,
    "gpus": _word(whole(1)),
    **dict.fromkeys(("tolerance", "hours", "memory_gib"), _word(positive)),
}
