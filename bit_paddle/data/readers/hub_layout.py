"""Which parquet files of a data set belong to which split, by the rules of the Hugging Face hub.

Sources: the hub's pages "Manual configuration", "File names and splits" and "List Parquet files".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import yaml

from bit_paddle.errors import ConfigError, did_you_mean

CONVERTED = "refs/convert/parquet"  # the branch with the hub's own conversion to parquet

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

_BOUNDARY = r"[-._ 0-9]"

_SHARD = re.compile(r"data/([^/]*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*")


class Subset(NamedTuple):
    """A subset of a data set: its name, and its files by the names of the splits."""

    name: str | None
    splits: dict[str, list[str]]


def front_matter(text: str) -> dict[str, Any]:
    """Return the YAML block at the top of a README; {} if there is none that can be read."""
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        content = yaml.safe_load(match[1]) if match else None
        repr(content)  # fails for a number with thousands of digits, which Python cannot print
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError, AttributeError):
        return {}
    return content if isinstance(content, dict) else {}


def find_subset(names: Iterable[str], card: Mapping[str, Any], wanted: str | None) -> Subset:
    """Return the subset ``wanted`` (None: the default one) of the parquet files ``names``.

    ``card`` is the front matter of README.md; without ``configs`` in it the names of files and
    folders tell the splits. Raises `ConfigError`.
    """
    names = sorted(names)
    configs = [
        entry
        for entry in _list(card.get("configs"))
        if isinstance(entry, dict) and entry.get("data_files")
    ]
    if not configs:
        if wanted is not None:
            raise ConfigError(f"subset: is {wanted!r}, but README.md names no subsets")
        return Subset(None, _by_names(names))
    named = {str(entry.get("config_name", "default")): entry for entry in configs}
    default = next((name for name, entry in named.items() if entry.get("default") is True), None)
    name = _chosen(named, wanted, default)
    splits = {}
    for split, patterns in _patterns(named[name]["data_files"]).items():
        expressions = [_expression(pattern, named[name].get("data_dir")) for pattern in patterns]
        splits[split] = [file for file in names if any(e.fullmatch(file) for e in expressions)]
    splits = {split: found for split, found in splits.items() if found}
    if not splits:
        raise ConfigError(f"README.md names no parquet file in the subset {name!r}")
    return Subset(name, splits)


def converted_subset(names: Iterable[str], wanted: str | None) -> Subset:
    """Return a subset of the branch `CONVERTED`, whose files are SUBSET/SPLIT/0000.parquet."""
    subsets: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(names):
        parts = name.split("/")
        if len(parts) == 3:
            subsets[parts[0]][parts[1]].append(name)
    name = _chosen(subsets, wanted, None)
    return Subset(name, dict(subsets[name]))


def class_names(card: Mapping[str, Any], subset: str | None) -> dict[str, list[str] | None]:
    """Return {column: class names} of ``dataset_info`` in a README; None for an image column."""
    infos = [entry for entry in _list(card.get("dataset_info")) if isinstance(entry, dict)]
    named = [entry for entry in infos if entry.get("config_name", "default") == subset]
    info = (named or (infos if len(infos) == 1 else [{}]))[0]
    found: dict[str, list[str] | None] = {}
    for feature in _list(info.get("features")):
        if not isinstance(feature, dict):
            continue
        name, kind = str(feature.get("name")), feature.get("dtype")
        if kind == "image":
            found[name] = None
        elif isinstance(kind, dict) and isinstance(kind.get("class_label"), dict):
            names = kind["class_label"].get("names")
            if isinstance(names, dict):  # {'0': cat, '1': dog}
                names = [names[key] for key in sorted(names, key=_number)]
            if isinstance(names, list):
                found[name] = [str(text) for text in names]
    return found


def _number(key: Any) -> int:
    return int(key) if re.fullmatch(r"[0-9]{1,9}", str(key)) else -1


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _chosen(subsets: Mapping[str, Any], wanted: str | None, default: str | None) -> str:
    """Return the name of the subset to read."""
    if wanted is not None:
        if wanted not in subsets:
            raise ConfigError(f"subset: is {wanted!r}; {did_you_mean(wanted, subsets)}")
        return wanted
    default = default or next(iter(subsets) if len(subsets) == 1 else iter(()), None)
    default = default or ("default" if "default" in subsets else None)
    if default is None:
        raise ConfigError(
            f"the data set has the subsets {', '.join(list(subsets)[:12]) or '(none)'}; choose one "
            "with the key subset in a data set's .yaml file"
        )
    return default


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Return {split: patterns} of ``data_files``: a text, a list, or entries of split and path."""
    if isinstance(data_files, dict):
        return {str(split): list(map(str, _list(paths))) for split, paths in data_files.items()}
    found: dict[str, list[str]] = {}
    for entry in _list(data_files):
        if isinstance(entry, dict):
            paths = found.setdefault(str(entry.get("split", "train")), [])
            paths += map(str, _list(entry.get("path")))
        else:
            found.setdefault("train", []).append(str(entry))
    return found


def _expression(pattern: str, folder: Any) -> re.Pattern[str]:
    """Return a glob pattern as a regular expression: ``*`` stops at /, ``**`` does not."""
    if folder:
        pattern = f"{str(folder).strip('/')}/{pattern}"
    pattern = pattern.removeprefix("./")
    pattern += "**" if pattern.endswith("/") else ""
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[^]/]+\]|.", pattern, re.DOTALL)
    made = [
        words.get(token)
        or (f"[{_set(token[1:-1])}]" if len(token) > 2 and token[0] == "[" else re.escape(token))
        for token in tokens
    ]
    return re.compile("".join(made), re.DOTALL)


def _set(inner: str) -> str:
    """Return the content of a glob's brackets for those of a regular expression."""
    negated = inner[0] in "!^" and len(inner) > 1
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner[negated:])
    escaped = re.sub(r"^-|-$", r"\\-", escaped)
    return ("^" if negated else "") + escaped


def _by_names(names: list[str]) -> dict[str, list[str]]:
    """Return the files by split: data/SPLIT-00000-of-00002.parquet, else folders, else names."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        match = _SHARD.fullmatch(name)
        if match:
            found[match[1]].append(name)
    for ends in (_in_folders, _in_name):
        if not found:
            for name in names:
                split = ends(name)
                if split:
                    found[split].append(name)
    return dict(found) or {"train": names}


def _in_folders(name: str) -> str | None:
    """Return the split that the deepest folder of a path names."""
    folders = name.split("/")[:-1]
    return next(filter(None, (_keyword(folder, r"$") for folder in reversed(folders))), None)


def _in_name(name: str) -> str | None:
    return _keyword(name.split("/")[-1], "(?!)")


def _keyword(text: str, end: str) -> str | None:
    for split, words in KEYWORDS.items():
        if re.search(rf"(^|{_BOUNDARY})({'|'.join(words)})({_BOUNDARY}|{end})", text):
            return split
    return None
