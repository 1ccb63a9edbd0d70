"""Look for copies, unusual images and wrong labels in a data set, before training on it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from PIL import Image

from bit_paddle.data import appearance, copies, exclude
from bit_paddle.data.images import Dataset, FileImages, Images
from bit_paddle.data.labels import Labels, LabelSets, joined, named
from bit_paddle.errors import ConfigError
from bit_paddle.inference import predictions, suspects
from bit_paddle.inference.model import TrainedModel

KINDS = {
    "exact copy": "exact copies",
    "near copy": "near copies",
    "unreadable": "unreadable images",
    "one colour": "images that one colour fills",
    "tiny": "tiny images",
    "long": "very long images",
    "rare mode": "images of a rare mode",
    "label": "labels that the other images contradict",
}

_SAME_FEATURES = 0.93  # cosine of centred features; on clothing10 most copies reach 0.95

_FEWEST, _SHARE = 60, 0.05  # most labels that are listed: 60, or 5 % of the images


class Finding(NamedTuple):
    """One line of the table. ``other`` is the image that a copy is kept for, or a similar image.

    Paths are those of `exclude.paths_below`. ``score`` is the correlation of the pixels or the
    cosine of the features of a copy, or the probability that a label is wrong, each at most 1. For
    other kinds it is the number that ``why`` explains.
    """

    kind: str
    path: str
    part: str
    label: str
    other: str
    other_part: str
    score: float
    why: str

    @property
    def is_across(self) -> bool:
        """Whether it is a copy of an image in another part."""
        return self.kind.endswith("copy") and self.other_part != self.part


HEADER = ("kind", "path", "part", "label", "other path", "other part", "score", "why")


@dataclass(frozen=True)
class Audit:
    """The ``findings`` in a data set of ``images`` images, copies across its parts first."""

    findings: list[Finding]
    images: int
    open_image: dict[str, Callable[[], Image.Image]]  # of the images, by their paths
    labels_judged: bool  # whether there was a model, or predictions
    several: bool = False  # whether an image may have several labels, which are never judged

    def of(self, kind: str) -> list[Finding]:
        """Return the findings of one of `KINDS`."""
        return [finding for finding in self.findings if finding.kind == kind]

    def exclude_lines(self) -> Iterator[str]:
        """Yield the lines of a file for --exclude. Findings to look at first are comments."""
        yield f"# images to leave out, of {self.images:,}; remove a # to leave out more"
        for kind, title in KINDS.items():
            for across in (True, False):
                chosen = [one for one in self.of(kind) if one.is_across == across]
                leaves = across or kind in ("exact copy", "unreadable", "one colour")
                if chosen:
                    where = " across parts" if across else ""
                    yield f"# {title}{where}" + ("" if leaves else ": look at each first")
                lines = (exclude.line(one.path) for one in chosen)
                yield from (line if leaves else f"# {line}" for line in lines)

    def __str__(self) -> str:
        lines = [f"{self.images:,} images"]
        for kind, title in KINDS.items():
            found = self.of(kind)
            across = sum(one.is_across for one in found)
            more = f", {across:,} of them across parts" if across else ""
            if kind != "label" or self.labels_judged:
                lines.append(f"{len(found):6,}  {title}{more}")
        if self.several:
            lines.append("labels are not judged: an image of these data may have several")
        elif not self.labels_judged:
            lines.append("labels are not judged: that needs --model, or --predictions")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Audit {len(self.findings):,} findings in {self.images:,} images>"


class _Everything(NamedTuple):
    """The images of all parts in one row: part numbers int64 [N], labels and names."""

    titles: list[str]
    parts: list[Images]
    of_part: np.ndarray
    labels: Labels
    names: list[str]
    classes: Sequence[str]

    def label(self, index: int) -> str:
        """Return the names of the labels of an image."""
        return ";".join(named(self.labels[[index]], self.classes)[0])

    def finding(
        self, kind: str, index: int, score: float, why: str, other: int | None = None
    ) -> Finding:
        def where(k: int) -> tuple[str, str]:
            return self.names[k], self.titles[self.of_part[k]]

        beside = ("", "") if other is None else where(other)
        return Finding(kind, *where(index), self.label(index), *beside, float(score), why)


def audit(
    data: Dataset,
    workers: int,
    model: TrainedModel | None = None,
    batch: int = 32,
    out_of_fold: str | None = None,
) -> Audit:
    """Return what is found in ``data``.

    ``model`` computes features, which find more near copies, and judge the labels. ``out_of_fold``
    is the predictions.csv of a cross-validation, which judges labels too; with both, the mean of
    their probabilities. Where an image may have several labels, they are not judged. Errors:
    `ConfigError`, `MissingFileError`, `DataError`.
    """
    several = isinstance(data.train.labels, LabelSets)
    if several and out_of_fold is not None:
        raise ConfigError(
            "--predictions: judges images with one label each, but an image of these data may have "
            "several. Without the flag, copies and unusual images are found"
        )
    named = [(title, getattr(data, title)) for title in ("train", "val", "test")]
    titles, parts = map(list, zip(*((title, part) for title, part in named if part)))
    every = _Everything(
        titles,
        parts,
        np.repeat(np.arange(len(parts)), list(map(len, parts))),
        joined([part.labels for part in parts]),
        list(chain.from_iterable(exclude.paths_below(part, data.datadir) for part in parts)),
        data.train.classes,
    )
    looks = list(chain.from_iterable(appearance.looks(part, workers) for part in parts))
    good = np.array([k for k, look in enumerate(looks) if not look.fault], np.int64)
    found = None
    if model is not None and len(good) > 1:
        found = suspects.features(model, _readable(every, good), batch, workers)
    exact = list(_exact(every, data, workers))
    same = {frozenset((first, second)) for first, second, _ in exact}
    pairs = _near(every, looks, good, found)
    names = every.names  # a list may have a path twice, which is no copy
    pairs = (pair for pair in pairs if names[pair[0]] != names[pair[1]])
    near = _best(pair for pair in pairs if frozenset(pair[:2]) not in same)
    taken: set[int] = set()
    findings = list(_copies(every, "exact copy", exact, taken))
    findings += _copies(every, "near copy", near, taken)
    findings += [every.finding(kind, k, s, why) for kind, k, s, why in appearance.oddities(looks)]
    judged = (found is not None or out_of_fold is not None) and not several
    if judged:
        findings += _labels(every, good, found, out_of_fold)
    findings.sort(key=_order)
    images = chain.from_iterable(
        (partial(part.image, index) for index in range(len(part))) for part in every.parts
    )
    return Audit(findings, len(every.names), dict(zip(every.names, images)), judged, several)


def _order(finding: Finding) -> tuple:
    smallest_first = finding.kind in ("tiny", "rare mode")
    score = finding.score if smallest_first else -finding.score
    return not finding.is_across, list(KINDS).index(finding.kind), score


def _readable(every: _Everything, good: np.ndarray) -> list[Images]:
    """Return the parts without images that cannot be decoded."""
    starts = np.cumsum([0, *map(len, every.parts)])
    parts = []
    for images, low, high in zip(every.parts, starts, starts[1:]):
        own = good[(good >= low) & (good < high)] - low
        whole = len(own) == len(images)
        parts.append(images if whole else images.chosen(own, images.labels[own], images.classes))
    return parts


# --- Copies -------------------------------------------------------------------------------------

Pair = tuple[int, int, float]  # the indices of two images, and how alike they are


def _exact(every: _Everything, data: Dataset, workers: int) -> Iterator[Pair]:
    """Yield (index, larger index, 1) of images with the same content.

    One of each group is the first image in the last part that has one: it stays.
    """
    if all(isinstance(part, FileImages) for part in every.parts):
        parts = copies.parts_of(data)
        paths = [path for part in parts for path in part.paths]
        key = copies.cache_key(parts)
        hashes = copies.content_hashes(paths, np.arange(len(paths)), key, workers).tolist()
    else:
        paths = every.names
        hashes = [
            hashlib.sha256(part.image(index).tobytes()).digest()
            for part in every.parts
            for index in range(len(part))
        ]
    groups: dict[object, list[int]] = {}
    for index, value in enumerate(hashes):
        if value:
            groups.setdefault(value, []).append(index)
    for group in groups.values():
        stays = min(group, key=lambda index: (-every.of_part[index], index))
        for index in group:
            if paths[index] != paths[stays]:
                yield min(index, stays), max(index, stays), 1.0


def _near(
    every: _Everything,
    looks: Sequence[appearance.Look],
    good: np.ndarray,
    found: suspects.Features | None,
) -> Iterator[Pair]:
    """Yield pairs of images that look the same, or have nearly the same features.

    The last part comes first, so that each of many equal training images is matched with it.
    """
    order = np.argsort(-every.of_part, kind="stable")
    yield from appearance.near_copies(looks, order)
    if found is None:
        return
    row_of = {index: row for row, index in enumerate(good)}
    order = [k for k in order if k in row_of and not appearance.is_flat(looks[k])]
    values = found.main[[row_of[k] for k in order]]
    for row, columns, cosines in appearance.close_pairs(values, values, _SAME_FEATURES):
        yield from ((order[row], order[k], float(c)) for k, c in zip(columns, cosines))


def _best(pairs: Iterable[Pair]) -> list[Pair]:
    """Return each pair once, the smaller index first; the most alike pairs first."""
    best: dict[tuple[int, int], float] = {}
    for one, other, score in pairs:
        pair = int(min(one, other)), int(max(one, other))
        best[pair] = max(score, best.get(pair, 0))
    return sorted(((*pair, score) for pair, score in best.items()), key=lambda item: -item[2])


def _copies(
    every: _Everything, kind: str, pairs: Sequence[Pair], taken: set[int]
) -> Iterator[Finding]:
    """Yield a finding for each image to leave out, at most one per image; add it to ``taken``.

    Of two parts the training image leaves, then the validation image; in one part the later image.
    """
    across = [pair for pair in pairs if every.of_part[pair[0]] != every.of_part[pair[1]]]
    within = [pair for pair in pairs if every.of_part[pair[0]] == every.of_part[pair[1]]]
    for first, second, score in (*across, *within):
        leaves, stays = (first, second)
        if every.of_part[first] == every.of_part[second]:
            leaves, stays = second, first
        if leaves in taken or stays in taken:
            continue
        taken.add(leaves)
        what = "same content" if kind == "exact copy" else f"{score:.1%} alike"
        other = every.label(stays)
        if every.label(leaves) != other:
            what += f", but the other has the label {other}" if other else ", but without a label"
        yield every.finding(kind, leaves, score, what, stays)


# --- Labels -------------------------------------------------------------------------------------


def _labels(
    every: _Everything,
    good: np.ndarray,
    found: suspects.Features | None,
    out_of_fold: str | None,
) -> Iterator[Finding]:
    """Yield the images whose label has a low probability, the most suspicious first."""
    labels, count = every.labels[good], len(every.classes)
    judged = []
    if found is not None:
        judged.append(suspects.probabilities(found.all, labels, count))
    if out_of_fold is not None:
        names = [every.names[index] for index in good]
        judged.append(predictions.read(out_of_fold, names, every.classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of images that nothing judges
        chances = np.nanmean(judged, axis=0)
    rows = np.flatnonzero(~np.isnan(chances).any(axis=1))
    own, guess = chances[rows, labels[rows]], chances[rows].argmax(axis=1)
    rows, own, guess = (values[guess != labels[rows]] for values in (rows, own, guess))
    for place in np.argsort(own, kind="stable")[: max(_FEWEST, int(_SHARE * len(good)))]:
        row, other = rows[place], None
        if found is not None and (labels == guess[place]).any():
            other = good[suspects.nearest_of_class(found.main, labels, row, guess[place])]
        name = every.classes[guess[place]]
        why = f"rather {name}: {chances[row, guess[place]]:.0%}, its label {own[place]:.1%}"
        yield every.finding("label", good[row], 1 - own[place], why, other)
