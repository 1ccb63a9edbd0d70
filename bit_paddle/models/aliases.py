"""The names of the published checkpoints in other libraries, and the nearest names to a wrong one.

Where the names are from:

- timm: ``default_cfgs`` and ``register_model_deprecations`` in timm/models/resnetv2.py, compared
  with timm 1.0.31. The old ``…_bitm`` is fine-tuned on ImageNet-1k, and ``…_bitm_in21k`` is not. A
  network without a tag, such as ``resnetv2_50x1_bit``, has the first tag in ``default_cfgs``: for
  50x1 the distilled model, for 152x2 the teacher, for the others ``goog_in21k_ft_in1k``.
- Hugging Face: ``google/bit-50`` is timm's ``resnetv2_50x1_bitm``, the default of transformers'
  models/bit/convert_bit_to_pytorch.py. No other repository ``google/bit-…`` is known.
- TensorFlow Hub and Kaggle: colabs/big_transfer_tf2.ipynb of the reference code.
  ``m-r50x1/ilsvrc2012_classification`` is BiT-M fine-tuned on ILSVRC-2012. ``m-r50x1`` is BiT-M
  without its head. The distilled models are in the README of sayakpaul/BiT-jax2tf.
- MindCV: ``bit_resnet50`` in configs/bit/README.md is the network R50x1, which MindCV trained on
  ILSVRC-2012 itself. The authors' checkpoint of that network and data is BiT-S-R50x1.
- The reference code, tfbit (``BiT_M_R50x1``) and the files themselves (``BiT-M-R50x1.h5``,
  ``gs://bit_models/…``) differ from the catalogue's names only in what `fold` removes.

Keras, KerasHub and PaddleClas were searched: they have no names for these checkpoints.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_TIMM_DEFAULT = {"R50x1": "R50x1_224", "R152x2": "R152x2_T_224"}  # else fine-tuned on ILSVRC-2012

_DISTILLED = {
    "R50x1_224": (
        "resnetv2_50x1_bit.goog_distilled_in1k",
        "resnetv2_50x1_bit_distilled",
        "sayakpaul/distill_bit_r50x1_224_classification",
        "sayakpaul/distill_bit_r50x1_224_feature_extraction",
    ),
    "R50x1_160": (
        "sayakpaul/distill_bit_r50x1_160_classification",
        "sayakpaul/distill_bit_r50x1_160_feature_extraction",
    ),
    "R152x2_T_224": (
        "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k",
        "resnetv2_152x2_bit_teacher",
        "sayakpaul/bit_resnet152x2_224_classification",
        "sayakpaul/bit_r152x2_224_feature_extraction",
    ),
    "R152x2_T_384": (
        "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
        "resnetv2_152x2_bit_teacher_384",
        "sayakpaul/bit_resnet152x2_384_classification",
        "sayakpaul/bit_r152x2_384_feature_extraction",
    ),
}

_MORE = {
    "BiT-M-R50x1-ILSVRC2012": ("google/bit-50",),
    "BiT-S-R50x1": ("bit_resnet50",),
    "BiT-S-R50x3": ("bit_resnet50x3",),
    "BiT-S-R101x1": ("bit_resnet101",),
}


def other_names(networks: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return {name in the catalogue: its names in other libraries}, timm's present name first.

    ``networks`` are the published ones, such as R50x1. Names that differ only in what `fold`
    removes are not listed.
    """
    names = {name: list(others) for name, others in _DISTILLED.items()}
    bare = {}
    for network in networks:
        timm, hub = f"resnetv2_{network[1:]}_bit", f"-{network.lower()}"
        names[f"BiT-S-{network}"] = [f"bit/s{hub}", f"bit/s{hub}/ilsvrc2012_classification"]
        names[f"BiT-M-{network}"] = [
            f"{timm}.goog_in21k",
            f"{timm}m_in21k",
            f"bit/m{hub}",
            f"bit/m{hub}/imagenet21k_classification",
        ]
        fine_tuned = f"BiT-M-{network}-ILSVRC2012"
        names[fine_tuned] = [
            f"{timm}.goog_in21k_ft_in1k",
            f"{timm}m",
            f"bit/m{hub}/ilsvrc2012_classification",
        ]
        bare[timm] = _TIMM_DEFAULT.get(network, fine_tuned)
    for timm, name in bare.items():
        names[name].append(timm)
    for name, others in _MORE.items():
        names[name] += others
    return {
        name: (*others, *(f"timm/{other}" for other in others if ".goog" in other))
        for name, others in names.items()
    }


_ADDRESS = re.compile(
    r"(https?://)?(www\.)?(tfhub\.dev|kaggle\.com/models|huggingface\.co|hf\.co)/"
    r"|(https?://storage\.googleapis\.com|gs:/)/bit_models/(distill/|vtab/)?"
    r"|hf[-_]hub:"
)

_KAGGLE = re.compile(
    r"google/bit/(?:frameworks/)?tensorflow[12]/(?:variations/)?([sm]-r\d+x\d)"
    r"(?:-(\w+)-classification)?(?:/versions)?(?:/\d+)?"
)


def fold(name: str) -> str:
    """Return the form in which names are compared.

    It has no address, no owner, no version and no ending of a file. It is in lower case, with ``-``
    for ``_``. ``https://tfhub.dev/google/bit/m-r50x1/1`` becomes ``bit/m-r50x1``.
    """
    name = name.strip().lower()
    address = _ADDRESS.match(name)
    if address:
        name = re.split(r"[?#]", name[address.end() :])[0].rstrip("/")
        name = re.sub(r"/tree/main$", "", name)
    kaggle = _KAGGLE.fullmatch(name)
    if kaggle:
        name = f"bit/{kaggle[1]}" + (f"/{kaggle[2]}_classification" if kaggle[2] else "")
    name = re.sub(r"^google/(?=bit[/-])|^timm/(?=resnetv2)", "", name)
    name = re.sub(r"^((?:bit|sayakpaul)/.+)/\d+$", r"\1", name)
    return re.sub(r"\.(npz|h5)$", "", name).replace("_", "-")


# --- The nearest names to a wrong one -------------------------------------------------------------


class Known(NamedTuple):
    """A checkpoint of the catalogue, as `nearest` needs it."""

    name: str
    data: str  # such as "imagenet21k" or "vtab dtd"
    others: tuple[str, ...]  # its names in other libraries


class _Facts(NamedTuple):
    """What a name says about a checkpoint; "" for what it does not say."""

    layers: str
    width: str
    kind: str
    data: str
    run: str


_POINTS = _Facts(layers=6, width=4, kind=3, data=3, run=1)  # of a fact that agrees

_KINDS = {
    "distilled": r"distil",
    "teacher": r"teacher|-t-|-t$",
    "m": r"bit-?m\b|\bm-|-m\b|^bit-\d",  # Hugging Face's bit-50 is BiT-M
    "s": r"bit-?s\b|\bs-|-s\b",
}

_CORPORA = {"ilsvrc2012": "1k", "imagenet21k": "21k"}

_DATA = (  # the first that is found counts
    (r"in-?1k|imagenet-?1k|ilsvrc", "1k"),
    (r"2[12]k", "21k"),
    (r"imagenet|1k|^bit-\d", "1k"),  # and has the 1,000 classes
)


def nearest(name: str, known: Sequence[Known], most: int = 4) -> list[str]:
    """Return the names of checkpoints that are nearest to ``name``, the best first.

    What ``name`` says about network, data and kind counts more than its letters. A name of another
    library is returned if ``name`` is almost that one. Without a similar name the list is empty.
    """
    typed = fold(name)
    facts = [_facts_of(item) for item in known]
    said = _facts(typed, {fact.data for fact in facts} - set(_CORPORA.values()))
    plausible = re.match(r"bit(?!.*/)", typed) or said.data or (said.layers and "r" in typed)
    ranked = []
    for item, fact in zip(known, facts):
        alike, place = max(
            (difflib.SequenceMatcher(None, typed, fold(other)).ratio(), -place)
            for place, other in enumerate((item.name, *item.others))
        )
        if alike < 0.6 and not plausible:
            continue
        if fact.run and not said.run and said.data != fact.data and alike < 0.9:
            continue  # one of the 285 models of VTAB: only if the name says so
        agreement = sum(
            points * ((mine == theirs) - (theirs not in ("", mine)))
            for mine, theirs, points in zip(said, fact, _POINTS)
            if mine
        )
        usual = (fact.kind == "m") - (fact.width != "1") - 2 * (fact.data not in ("21k", said.data))
        spelling = item.others[-place - 1] if place and alike > 0.85 else item.name
        ranked.append((-8 * alike**3 - agreement - usual, len(ranked), spelling))
    ranked.sort()
    return [spelling for cost, _, spelling in ranked[:most] if cost < ranked[0][0] + 5]


def _facts(name: str, tasks: Iterable[str] = ()) -> _Facts:
    """Return what the folded ``name`` says; ``tasks`` are data sets that it may contain."""
    plain = name.replace("-", "")
    data = [task for task in sorted(tasks, key=len) if task.replace("-", "") in plain][-1:]
    network = re.search(r"(?<!\d)(50|101|152)(?:x(\d))?(?!\d)", name.replace("".join(data), ""))
    run = re.search(r"run-?(\d)", name)
    kind = [kind for kind, pattern in _KINDS.items() if re.search(pattern, name)]
    data += [word for pattern, word in _DATA if re.search(pattern, name)]
    return _Facts(
        *(network.groups("") if network else ("", "")),
        kind[0] if kind else "",
        data[0] if data else "",
        run[1] if run else "",
    )


def _facts_of(item: Known) -> _Facts:
    data = fold(item.data).split()[-1]
    facts = _facts(fold(item.name))._replace(data=_CORPORA.get(data, data))
    return facts if facts.kind or not facts.layers else facts._replace(kind="distilled")
