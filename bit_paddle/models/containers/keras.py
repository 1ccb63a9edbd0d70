"""Keras 2's files of weights (``.h5``), as TensorFlow's code of BiT reads and writes them.

The attribute ``layer_names`` of such a file lists a group for each layer, and ``weight_names`` of
the group its arrays. TensorFlow 2.1 and 2.2 name a weight of the layer ``block1`` either
``block1/unit01/…`` or ``resnet/block1/unit01/…``, and TensorFlow 2.3 ``unit01/…``. Newer versions
read all of these by their order, and cannot write BiT: there the names in a layer are not unique.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import bit_paddle
from bit_paddle.errors import CheckpointError, ConfigError, install_hint
from bit_paddle.models.containers.base import Container, Stored

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

_SECONDS = 60  # the list of weights takes less than a second


class KerasFile(Container):
    """An open ``.h5`` file of Keras 2: names such as ``block1/unit01/a/group_norm/gamma``.

    A name begins with its layer, whichever version of TensorFlow wrote the file. Kernels are HWIO,
    and the head is [C, K]. Errors: `ConfigError` without h5py; `CheckpointError` for a file that is
    damaged, is not of Keras 2, or refers to other files.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        if importlib.util.find_spec("h5py") is None:
            raise ConfigError(f"{path}: needs h5py: {install_hint('keras')}")
        self._places = _list(self.path)
        self.arrays = {
            name: Stored(tuple(place["shape"]), np.dtype(place["dtype"]).name)
            for name, place in self._places.items()
        }
        end = self.path.stat().st_size
        for name, place in self._places.items():
            size = math.prod(place["shape"]) * np.dtype(place["dtype"]).itemsize
            if place["stored"] != size or place["offset"] + size > end:
                raise CheckpointError(
                    f"{self.path}: {name} {place['shape']} needs {size} bytes, and the file does "
                    "not have them; download or copy the file again"
                )
        self._stream = open(self.path, "rb")

    @staticmethod
    def matches(path: Path) -> bool:
        """Return whether a file begins with the signature of HDF5."""
        with open(path, "rb") as stream:
            return stream.read(len(_SIGNATURE)) == _SIGNATURE

    def read(self, name: str) -> np.ndarray:
        place = self._places[name]
        dtype, count = np.dtype(place["dtype"]), math.prod(place["shape"])
        self._stream.seek(place["offset"])
        array = np.fromfile(self._stream, dtype, count)
        if len(array) != count:
            raise CheckpointError(f"{self.path}: {name} is cut short: it changed while it was read")
        return array.astype(dtype.newbyteorder("="), copy=False).reshape(place["shape"])

    def close(self) -> None:
        self._stream.close()


def _list(path: Path) -> dict[str, dict[str, Any]]:
    """Return what `hdf5.index` returns, from a process that may crash or hang."""
    program = "from bit_paddle.models.containers import hdf5; hdf5.main()"
    command = [sys.executable, "-c", program, os.path.abspath(path)]
    home = Path(bit_paddle.__file__).parents[1]  # -c imports from the current folder first
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, cwd=home)
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise CheckpointError(
            f"{path}: is damaged, HDF5's library stops at it; download or copy it again"
        ) from None
    if "error" in answer:
        raise CheckpointError(f"{path}: {answer['error']}")
    return answer["arrays"]
