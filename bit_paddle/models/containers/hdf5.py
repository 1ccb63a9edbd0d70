"""List the weights in a file of Keras 2, in a process of its own: prints one line of JSON.

HDF5's library is made for trusted files. On damaged bytes it can crash, hang and take gigabytes, so
that `containers.keras` runs it here and reads the arrays itself.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

import h5py

from bit_paddle.errors import CheckpointError

MEMORY = 2**29  # bytes beside the libraries; the names of a ResNet-152 need less than 1 MB

_MOST = 100_000  # weights; a ResNet-152 has 466


def _object(parent: h5py.Group, path: str) -> Any:
    """Return the group or the array at ``path``; refuse links, which may lead to other files."""
    for part in path.split("/"):
        if not isinstance(parent, h5py.Group) or part not in parent:
            raise CheckpointError(f"has no {path!r}, which its own list of names has")
        if not isinstance(parent.get(part, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{path!r} is a link, which may lead to another file")
        parent = parent[part]
    return parent


def _names(group: h5py.Group, attribute: str) -> list[str]:
    names = list(group.attrs[attribute])
    if len(names) > _MOST:
        raise CheckpointError(f"has {len(names)} names, expected at most {_MOST}")
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _weights(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield the name and the array of each weight, in the order in which Keras loads them."""
    root = file
    if "layer_names" not in root.attrs and "model_weights" in root:  # of a whole model
        root = _object(root, "model_weights")
    if "layer_names" not in getattr(root, "attrs", ()):
        raise CheckpointError(
            "is an HDF5 file without layer_names, so that it is not Keras 2's. Keras 3 writes such "
            "files (.weights.h5), whose arrays have numbers instead of names: they cannot be read"
        )
    for layer in _names(root, "layer_names"):
        group = _object(root, layer)
        for weight in _names(group, "weight_names"):
            name = weight.rpartition(f"{layer}/")[2].partition(":")[0]  # "kernel:0"
            yield f"{layer}/{name}", _object(group, weight)


def _describe(name: str, array: Any) -> dict[str, Any]:
    """Return the shape, type and place of an array that lies in the file in one piece."""
    if not isinstance(array, h5py.Dataset):
        raise CheckpointError(f"{name} is not an array")
    if array.external or array.is_virtual:
        raise CheckpointError(f"{name} lies in another file, which is never read")
    if array.dtype.kind not in "fiu" or h5py.h5t.py_create(array.dtype) != array.id.get_type():
        raise CheckpointError(f"{name} has the type {array.dtype}, expected numbers")
    if not array.size:
        raise CheckpointError(f"{name} is empty")
    if array.chunks:
        raise CheckpointError(
            f"{name} is stored in pieces, expected one piece as Keras writes it: "
            "h5repack -l CONTI -f NONE writes such a file"
        )
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.str,
        "offset": array.id.get_offset() or 0,
        "stored": array.id.get_storage_size(),
    }


def index(path: str) -> dict[str, dict[str, Any]]:
    """Return {name: shape, dtype, offset and stored bytes} of all weights of a file of Keras 2."""
    found: dict[str, dict[str, Any]] = {}
    with h5py.File(path, "r", locking=False) as file:
        for name, array in _weights(file):
            if name in found or len(found) == _MOST:
                raise CheckpointError(f"has {name} twice, or more than {_MOST} weights")
            found[name] = _describe(name, array)
    return found


def main() -> None:
    """Print {"arrays": …} or {"error": …}."""
    used = int(open("/proc/self/statm", "rb").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer: dict[str, Any] = {"arrays": index(sys.argv[1])}
    except CheckpointError as error:
        answer = {"error": str(error)}
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        answer = {"error": f"is damaged ({reason}); download or copy it again"}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # closing a damaged file may crash, too
