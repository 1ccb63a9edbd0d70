"""Read mutations of an HDF5 file as Keras', and print what came of them as JSON.

    python keras_mutations.py FILE COUNT SEED

The list of weights is made by forks of one process that has h5py, as starting Python for each takes
too long; the rest is the package's own.
"""

import collections
import json
import os
import random
import resource
import signal
import sys
import tempfile
import types
from pathlib import Path

import h5py

from bit_paddle.errors import CheckpointError
from bit_paddle.models.containers import hdf5, keras


def metadata(path):
    """Return the places of all bytes outside the arrays."""
    arrays = []

    def visit(_, found):
        if isinstance(found, h5py.Dataset):
            arrays.append((found.id.get_offset(), found.id.get_storage_size()))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    places, at = [], 0
    for offset, size in [*sorted(arrays), (path.stat().st_size, 0)]:
        places += range(at, offset)
        at = offset + size
    return places


def mutated(content, places, chance):
    """Return the bytes with one to eight changes of a kind."""
    result, kind = bytearray(content), chance.randrange(6)
    size = len(result)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        at = chance.choice(places)
        if kind == 0:
            result[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            result[at] = chance.choice((0, 1, 2, 3, 4, 8, 16, 127, 128, 254, 255))
        elif kind == 2:  # an offset or a length
            number = chance.choice(
                (2**64 - 1, 0, size - chance.randrange(64), 2 ** chance.randrange(64), at)
            )
            result[at : at + 8] = number.to_bytes(8, "little")
        elif kind == 3:  # a piece from elsewhere
            start, length = chance.choice(places), chance.randrange(1, 64)
            result[at : at + length] = content[start : start + length]
        elif kind == 4:
            result[at : at + 4] = chance.getrandbits(32).to_bytes(4, "little")
        else:
            result[at] = chance.randrange(256)
    return result[: chance.choice(places)] if chance.random() < 0.05 else result


STATUSES = collections.Counter()


def fork(command, timeout, **_):
    """Do what ``subprocess.run`` does with the command of `keras`."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(timeout)
        os.dup2(write, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.close(read)
        sys.argv = command[2:]  # as -c sets it
        hdf5.main()
    os.close(write)
    with open(read, "rb") as stream:
        output = stream.read()
    STATUSES[os.waitpid(child, 0)[1]] += 1
    return types.SimpleNamespace(stdout=output)


def main(path, count, seed):
    content, places = path.read_bytes(), metadata(path)
    content_set = [at for at in places if content[at]]
    chance, outcomes = random.Random(seed), collections.Counter()
    keras.subprocess = types.SimpleNamespace(run=fork, TimeoutExpired=TimeoutError)
    with tempfile.TemporaryDirectory() as folder:
        victim = Path(folder, "x.h5")
        for _ in range(count):
            victim.write_bytes(mutated(content, content_set, chance))
            try:
                with keras.KerasFile(victim) as file:
                    for name in file.arrays:
                        file.read(name)
                outcomes["read"] += 1
            except CheckpointError as error:
                outcomes["refused"] += 1
                outcomes["library stopped"] += "stops at it" in str(error)
    # ru_maxrss of this process is at least what its parent had when it started it
    status = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    outcomes["megabytes"] = max(own, children) // 1024
    print(json.dumps({**outcomes, "statuses": STATUSES}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
