"""Paddle's files: read bit for bit, lazily, and without running what is in them."""

import copyreg
import importlib.util
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from conftest import arrays_of
from helpers import pickles
from helpers.hostile import DEEP, LAUGHS, attacks, memory, mutations, read_all, survives
from helpers.pickles import Called, Named, pickled
from helpers.places import GOLDEN

from bit_paddle.errors import CheckpointError
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.containers.paddle import PdparamsFile
from bit_paddle.models.containers.torch import TorchFile

FILES = GOLDEN / "containers"
KINDS = ("2", "3", "4", "wrapped")


@pytest.fixture(scope="module")
def written_now(tmp_path_factory):
    """The files that the installed Paddle writes."""
    spec = importlib.util.spec_from_file_location("make_paddle", FILES / "make_paddle.py")
    make_paddle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_paddle)
    folder = tmp_path_factory.mktemp("paddle")
    make_paddle.save_all(folder, "paddle_now")
    return folder


@pytest.fixture(params=["paddle_2.6.2", "paddle_now"])
def start(request):
    """The start of the files' path, for each version of Paddle."""
    now = request.param == "paddle_now"
    return (request.getfixturevalue("written_now") if now else FILES) / request.param


def write(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


# --- Files that Paddle wrote --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_of_paddle(kind, start):
    """The pickle protocols 2 to 4, and tensors with their names in an entry "model"."""
    path = start.with_name(f"{start.name}_{kind}.pdparams")
    assert PdparamsFile.matches(path) and not TorchFile.matches(path)
    found, expected = read_all(PdparamsFile, path), np.load(start.with_name(f"{start.name}.npz"))
    assert set(found) == set(expected.files)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype and array.shape == expected[name].shape
        assert array.tobytes() == expected[name].tobytes()
    with PdparamsFile(path) as file:
        assert file.wrapper == ("model" if kind == "wrapped" else None)
        assert file.arrays["bfloat16"] == ((3, 4), "bfloat16")
        with pytest.raises(CheckpointError, match="nothing is no array"):
            file.read("nothing")


def test_a_tensor_alone_is_refused(start):
    with pytest.raises(CheckpointError, match=r"found an object of class tuple.*paddle\.save"):
        PdparamsFile(start.with_name(f"{start.name}_tensor.pdparams"))


def test_a_model(tmp_path):
    """The parameters of this package's own network, as Paddle saves them."""
    import paddle

    from bit_paddle import create_model

    arrays = arrays_of(14, 1, 10, 0)
    np.savez(tmp_path / "a.npz", **arrays)
    paddle.save(create_model(tmp_path / "a.npz").state_dict(), str(tmp_path / "a.pdparams"))
    with CheckpointFile(tmp_path / "a.pdparams") as file:
        file.check(file.architecture(), 10)
        assert file.shapes.keys() == arrays.keys()
        for key, array in arrays.items():
            assert file.array(key).tobytes() == array.tobytes()


# --- Arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f8", "<i8", ">u2", "|b1", "|u1", ">c8"])
@pytest.mark.parametrize("shape", [(), (0, 3), (3,), (20, 30)])
def test_dtypes_and_orders(protocol, dtype, shape, tmp_path):
    """C and Fortran order, both byte orders, short and long ones, all 256 bytes."""
    rng = np.random.default_rng(0)
    values = np.asarray(rng.integers(0, 256, shape)).astype(dtype)
    fortran = np.array(values, order="F")
    arrays = {"c": values, "fortran": fortran, "pair": ("name", values.T)}
    found = read_all(PdparamsFile, write(tmp_path / "a.pdparams", arrays, protocol))
    for name, expected in (("c", values), ("fortran", values), ("pair", values.T)):
        assert found[name].shape == expected.shape and found[name].dtype.isnative
        if dtype == ">u2":  # Paddle's bfloat16
            expected = np.asarray(expected.astype("u4") * np.uint32(2**16)).view("f4")
        np.testing.assert_array_equal(found[name], expected)


def test_what_is_no_array(tmp_path):
    """Object arrays, texts and structures are listed, or left out, and never loaded."""
    value = {
        "w": np.float32([1]),
        "objects": np.array([{}], object),
        "texts": np.array(["a"]),
        "structure": np.zeros(1, [("a", "f4")]),
        "StructuredToParameterName@@": {"w": "linear_0.w_0"},
        "epoch": 3,
    }
    for protocol in (2, 4):
        with PdparamsFile(write(tmp_path / "a.pdparams", value, protocol)) as file:
            assert file.arrays.pop("w") == ((1,), "float32")
            assert file.arrays == dict.fromkeys(("objects", "texts", "structure"), ((), "object"))
            assert file.read("w") == 1


@pytest.mark.parametrize("protocol", [2, 3])
def test_split_arrays(protocol, tmp_path):
    """Protocols 2 and 3 cannot hold 4 GB in one piece."""
    values = np.arange(600, dtype=np.float32).reshape(20, 30)
    pieces = {f"w@@.{i}": values.reshape(-1)[250 * i : 250 * (i + 1)] for i in range(3)}
    split = {"w": {"OriginShape": values.shape, "slices": list(pieces)}}
    value = {"b": np.ones(2), **pieces, "UnpackBigParamInfor@@": split}
    found = read_all(PdparamsFile, write(tmp_path / "a.pdparams", value, protocol))
    assert list(found) == ["b", "w"]
    np.testing.assert_array_equal(found["w"], values)


@pytest.mark.parametrize(
    "how",
    [
        {"OriginShape": (20, 30), "slices": ["w@@.0"] * 3},
        {"OriginShape": (20, 30), "slices": ["w@@.0", "w@@.1"]},
        {"OriginShape": (2**40, 30), "slices": ["w@@.0"]},
        {"OriginShape": (300,), "slices": ["w@@.0", "x"]},
        {"OriginShape": (300,), "slices": []},
        {"OriginShape": (300,), "slices": [("w@@.0",)]},
        {"slices": ["w@@.0"]},
        3,
    ],
)
def test_pieces_that_do_not_fit(how, tmp_path):
    value = {"w@@.0": np.ones(300), "x": np.ones(9, "i4"), "UnpackBigParamInfor@@": {"w": how}}
    assert "damaged" in survives(PdparamsFile, write(tmp_path / "a.pdparams", value))


def test_arrays_stay_in_the_file_until_they_are_read(tmp_path):
    """Opening 4 GB needs no memory, and reading an array needs the array's."""
    path, mega = tmp_path / "a.pdparams", np.arange(2**18, dtype=np.float32)
    huge = array(shape=(2**30,), data="here")
    head, tail = pickled({"small": mega, "huge": huge, "end": np.ones(3)}, 4)[0].split(
        pickle.dumps("here", 4)[11:-2]
    )
    with open(path, "wb") as stream:  # the 4 GB are a hole in the file
        stream.write(head + b"\x8e" + (2**32).to_bytes(8, "little"))
        stream.seek(2**32, 1)
        stream.write(tail)
    with memory(300_000), PdparamsFile(path) as file:
        assert file.arrays["huge"] == ((2**30,), "float32")
    with PdparamsFile(path) as file:
        with memory(mega.nbytes + 10_000):
            found = file.read("small")
        np.testing.assert_array_equal(found, mega)


@pytest.mark.parametrize("protocol", [2, 4])
def test_memory_of_one_array(protocol, tmp_path):
    """Bytes that protocol 2 writes as text are decoded piece by piece."""
    values = np.random.default_rng(0).integers(0, 256, 2**24, dtype=np.uint8)
    path = write(tmp_path / "a.pdparams", {"w": values}, protocol)
    with PdparamsFile(path) as file, memory(values.nbytes + 6 * 2**20):
        found = file.read("w")
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "value, wrapper",
    [
        ({"w": np.ones(1)}, None),
        (OrderedDict(w=("linear_0.w_0", np.ones(1))), None),
        ({"model": {"w": np.ones(1)}, "epoch": 3, "optimizer": {"w_0": np.ones(3)}}, "model"),
        ({"state_dict": {"module.w": np.ones(1)}}, "state_dict"),
    ],
)
def test_wrappers(value, wrapper, tmp_path):
    with PdparamsFile(write(tmp_path / "a.pdparams", value)) as file:
        assert file.wrapper == wrapper and file.arrays == {"w": ((1,), "float64")}


def test_matches_by_content(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"\x80")
    np.savez(tmp_path / "a.pdparams", w=np.ones(2))
    assert not any(PdparamsFile.matches(path) for path in tmp_path.iterdir())


# --- Hostile files ------------------------------------------------------------------------------


@pytest.fixture
def marker(tmp_path):
    """A file that must not appear."""
    copyreg.add_extension("os", "system", 0xF0)
    yield tmp_path / "marker"
    copyreg.remove_extension("os", "system", 0xF0)


@pytest.mark.parametrize("opcode", list(attacks("marker")))
def test_nothing_runs(opcode, marker, tmp_path):
    """Neither alone nor beside weights, which are read. test_torch_files.py runs the attacks."""
    path, attack = tmp_path / "a.pdparams", attacks(marker)[opcode]
    path.write_bytes(attack)
    assert "expected a pickled state dict" in survives(PdparamsFile, path)
    path.write_bytes(pickled({"w": np.ones(1)})[0][:-1] + b"X\1\0\0\0v" + attack[:-1] + b"s.")
    with PdparamsFile(path) as file:
        assert file.arrays["v"].dtype == "object" and file.read("w") == 1
    assert not marker.exists()


def array(dtype: object = "f4", shape: object = (1,), data: object = bytes(4), order="<", **state):
    """An array as NumPy pickles it, with whatever parts."""
    kind = Called(Named("numpy", "dtype"), dtype, False, True, state=(3, order, *[None] * 6))
    function = Named("numpy.core.multiarray", "_reconstruct")
    whole = state.get("state", (1, shape, kind, False, data))
    return Called(function, Named("numpy", "ndarray"), (0,), b"b", state=whole)


@pytest.mark.parametrize(
    "liar",
    [
        array(shape=(2**40,)),
        array(shape=(2**62,)),
        array(shape=(2**61,) * 9),
        array(shape=(-1,)),
        array(shape=(1,) * 40),
        array(shape=[1]),
        array(shape=(2,)),
        array(data=bytes(3)),
        array(data=bytes(2000)),
        array(data="ABCDE"),
        array(data="ABC\u0394"),
        array(data="\u0394" * 2000, shape=(800,)),
        array(data=[1]),
        array(data=3),
        array(order="?"),
        array(order=("<",)),
        array(state=(1, 2)),
        array(state=(1, (1,), "f4", False, bytes(4))),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_claimed_sizes(liar, protocol, tmp_path):
    path = tmp_path / "a.pdparams"
    path.write_bytes(pickled({"v": np.ones(1), "w": liar}, protocol)[0])
    assert "damaged" in survives(PdparamsFile, path, megabytes=1)


def test_odd_arrays_that_are_right(tmp_path):
    """As Python 2 wrote them; and an empty one of a huge shape."""
    path = tmp_path / "a.pdparams"
    value = {"w": array(data="ABC\xe9"), "v": array(shape=(0, 2**61), data=b"")}
    path.write_bytes(pickled(value)[0])
    with PdparamsFile(path) as file:
        assert file.read("w").tobytes() == b"ABC\xe9"
    survives(PdparamsFile, path)


@pytest.mark.parametrize("name", DEEP)
def test_deep_nesting(name, tmp_path):
    (tmp_path / "a.pdparams").write_bytes(DEEP[name])
    assert survives(PdparamsFile, tmp_path / "a.pdparams", megabytes=20) != "read"


@pytest.mark.parametrize(
    "index",
    [
        b"}" + LAUGHS + b"K\1s.",
        LAUGHS + b".",
        b"c__builtin__\ntuple\n" + LAUGHS + b"\x85R.",
        b"cnumpy\ndtype\nX\2\0\0\0f4\x85R(K\3" + LAUGHS + b"tb.",
        b"c_codecs\nencode\n" + LAUGHS + LAUGHS + b"\x86R.",
        b"X\1\0\0\0wQ.",
        b"Px\n.",
    ],
)
def test_billion_laughs_and_references(index, tmp_path):
    """A value that would take for ever to hash, to compare, to count or to print."""
    (tmp_path / "a.pdparams").write_bytes(b"\x80\x02" + index)
    assert survives(PdparamsFile, tmp_path / "a.pdparams", seconds=5) != "read"


def test_cycles(tmp_path):
    cycle = {"w": np.ones(1), "params": {}}
    for name in ("model", "state_dict", "module"):
        cycle[name] = cycle["params"][name] = cycle
    with PdparamsFile(write(tmp_path / "a.pdparams", cycle)) as file:
        assert file.read("w") == 1
    del cycle["w"]
    outcome = survives(PdparamsFile, write(tmp_path / "a.pdparams", cycle))
    assert "expected a pickled state dict" in outcome


@pytest.mark.parametrize("protocol", [2, 4])
def test_cut_short_at_every_length(protocol, tmp_path):
    content = pickle.dumps({"w": np.ones(300, np.float16), "b": np.ones(2)}, protocol)
    for length in range(len(content)):
        (tmp_path / "b.pdparams").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"b\.pdparams"):
            read_all(PdparamsFile, tmp_path / "b.pdparams")


@pytest.mark.slow
@pytest.mark.weekly
@pytest.mark.parametrize("kind", KINDS)
def test_500_mutations(kind, start, tmp_path):
    content = start.with_name(f"{start.name}_{kind}.pdparams").read_bytes()
    outcomes = []
    for damaged in mutations(content, 500, 0):
        (tmp_path / "a.pdparams").write_bytes(damaged)
        outcomes.append(survives(PdparamsFile, tmp_path / "a.pdparams"))
    assert 0 < outcomes.count("read") < 450  # some damage is in numbers, or does not matter


def test_weights_of_pytorch_without_its_start_are_no_pdparams(tmp_path):
    """A plain pickle of tensors refers to their storages, which are elsewhere."""
    index = pickled({"w": pickles.tensor(np.float32([1]))})[0]
    (tmp_path / "a.pdparams").write_bytes(index)
    assert "outside of the file" in survives(PdparamsFile, tmp_path / "a.pdparams")
