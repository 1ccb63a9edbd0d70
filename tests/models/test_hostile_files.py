"""Files and folders that were made to do harm, or damaged: the package's errors, and no memory.

The files of PyTorch and Paddle have tests of their own.
"""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from helpers.commands import run
from safetensors.numpy import save_file

from bit_paddle import create_model
from bit_paddle.errors import BitPaddleError, CheckpointError
from bit_paddle.models import names, npz
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    shapes = npz.shapes(Architecture((1, 1, 1, 1), 0.5), 3)
    return {key: random.standard_normal(shape, np.float32) for key, shape in shapes}


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    """The same small network by each writer, in float16 to be short."""
    folder = tmp_path_factory.mktemp("files")
    short = {key: array.astype(np.float16) for key, array in arrays.items()}
    npz.write(folder / "x.npz", short.items(), {"classes": ["a", "b", "c"]})
    np.savez_compressed(folder / "compressed.npz", **short)
    save_file(timm(short), folder / "x.safetensors")
    return folder


def timm(arrays):
    """Return ``arrays`` in timm's names and layout."""
    return {
        names.timm_name(key): np.ascontiguousarray(
            array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        )
        for key, array in arrays.items()
    }


def read_all(path):
    with CheckpointFile(path) as file:
        file.check(file.architecture(), file.classes)
        return {key: file.array(key) for key in file.shapes}


@pytest.mark.slow
@pytest.mark.weekly
@pytest.mark.parametrize("name", ["x.npz", "compressed.npz", "x.safetensors"])
def test_500_mutations(name, files, arrays, tmp_path):
    """A changed file is refused, or what is read has the right names and shapes."""
    good, random = (files / name).read_bytes(), np.random.default_rng(7)
    structure = [at for at in range(len(good)) if at < 4096 or at > len(good) - 8192]
    path, refused = tmp_path / name, 0
    for turn in range(500):
        data = bytearray(good)
        kind = turn % 5
        if kind == 0:  # cut short
            del data[random.integers(len(data)) :]
        elif kind == 1:  # a piece twice
            start, length = random.integers(len(data)), random.integers(1, 512)
            data[start:start] = data[start : start + length]
        elif kind == 2:  # a piece of zeros or ones
            start = structure[random.integers(len(structure))]
            data[start : start + 16] = bytes([random.choice([0, 255])]) * 16
        else:  # single bytes
            for _ in range(random.integers(1, 5)):
                at = random.integers(len(data)) if kind == 3 else random.choice(structure)
                data[at] = random.integers(256)
        path.write_bytes(data)
        try:
            found = read_all(path)
        except BitPaddleError:
            refused += 1
        else:
            assert {key: array.shape for key, array in found.items()} == {
                key: array.shape for key, array in arrays.items()
            }
    assert refused > 250


LIMITED = """
import resource, sys
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.errors import CheckpointError
import bit_paddle.models.containers.safetensors, safetensors, numpy
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)
try:
    with CheckpointFile(sys.argv[1]) as file:
        file.check(file.architecture(), file.classes)
        for key in file.shapes:
            file.array(key)
except CheckpointError as error:
    print("refused", error)
else:
    print("read")
"""


def limited(path):
    """Return what a process prints that reads ``path`` with 96 MB of memory to spare."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def header(shape, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def zeros(files, path, widen):
    """Write a compressed checkpoint of zeros whose channels are ``widen`` times as many."""
    with (
        CheckpointFile(files / "x.npz") as file,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for key, shape in file.shapes.items():
            wide = tuple(n * widen if n > 7 else n for n in shape)
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                member.write(header(wide))
                left = 4 * int(np.prod(wide))
                while left:
                    left -= member.write(bytes(min(left, 1 << 20)))
    return path


@pytest.mark.slow
def test_a_zip_bomb(files, tmp_path):
    """400 MB of zeros in less than 1 MB: refused before an array is read."""
    path = zeros(files, tmp_path / "bomb.npz", 8)
    assert path.stat().st_size < 1 << 20
    assert "expands to" in limited(path)


def with_member(files, path, key, content):
    with zipfile.ZipFile(files / "x.npz") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name == f"{key}.npy" else old.read(name))
    return path


@pytest.mark.parametrize(
    "shape",
    [
        "(1000000000, 1000000)",
        "(7, 7, 3, 64)",
        "(-1,)",
        "(4611686018427387904, 4)",
        "(7, 7, 3, 31)",
    ],
)
def test_a_header_that_claims_more_than_the_file_has(shape, files, tmp_path):
    path = with_member(files, tmp_path / "claims.npz", npz.ROOT_KERNEL, header(shape) + bytes(64))
    assert "refused" in limited(path) and "is damaged" in limited(path)


@pytest.mark.parametrize("number", [99, 999999, 10**18])
def test_a_unit_that_is_far_away(number, files, tmp_path):
    arrays = dict(np.load(files / "x.npz"))
    for key in [key for key in arrays if "block2/unit01" in key]:
        arrays[key.replace("unit01", f"unit{number}")] = arrays[key]
    np.savez(tmp_path / "far.npz", **arrays)
    printed = limited(tmp_path / "far.npz")
    assert "refused" in printed and len(printed) < 100_000


def test_an_enormous_width_without_arrays(tmp_path):
    """The claimed network would need terabytes; nothing of it is made."""
    tiny = {
        npz.ROOT_KERNEL: np.zeros((7, 7, 3, 0), np.float32),
        **{f"resnet/block{b}/unit01/a/group_norm/beta": np.zeros(1, "f4") for b in (1, 2, 3, 4)},
    }
    np.savez(tmp_path / "x.npz", **tiny)
    with pytest.raises(CheckpointError, match="not a BiT checkpoint"):
        create_model(tmp_path / "x.npz")
    tiny[npz.ROOT_KERNEL] = np.broadcast_to(np.float32(0), (7, 7, 3, 1 << 14))
    np.savez(tmp_path / "x.npz", **tiny)
    assert "missing" in limited(tmp_path / "x.npz")


def shards(arrays, folder, weight_map=None):
    """Write a model in two files with an index, as transformers does for large ones."""
    folder.mkdir()
    pieces = timm(arrays)
    cut = len(pieces) // 2
    parts = {"model-1.safetensors": list(pieces)[:cut], "model-2.safetensors": list(pieces)[cut:]}
    for name, keys in parts.items():
        save_file({key: pieces[key] for key in keys}, folder / name)
    found = {key: name for name, keys in parts.items() for key in keys}
    index = {"weight_map": found if weight_map is None else weight_map(found)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_model_in_several_files(arrays, tmp_path):
    found = read_all(shards(arrays, tmp_path / "model"))
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[key], arrays[key]) for key in arrays)


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x.index.json", 5, None],
)
def test_an_index_cannot_leave_its_folder(name, arrays, tmp_path):
    save_file({"stolen": np.zeros(3, np.float32)}, tmp_path / "secret.safetensors")
    folder = shards(arrays, tmp_path / "model", lambda names: {**names, "x": name})
    with pytest.raises(BitPaddleError) as caught:
        read_all(folder)
    assert "stolen" not in str(caught.value)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[", "1"])
def test_an_index_without_files(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        create_model(tmp_path)


def test_one_array_in_two_files(arrays, tmp_path):
    folder = shards(arrays, tmp_path / "model")
    (folder / "model-2.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="is in two of its files"):
        create_model(folder)


def test_bfloat16(arrays, tmp_path):
    """The upper half of float32; the library's part for NumPy has no such type."""
    texts, data = {}, b""
    for key, array in timm(arrays).items():
        words = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        texts[key] = {
            "dtype": "BF16",
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + len(words)],
        }
        data += words
    head = json.dumps(texts).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    found = read_all(path)
    for key, array in arrays.items():
        cut = (array.view(np.uint32) >> 16 << 16).view(np.float32)
        assert found[key].dtype == np.float32 and np.array_equal(found[key], cut)


def test_nothing_of_a_pickle_runs(arrays, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'harm'}",)

    evil = {**arrays, npz.HEAD_BIAS: np.array([Harm()], dtype=object)}
    np.savez(tmp_path / "x.npz", **evil)
    with pytest.raises(CheckpointError, match="Python objects, which are never"):
        create_model(tmp_path / "x.npz")
    assert not (tmp_path / "harm").exists()


def test_names_do_not_reach_the_terminal_as_commands(arrays, tmp_path):
    """A name that clears the screen is shown; of very many names the report shows a thousand."""
    more = {f"\x1b[2J{k:05}": np.zeros(1, np.float32) for k in range(3000)}
    save_file({**timm(arrays), **more}, tmp_path / "x.safetensors")
    done = run("predict", ROOT, "--model", tmp_path / "x.safetensors", "--crop", 32)
    assert done.returncode == 2 and "unexpected (3000)" in done.stderr
    assert "\\x1b[2J00999" in done.stderr and "\x1b" not in done.stderr
    assert done.stderr.count("\n") < 1100
