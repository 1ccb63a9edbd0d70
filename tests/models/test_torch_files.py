"""PyTorch's files: read bit for bit as PyTorch does, and without running what is in them."""

import copy
import copyreg
import pickle
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from conftest import arrays_of
from helpers import pickles
from helpers.hostile import DEEP, LAUGHS, attacks, mutations, read_all, survives
from helpers.pickles import Called, Named, Storage, tensor, write_legacy, write_zip
from helpers.places import GOLDEN

from bit_paddle.errors import CheckpointError
from bit_paddle.models import names
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.models.containers import pickled
from bit_paddle.models.containers import torch as torch_files
from bit_paddle.models.containers.torch import TorchFile

FILES = GOLDEN / "containers"
SPECIAL = ["conjugated", "quantized", "sparse"]  # tensors that are no plain arrays

formats = pytest.mark.parametrize("write", [write_zip, write_legacy])


def assert_same_bits(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


# --- Files that PyTorch wrote -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zip2", "zip4", "stream2", "stream4"])
def test_every_array_of_pytorch(name):
    expected = dict(np.load(FILES / "torch.npz"))
    path = FILES / f"torch_{name}.pth"
    assert TorchFile.matches(path)
    if name.startswith("stream"):
        expected = {key: expected[key] for key in expected if not key.startswith("uint")} | {
            "uint8": expected["uint8"]
        }
    found = read_all(TorchFile, path)
    assert found.keys() == expected.keys()
    for key in found:
        assert_same_bits(found[key], expected[key])
    with TorchFile(path) as file:
        others = [key for key, stored in file.arrays.items() if stored.dtype == "object"]
        assert sorted(others) == sorted(SPECIAL + ["float8"] * name.startswith("zip"))
        assert file.arrays["bfloat16"] == ((3, 4), "bfloat16") and file.wrapper is None
        with pytest.raises(CheckpointError, match="sparse is no array"):
            file.read("sparse")


@pytest.mark.parametrize("name", ["torch_training.pth.tar", "torch_training_without_sums.pth"])
def test_a_training_checkpoint_of_timm(name):
    """The moving average is preferred; the optimizer and the settings stay unknown."""
    expected = dict(np.load(FILES / "torch_training.npz"))
    found = read_all(TorchFile, FILES / name)
    assert found.keys() == expected.keys() and found["1.num_batches_tracked"].dtype == "int64"
    for key in found:
        assert_same_bits(found[key], 2 * expected[key])
    with TorchFile(FILES / name) as file:
        assert file.wrapper == "state_dict_ema"


def test_a_whole_module_is_refused():
    with pytest.raises(CheckpointError, match=r"container\.Sequential without.*state_dict\(\)"):
        TorchFile(FILES / "torch_module.pth")


# --- Tensors ------------------------------------------------------------------------------------


@formats
def test_views(write, tmp_path):
    """Transposed, sliced, shared and empty ones."""
    whole = np.arange(60, dtype=np.float32).reshape(10, 6)
    storage = Storage(whole)
    parameter = Named("torch._utils", "_rebuild_parameter")
    arrays = {
        "whole": tensor(whole, storage),
        "transposed": tensor(whole, storage, 0, (6, 10), (1, 6)),
        "sliced": tensor(whole, storage, 13, (3, 3), (6, 1)),
        "column": tensor(whole, storage, 2, (10,), (6,)),
        "last": tensor(whole, storage, 59, (), ()),
        "empty": tensor(np.zeros((0, 4), np.float32)),
        "empty_end": tensor(whole, storage, 60, (0, 6), (6, 1)),
        "parameter": Called(parameter, tensor(whole, storage), True, OrderedDict()),
    }
    found = read_all(TorchFile, write(tmp_path / "a.pth", arrays))
    assert list(found) == list(arrays)
    for name, expected in (
        ("whole", whole),
        ("transposed", whole.T),
        ("sliced", whole[2:5, 1:4]),
        ("column", whole[:, 2]),
        ("last", whole[9, 5]),
        ("empty", whole[:0, :4]),
        ("empty_end", whole[:0]),
        ("parameter", whole),
    ):
        assert found[name].shape == expected.shape
        np.testing.assert_array_equal(found[name], expected)


@formats
@pytest.mark.parametrize("dtype", pickles.STORAGES)
def test_dtypes(write, dtype, tmp_path):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    found = read_all(TorchFile, write(tmp_path / "a.pth", {"x": tensor(values)}))
    assert_same_bits(found["x"], values)


@formats
def test_bfloat16_becomes_float32(write, tmp_path):
    expected = np.float32([1, -2.5, 0, np.inf])
    half = (expected.view(np.uint32) >> 16).astype(np.uint16)
    none = half[:0]
    values = {
        name: tensor(part, Storage(part, "BFloat16")) for name, part in (("x", half), ("y", none))
    }
    found = read_all(TorchFile, write(tmp_path / "a.pth", values))
    assert_same_bits(found["x"], expected)
    assert_same_bits(found["y"], expected[:0])


@formats
def test_a_model(write, tmp_path):
    """A network in timm's names, saved by DataParallel, and by the authors' loop."""
    arrays = arrays_of(14, 1, 10, 0)
    state = {
        f"module.{names.timm_name(key)}": tensor(
            array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array
        )
        for key, array in arrays.items()
    }
    path = write(tmp_path / "a.pth.tar", {"step": 3, "model": state, "optim": {"lr": 0.1}})
    with CheckpointFile(path) as file:
        file.check(file.architecture(), 10)
        assert file.shapes.keys() == arrays.keys()
        for key, array in arrays.items():
            assert_same_bits(file.array(key), array)


@formats
@pytest.mark.parametrize("kind, dtype", [("QInt32", "int32"), ("QUInt8", "uint8")])
def test_quantized_storages_before_others(write, kind, dtype, tmp_path):
    """Their length counts where the next storage begins, in the older format."""
    function = Named("torch._utils", "_rebuild_qtensor")
    quantized = Called(function, Storage(np.zeros(30, dtype), kind), 0, (30,), (1,))
    path = write(tmp_path / "a.pth", {"v": quantized, "w": tensor(np.float32([5, 6]))})
    with TorchFile(path) as file:
        assert file.arrays["v"].dtype == "object"
        np.testing.assert_array_equal(file.read("w"), [5, 6])


# --- Which dictionary ---------------------------------------------------------------------------

ONE, TWO = {"w": tensor(np.float32([1]))}, {"w": tensor(np.float32([2]))}


@formats
@pytest.mark.parametrize(
    "value, wrapper",
    [
        (ONE, None),
        ({"step": 3, "model": ONE, "optim": {"state": {0: TWO}}}, "model"),
        ({"state_dict": TWO, "state_dict_ema": ONE}, "state_dict_ema"),
        ({"state_dict": TWO, "model_ema": ONE}, "model_ema"),
        ({"state_dict": ONE, "state_dict_ema": None}, "state_dict"),
        ({"model": {"depth": 50}, "model_state_dict": ONE}, "model_state_dict"),
        ({"params": {"rate": 0.1}, "network": ONE, "loss": tensor(2.0)}, "network"),
        ({"model": {"state_dict": ONE}}, "model.state_dict"),
        ({"module": {"module.w": ONE["w"]}}, "module"),
        ({"module._orig_mod.model.w": ONE["w"]}, None),
        ({**ONE, "epoch": 3, "names": ["a"]}, None),
        (OrderedDict(ONE), None),
    ],
)
def test_wrappers_and_prefixes(write, value, wrapper, tmp_path):
    with TorchFile(write(tmp_path / "a.pth", value)) as file:
        assert file.wrapper == wrapper
        assert file.arrays == {"w": ((1,), "float32")}
        assert file.read("w") == 1


def test_prefixes_stay_unless_all_names_share_them(tmp_path):
    with TorchFile(write_zip(tmp_path / "a.pth", {"module.w": ONE["w"], "w": TWO["w"]})) as file:
        assert list(file.arrays) == ["module.w", "w"]


def test_state_dict_of_python_2(tmp_path):
    """It writes an OrderedDict as a list of lists, and texts as byte strings."""
    index = pickles.pickled(Called(Named("collections", "OrderedDict"), [["w", ONE["w"]]]))[0]
    index = index.replace(b"X\x01\x00\x00\x00w", b"U\x01w")
    path = write_legacy(tmp_path / "a.pth", ONE, index=index)
    assert read_all(TorchFile, path)["w"] == 1


# --- Files that are refused, with a reason ------------------------------------------------------


def test_torchscript_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.pt", ONE, extra={"constants.pkl": b"", "code/net.py": b""})
    assert TorchFile.matches(path)
    with pytest.raises(CheckpointError, match=r"TorchScript.*torch\.jit\.load"):
        TorchFile(path)


def test_the_oldest_format_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name))
    assert TorchFile.matches(path)
    with pytest.raises(CheckpointError, match=r"before 0\.1\.10"):
        TorchFile(path)


def test_big_endian_is_refused(tmp_path):
    for path in (
        write_zip(tmp_path / "a.pth", ONE, extra={"byteorder": b"big"}),
        write_legacy(tmp_path / "b.pth", ONE, little=False),
    ):
        with pytest.raises(CheckpointError, match=r"byte order|little-endian"):
            TorchFile(path)


@formats
@pytest.mark.parametrize("value", [{}, [1], 3, "text", {"w": 3}, ONE["w"], {"a": {"b": ONE}}])
def test_no_state_dict(write, value, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a state dict.*torch\.save"):
        TorchFile(write(tmp_path / "a.pth", value))


def test_matches_by_content(tmp_path):
    np.savez(tmp_path / "a.pth", w=np.ones(2))
    (tmp_path / "b.pth").write_bytes(b"")
    (tmp_path / "c.pth").write_bytes(pickle.dumps({"w": 1}, 2))
    (tmp_path / "d.pth").write_bytes(b"PK\3\4 and no more")
    with tarfile.open(tmp_path / "e.pth.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("images"))
    assert not any(TorchFile.matches(path) for path in tmp_path.iterdir())
    for write in (write_zip, write_legacy):
        assert TorchFile.matches(write(tmp_path / "x.npz", ONE))
        (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
        assert TorchFile.matches(tmp_path / "x.npz")  # cut short, and still PyTorch's


# --- Hostile files ------------------------------------------------------------------------------


@pytest.fixture
def marker(tmp_path):
    """A file that must not appear."""
    copyreg.add_extension("os", "system", 0xF0)
    yield tmp_path / "marker"
    copyreg.remove_extension("os", "system", 0xF0)


OPCODES = list(attacks("marker"))


@pytest.mark.parametrize("opcode", OPCODES)
def test_the_attacks_are_real(opcode, marker):
    pickle.loads(attacks(marker)[opcode])
    assert marker.exists()


@formats
@pytest.mark.parametrize("opcode", OPCODES)
def test_nothing_runs(write, opcode, marker, tmp_path):
    """Neither alone nor beside weights, which are read."""
    attack = attacks(marker)[opcode]
    path = write(tmp_path / "a.pth", ONE, index=attack)
    assert survives(TorchFile, path) != "read"
    start = pickles.pickled(ONE)[0][:-1]  # a dictionary, without the STOP
    start += b"X\x01\x00\x00\x00v" + attack[:-1] + b"s."
    path = write(tmp_path / "a.pth", ONE, index=start)
    with TorchFile(path) as file:
        assert file.arrays["v"].dtype == "object" and file.read("w") == 1
    assert not marker.exists()


def test_nothing_runs_in_the_small_pickles(marker, tmp_path):
    """The older format has four more of them."""
    content = write_legacy(tmp_path / "a.pth", ONE).read_bytes()
    for part in (pickle.dumps(pickles.MAGIC, 2), pickle.dumps(1001, 2), pickle.dumps(["0"], 2)):
        for attack in attacks(marker).values():
            (tmp_path / "b.pth").write_bytes(content.replace(part, attack))
            assert survives(TorchFile, tmp_path / "b.pth") != "read"
    assert not marker.exists()


@formats
@pytest.mark.parametrize(
    "reference",
    [b"N", b")", b"X\1\0\0\0x", b"(K\1K\2t", b"]", LAUGHS, b"(X\7\0\0\0storage" + LAUGHS + b"t",
     b"(X\7\0\0\0storagectorch\nFloatStorage\n" + LAUGHS + b"NK\1t",
     b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000NX\1\0\0\0001t"],
)  # fmt: skip
def test_odd_references(write, reference, tmp_path):
    path = write(tmp_path / "a.pth", ONE, index=b"\x80\x02" + reference + b"Q.")
    assert survives(TorchFile, path) != "read"


@formats
@pytest.mark.parametrize(
    "liar, reason",
    [
        (tensor(0, Storage(np.float32([1]), claimed=2**40), 0, (2**30,)), "bytes are stored"),
        (tensor(0, Storage(np.float32([1])), 0, (2**30,), (0,)), "bytes are stored"),
        (tensor(0, Storage(np.float32([1])), 1, (1,)), "bytes are stored"),
        (tensor(0, Storage(np.float32([1])), -1, (1,)), "a size"),
        (tensor(0, Storage(np.float32([1])), 0, (1,), (-1,)), "a size"),
        (tensor(0, Storage(np.float32([1])), 0, (2**62,)), "a size"),
        (tensor(0, Storage(np.float32([1])), 0, (2**61,) * 9), "bytes are stored"),
        (tensor(0, Storage(np.float32([1, 2]), claimed=1), 0, (2,)), "bytes are stored"),
        (tensor(0, Storage(np.float32([1])), 0, (1,) * 40), "shape"),
        (tensor(0, Storage(np.float32([1])), 0, (1, 1), (1,)), "stride"),
        (tensor(0, Storage(np.float32([1])), 0, [1], (1,)), "shape"),
        (tensor(0, Storage(np.float32([1])), 0, (True,), (1,)), "a size"),
        (tensor(0, Storage(np.float32([1])), 0, (0, 2**61), (2**61, 1)), None),
    ],
)
def test_claimed_sizes(write, liar, reason, tmp_path):
    outcome = survives(TorchFile, write(tmp_path / "a.pth", {"w": liar}), megabytes=1)
    assert reason in outcome if reason else True


def test_a_storage_that_is_missing(tmp_path):
    index = pickles.pickled(ONE)[0]
    assert "storage is missing" in survives(TorchFile, write_zip(tmp_path / "a.pth", 0, index))
    assert "storage is missing" in survives(TorchFile, write_legacy(tmp_path / "a.pth", 0, index))


def test_zip_bombs(tmp_path, monkeypatch):
    large = {"w": tensor(np.zeros(2**23, np.float32))}  # 32 MB, of which deflate makes 32 kB
    path = write_zip(tmp_path / "a.pth", large, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "compressed or encrypted" in survives(TorchFile, path)
    index = pickles.pickled(large)[0]
    with zipfile.ZipFile(path, "w") as archive:  # members that share their bytes
        archive.writestr("a/data.pkl", index)
        for key in range(3):
            archive.writestr(f"a/data/{key}", bytes(10_000))
        for key in range(1, 500):
            info = copy.copy(archive.getinfo("a/data/0"))
            info.filename = f"a/data/{key + 3}"
            archive.filelist.append(info)
    assert "larger than the file" in survives(TorchFile, path)
    monkeypatch.setattr(torch_files, "_LONGEST_PICKLE", 50)
    assert "data.pkl has" in survives(TorchFile, write_zip(path, ONE))


def test_paths_that_leave_the_archive(tmp_path):
    """Members are never written to the disk, whatever their names are."""
    storage = Storage(np.float32([5]))
    storage.key = "../../../x"
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    for write in (write_zip, write_legacy):
        path = write(folder / "a.pth", {"w": tensor(5, storage, shape=(1,))})
        assert read_all(TorchFile, path)["w"] == 5
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "a.pth"]


def test_a_changed_array_is_noticed(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"w": tensor(np.full(1000, 7, np.float32))})
    content = path.read_bytes()
    path.write_bytes(content.replace(np.float32(7).tobytes() * 9, np.float32(8).tobytes() * 9, 1))
    with pytest.raises(CheckpointError, match="w is damaged.*checksum"):
        read_all(TorchFile, path)


@pytest.mark.parametrize("name", DEEP)
def test_deep_nesting(name, tmp_path):
    path = write_zip(tmp_path / "a.pth", ONE, index=DEEP[name])
    assert survives(TorchFile, path, megabytes=20) != "read"


@formats
@pytest.mark.parametrize(
    "index",
    [
        b"}" + LAUGHS + b"K\1s.",
        LAUGHS + b".",
        b"ccollections\nOrderedDict\n]" + LAUGHS + b"K\1\x86a\x85R.",
        b"}(X\5\0\0\0model" + LAUGHS + b"X\1\0\0\0w" + LAUGHS + b"u.",
        b"ctorch._utils\n_rebuild_tensor_v2\n" + LAUGHS + b"R.",
        b"ctorch._utils\n_rebuild_tensor\n(" + LAUGHS + LAUGHS + LAUGHS + LAUGHS + b"tR.",
        b"cnumpy\ndtype\nX\2\0\0\0f4\x85R(K\3" + LAUGHS + b"tb.",
        b"cnumpy\ndtype\n" + LAUGHS + b"\x85R.",
        b"c_codecs\nencode\n" + LAUGHS + LAUGHS + b"\x86R.",
    ],
)
def test_billion_laughs(write, index, tmp_path):
    """A value that would take for ever to hash, to compare, to count or to print."""
    path = write(tmp_path / "a.pth", ONE, index=b"\x80\x02" + index)
    assert survives(TorchFile, path, seconds=5) != "read"


@formats
def test_cycles(write, tmp_path):
    cycle = {"w": ONE["w"]}
    cycle["model"] = cycle
    with TorchFile(write(tmp_path / "a.pth", cycle)) as file:
        assert file.read("w") == 1
    cycle = {"params": {}}
    for name in ("model", "state_dict", "module"):
        cycle[name] = cycle["params"][name] = cycle
    assert "expected a state dict" in survives(TorchFile, write(tmp_path / "a.pth", cycle))


@pytest.mark.parametrize(
    "loop",
    [
        b"(ccollections\nOrderedDict\nh\1\x85R0",  # copies a long list
        b"h\2h\2\x93",  # joins long names
        b"(ctorch._utils\n_rebuild_parameter\nh\3R0",  # spreads a long tuple
        b"]",
        b"}",
        b"(",
    ],
)
def test_small_files_make_no_large_values(loop, tmp_path, monkeypatch):
    """A step needs 200 bytes at most."""
    monkeypatch.setattr(pickled, "MOST_STEPS", 100_000)
    pairs = b"](" + b"](X\1\0\0\0wNe" * 2000 + b"eq\1"
    start = b"\x80\x04" + pairs + b"X\0\4\0\0" + b"n" * 1024 + b"q\2(" + b"N" * 9000 + b"tq\3"
    path = write_zip(tmp_path / "a.pth", ONE, index=start + loop * 100_000 + b".")
    assert "steps" in survives(TorchFile, path, megabytes=24)


@formats
def test_other_limits(write, tmp_path, monkeypatch):
    for index in (
        b"L" + b"9" * 100_000 + b"L\n.",
        b"\x8b" + (2000).to_bytes(4, "little") + bytes(2000) + b".",
        b"\x8e" + (2**62).to_bytes(8, "little") + b"x.",
        b"X" + (2**32 - 1).to_bytes(4, "little") + b"x.",
        b"Np" + b"9" * 40 + b"\n.",
        b"Nr\xff\xff\xff\xffh\0.",
        b"\x97.",
        b"a.", b"0.", b"t.", b"s.", b"u.", b"\x87.", b"R.", b"b.", b"\x93.", b"N", b"",
    ):  # fmt: skip
        path = write(tmp_path / "a.pth", ONE, index=index)
        assert "damaged" in survives(TorchFile, path, megabytes=1)
    monkeypatch.setattr(pickled, "MOST_STEPS", 5)
    assert "more than 5 steps" in survives(TorchFile, write(tmp_path / "a.pth", ONE))


@formats
def test_cut_short_at_every_length(write, tmp_path):
    content = write(tmp_path / "a.pth", {**ONE, "v": tensor(np.zeros((2, 3)))}).read_bytes()
    for length in range(len(content)):
        (tmp_path / "b.pth").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="b.pth"):
            read_all(TorchFile, tmp_path / "b.pth")


@pytest.mark.slow
@pytest.mark.weekly
@pytest.mark.parametrize("name", ["torch_zip2.pth", "torch_stream2.pth", "torch_training.pth.tar"])
def test_500_mutations(name, tmp_path):
    outcomes = []
    for content in mutations((FILES / name).read_bytes(), 500, 0):
        (tmp_path / "a.pth").write_bytes(content)
        outcomes.append(survives(TorchFile, tmp_path / "a.pth"))
        TorchFile.matches(tmp_path / "a.pth")
    assert 0 < outcomes.count("read") < 450  # some damage is in numbers, or does not matter
