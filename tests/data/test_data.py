"""Readers, few-shot subsets, transforms and the loader."""

import functools
import hashlib
import http.server
import io
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, SHARED
from PIL import Image

from bit_paddle.data import fewshot, loader, transforms
from bit_paddle.data.images import ArrayImages, FileImages
from bit_paddle.data.preprocessing import FILTERS, Preprocessing
from bit_paddle.data.readers import cifar, members, registry
from bit_paddle.errors import ConfigError, DataError, DownloadError, MissingFileError
from bit_paddle.recipes.hyperrule import Resolution

# --- CIFAR: small archives in exactly the official structure ------------------------------------


def write_cifar(path, name, per_batch=4, **changes):
    """Write an official-looking archive; return {part: (pixels [N, H, W, 3], labels)}."""
    layout = cifar.LAYOUTS[name]
    random = np.random.default_rng(0)
    classes = 10 if name == "cifar10" else 100
    members = {layout.meta: {layout.names: [f"class {k}".encode() for k in range(classes)]}}
    expected = {}
    for part, names in (("train", layout.train), ("val", layout.val)):
        pixels = random.integers(0, 256, (len(names), per_batch, 3, 32, 32)).astype(np.uint8)
        labels = random.integers(0, classes, (len(names), per_batch))
        for member, some, theirs in zip(names, pixels, labels):
            members[member] = {
                b"data": some.reshape(per_batch, 3072),
                layout.labels: theirs.tolist(),
                b"filenames": [b"x.png"] * per_batch,
                b"batch_label": member.encode(),
            }
            if name == "cifar100":
                members[member][b"coarse_labels"] = [0] * per_batch
        expected[part] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.ravel()
    for member, content in changes.items():
        if content is None:
            del members[member]
        else:
            members[member] = (
                {**members[member], **content} if isinstance(content, dict) else content
            )
    with tarfile.open(path / layout.archive, "w:gz") as archive:
        for member, content in members.items():
            blob = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"{layout.folder}/{member}")
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))
    return expected


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("where", ["archive", "folder", "in the folder", "the archive itself"])
def test_cifar(name, where, tmp_path):
    expected = write_cifar(tmp_path, name)
    layout = cifar.LAYOUTS[name]
    datadir = tmp_path
    if where in ("folder", "in the folder"):
        shutil.unpack_archive(tmp_path / layout.archive, tmp_path / "unpacked")
        datadir = tmp_path / "unpacked" / (layout.folder if where == "in the folder" else "")
    elif where == "the archive itself":
        datadir = tmp_path / layout.archive
    dataset = registry.open_dataset(name, str(datadir))
    for images, part in zip(dataset, ("train", "val")):
        pixels, labels = expected[part]
        assert np.array_equal(images.labels, labels) and images.labels.dtype == np.int64
        assert len(images) == len(labels)
        assert np.array_equal(np.asarray(images.image(1)), pixels[1])
        assert images.size(0) == (32, 32)
        assert images.classes[:2] == ["class 0", "class 1"]


class Evil:
    def __reduce__(self):
        return print, ("code from the archive ran",)


class TooFar:
    """An array that begins at a byte which no address reaches: an ArithmeticError of NumPy."""

    def __reduce__(self):
        return np.ndarray, ((1,), "u1", b"x", 1 << 70)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"test_batch": None}, "missing test_batch"),
        ({"test_batch": {b"labels": [0, 1, 2, 10]}}, r"label.* outside 0 … 9.* is 10, of image 3"),
        ({"test_batch": {b"labels": [0]}}, "4 images, but 1 labels"),
        ({"data_batch_2": {b"data": np.zeros((4, 3071), np.uint8)}}, r"expected uint8 \[N, 3072\]"),
        ({"data_batch_2": {b"data": Evil()}}, "refers to .*print"),
        (
            {"data_batch_2": {b"data": TooFar()}},
            "is damaged or not CIFAR's .*convert",
        ),
        ({"batches.meta": {b"label_names": [b"a", 5]}}, "batches.meta names no classes"),
        ({"batches.meta": ["a list"]}, "holds a list, expected a dictionary"),
        ({"data_batch_1": {b"data": None}}, "expected uint8"),
    ],
)
def test_cifar_faults(changes, words, tmp_path, capsys):
    write_cifar(tmp_path, "cifar10", **changes)
    with pytest.raises(DataError, match=words):
        registry.open_dataset("cifar10", str(tmp_path))
    assert "code from the archive" not in capsys.readouterr().out


def test_cifar_in_its_real_size(tmp_path, monkeypatch):
    """A batch is larger than what may be read of an archive at once: here 1.2 MB of 1."""
    monkeypatch.setattr(members, "_LARGEST_READ", 1 << 20)
    write_cifar(tmp_path, "cifar10", per_batch=400)
    assert len(registry.open_dataset("cifar10", str(tmp_path)).train) == 2000


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_downloaded_from_where_paddle_has_it(name):
    from paddle.vision.datasets import cifar as paddle_cifar

    number = name[len("cifar") :]
    assert cifar.URL + cifar.LAYOUTS[name].archive == getattr(paddle_cifar, f"CIFAR{number}_URL")
    assert cifar.LAYOUTS[name].md5 == getattr(paddle_cifar, f"CIFAR{number}_MD5")


def test_cifar_is_downloaded_into_the_cache_once(tmp_path, monkeypatch):
    """From a real server, checked by md5, and found there by the next run."""
    published = tmp_path / "published"
    published.mkdir()
    write_cifar(published, "cifar10")
    archive = published / cifar.LAYOUTS["cifar10"].archive
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=published)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{server.server_port}/")
    with pytest.raises(DownloadError, match="md5"):
        registry.open_dataset("cifar10")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", cifar.LAYOUTS["cifar10"]._replace(md5=digest))
    assert len(registry.open_dataset("cifar10").train) == 20
    server.shutdown()
    server.server_close()
    assert len(registry.open_dataset("cifar10").train) == 20


def test_cifar_without_label_names(tmp_path):
    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-python.tar.gz").rename(tmp_path / "cifar-100-python.tar.gz")
    with pytest.raises(DataError, match="missing meta"):
        registry.open_dataset("cifar100", str(tmp_path))


def test_cifar_archive_cut_short(tmp_path):
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot be read as a .tar.gz"):
        registry.open_dataset("cifar10", str(tmp_path))


def test_cifar_datadir_without_cifar(tmp_path):
    with pytest.raises(MissingFileError, match="holds neither cifar-10-python.tar.gz"):
        registry.open_dataset("cifar10", str(tmp_path))


@pytest.mark.skipif(
    not (SHARED / "data" / "make_cifar10.py").exists(), reason="needs ../shared/data"
)
def test_real_cifar10_images(tmp_path):
    subprocess.run(
        [sys.executable, SHARED / "data" / "make_cifar10.py", tmp_path, "--per-class", "10"],
        check=True,
    )
    train, val = registry.open_dataset("cifar10", str(tmp_path))[:2]
    assert (len(train), len(val)) == (100, 20)
    assert np.bincount(train.labels).tolist() == [10] * 10
    assert train.classes[0] == "airplane" and train.classes[9] == "truck"
    assert 20 < np.asarray(train.image(0)).std() < 110  # a photograph, not noise and not blank


# --- Digits and folders -------------------------------------------------------------------------


def test_digits():
    pytest.importorskip("sklearn")
    train, val = registry.open_dataset("digits")[:2]
    assert (len(train), len(val)) == (1442, 355)
    assert train.classes == [str(k) for k in range(10)] and train.size(0) == (8, 8)
    assert train.pixels.max() == 255 and set(np.bincount(val.labels)) <= {34, 35, 36}
    assert not {some.tobytes() for some in train.pixels} & {some.tobytes() for some in val.pixels}


def test_digits_are_those_that_scikit_learn_loads():
    loaded = pytest.importorskip("sklearn.datasets").load_digits()
    train, val = registry.open_dataset("digits")[:2]
    held_out = np.zeros(len(loaded.target), bool)
    for label in range(10):
        held_out[np.flatnonzero(loaded.target == label)[4::5]] = True
    grey = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    for part, chosen in ((train, ~held_out), (val, held_out)):
        assert np.array_equal(part.pixels, np.stack([grey[chosen]] * 3, axis=-1))
        assert np.array_equal(part.labels, loaded.target[chosen])


def test_digits_without_scikit_learn(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match="needs scikit-learn, which is not installed"):
        registry.open_dataset("digits")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "sklearn", SimpleNamespace(__spec__=spec))
    with pytest.raises(ConfigError, match=r"digits\.csv\.gz"):
        registry.open_dataset("digits")


def test_folder(image_folder):
    train, val = registry.open_dataset("folder", str(image_folder))[:2]
    assert (len(train), len(val)) == (36, 15) and train.classes == val.classes == [
        "amber",
        "blue",
        "coral",
    ]
    assert train.labels.tolist() == sorted(train.labels.tolist())
    assert train.size(0) == (40, 50) and train.image(0).mode == "RGB"
    assert train.name(0).endswith("train/amber/0.png")
    sizes = registry.sizes(train, np.arange(36))
    assert sizes[0] == (40, 50) and sizes[18] == (46, 50) and sizes[-1] == (51, 50)


@pytest.fixture
def copied_folder(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "images")
    return tmp_path / "images"


def test_folder_ignores_what_is_no_image(copied_folder):
    (copied_folder / "train" / "amber" / "notes.txt").write_text("x")
    (copied_folder / "train" / "amber" / ".0.png").write_text("x")
    (copied_folder / "train" / ".cache").mkdir()
    (copied_folder / "train" / "amber" / "0.png").rename(
        copied_folder / "train" / "amber" / "0.PNG"
    )
    assert len(registry.open_dataset("folder", str(copied_folder)).train) == 36


@pytest.mark.parametrize("content", [b"", b"not an image", "cut"])
def test_broken_image_is_named(content, copied_folder):
    path = copied_folder / "train" / "amber" / "0.png"
    path.write_bytes(path.read_bytes()[:2000] if content == "cut" else content)
    train = registry.open_dataset("folder", str(copied_folder)).train
    with pytest.raises(DataError, match="amber/0.png"):
        train.image(0)


def test_sixteen_bits_keep_their_range(tmp_path):
    """0 … 65535 becomes 0 … 255; Pillow alone would clip all above 255."""
    ramp = np.linspace(0, 65535, 256 * 4).reshape(4, 256).round().astype(np.uint16)
    for suffix in ("png", "tiff"):
        Image.fromarray(ramp).save(tmp_path / f"x.{suffix}")
        found = np.asarray(FileImages([str(tmp_path / f"x.{suffix}")], [0], ["a"]).image(0))
        assert found.shape == (4, 256, 3)
        assert np.array_equal(found[..., 0], np.round(ramp / 257).astype(np.uint8))


def test_pixels_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match="x.tiff.*no known range"):
        FileImages([str(tmp_path / "x.tiff")], [0], ["a"]).image(0)


def test_unknown_dataset():
    with pytest.raises(ConfigError, match="did you mean cifar100 or cifar10"):
        registry.open_dataset("cifar_100")


# --- Few-shot -----------------------------------------------------------------------------------


def test_fewshot_is_balanced_and_depends_on_its_seed():
    labels = np.random.default_rng(0).integers(0, 5, 200)
    classes = list("abcde")
    chosen = fewshot.select(labels, 7, 0, classes)
    assert np.bincount(labels[chosen]).tolist() == [7] * 5
    assert len(set(chosen)) == 35 and (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, fewshot.select(labels, 7, 0, classes))
    assert not np.array_equal(chosen, fewshot.select(labels, 7, 1, classes))


def test_fewshot_of_too_few():
    with pytest.raises(DataError, match="b has 1, c has 0; the largest possible number is 0"):
        fewshot.select(np.array([0, 0, 1]), 2, 0, ["a", "b", "c"])


# --- Transforms ---------------------------------------------------------------------------------


def test_scaling_to_the_network_is_exact():
    """x / 127.5 - 1 as NumPy divides, in float32, on every version of Paddle."""
    from bit_paddle.system import device

    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    found = device.to_device(pixels).numpy()
    assert found.dtype == np.float32
    assert np.array_equal(found, pixels / np.float32(127.5) - np.float32(1))


# --- The loader ---------------------------------------------------------------------------------


@pytest.fixture
def noise():
    random = np.random.default_rng(0)
    return ArrayImages(
        random.integers(0, 256, (23, 8, 8, 3)).astype(np.uint8),
        random.integers(0, 3, 23),
        list("abc"),
        "noise",
    )


def steps_of(
    images, count, workers=0, batch=6, split=3, seed=0, subset=None, resolution=(10, 8), **more
):
    subset = np.arange(len(images)) if subset is None else subset
    batches = loader.training_batches(
        images, subset, Resolution(*resolution), batch, seed, workers, **more
    )
    return [list(next(batches).micro_batches(split)) for _ in range(count)]


def flat(steps):
    return [
        np.concatenate([getattr(part, name) for part in step])
        for step in steps
        for name in ("images", "labels", "indices")
    ]


def test_every_image_once_an_epoch(noise):
    """23 images in batches of 6: three full ones and one of 5, in parts as equal as can be."""
    steps = steps_of(noise, 8)
    assert [[len(part.labels) for part in step] for step in steps[:4]] == [[2, 2, 2]] * 3 + [
        [2, 2, 1]
    ]
    for epoch in (steps[:4], steps[4:]):
        assert sorted(np.concatenate(flat(epoch)[2::3])) == list(range(23))
    assert not np.array_equal(flat(steps[:1])[2], flat(steps[4:5])[2])
    for step in steps:
        for part in step:
            assert np.array_equal(part.labels, noise.labels[part.indices])
            assert part.images.dtype == np.uint8 and part.images.shape[1:] == (3, 8, 8)


def test_a_last_batch_smaller_than_the_split(noise):
    steps = steps_of(noise, 2, batch=22, split=11)
    assert [len(step) for step in steps] == [11, 1]


def test_the_data_do_not_depend_on_workers_split_or_start(noise):
    plain = flat(steps_of(noise, 9))
    for other in (
        steps_of(noise, 9, workers=1),
        steps_of(noise, 9, workers=4),
        steps_of(noise, 9, split=1),
        steps_of(noise, 9, split=6, workers=2),
        steps_of(noise, 9, workers=2, memory=23 * 3 * 10 * 10),  # kept from the second epoch on
    ):
        assert all(np.array_equal(a, b) for a, b in zip(plain, flat(other)))
    resumed = flat(steps_of(noise, 4, start=5, workers=2))
    assert all(np.array_equal(a, b) for a, b in zip(plain[15:], resumed))
    assert not np.array_equal(plain[0], flat(steps_of(noise, 1, seed=1))[0])


SHARE = """
import hashlib, sys
import numpy as np
from bit_paddle.data import loader
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.readers import registry
from bit_paddle.recipes.hyperrule import Resolution
images = registry.open_dataset("folder", sys.argv[1]).train
rank, world_size = map(int, sys.argv[2:4])
batches = loader.training_batches(
    images, np.arange(len(images)), Resolution(40, 32), 10, 3, 2, True, 0.5, rank=rank,
    world_size=world_size
)
for _ in range(6):
    batch = next(batches)
    for part in batch.micro_batches(2):
        for k, index in enumerate(part.indices):
            pixels = part.images[k].tobytes() + part.partner_images[k].tobytes()
            print(index, part.partner_labels[k], hashlib.sha1(pixels).hexdigest(), batch.lam)
    print("step")
print("evaluation")
view = Preprocessing(32)
for part in loader.evaluation_batches(images, view, 5, 1, rank=rank, world_size=world_size):
    print(*part.indices, hashlib.sha1(part.images.tobytes()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 12])
def test_the_data_do_not_depend_on_the_number_of_processes(world_size, image_folder):
    """Each in a process of its own: put together, their shares are the batches of one."""

    def shares(count):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", SHARE, str(image_folder), str(rank), str(count)],
                stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )
            for rank in range(count)
        ]  # fmt: skip
        texts = [process.communicate(timeout=60)[0].split("evaluation\n") for process in started]
        steps = zip(*(text[0].split("step\n") for text in texts))
        seen = [int(word) for text in texts for line in text[1].splitlines()
                for word in line.split()[:-1]]  # fmt: skip
        return ["".join(parts) for parts in steps], seen

    alone, every = shares(1)
    assert len(alone) == 7 and len(alone[0].splitlines()) == 10 and every == list(range(36))
    assert shares(world_size) == (alone, every)


def test_partners_are_a_permutation_of_the_whole_batch(noise):
    """Whatever the split: each image is once itself and once a partner, with its own view."""
    batches = loader.training_batches(
        noise, np.arange(23), Resolution(10, 8), 6, 0, 2, mixup_alpha=0.5
    )
    lams = set()
    for _ in range(4):
        batch = next(batches)
        parts = list(batch.micro_batches(3))
        images, partners = (
            sorted((view.tobytes(), int(label)) for part in parts for view, label in zip(*of(part)))
            for of in (lambda one: one[:2], lambda one: one[3:])
        )
        assert images == partners and 0 <= batch.lam <= 1
        lams.add(batch.lam)
    assert len(lams) == 4


def test_fewer_images_than_the_batch_are_sampled_with_replacement(noise):
    steps = steps_of(noise, 200, batch=8, split=2, subset=np.array([3, 5, 7]))
    counts = np.bincount(np.concatenate(flat(steps)[2::3]), minlength=23)
    assert all(sum(len(part.labels) for part in step) == 8 for step in steps)
    assert set(np.flatnonzero(counts)) == {3, 5, 7}
    assert abs(counts[[3, 5, 7]] - 1600 / 3).max() < 5 * np.sqrt(
        1600 * 2 / 9
    )  # five standard deviations


def test_crops_and_flips_are_uniform():
    """Over a picture whose pixels tell where they come from."""
    ramp = np.zeros((1, 10, 10, 3), np.uint8)
    ramp[0, ..., 0] = np.arange(10)[:, None]
    ramp[0, ..., 1] = np.arange(10)[None, :]
    images = ArrayImages(ramp, [0], ["a"], "ramp")
    views = np.concatenate(
        [part.images for step in steps_of(images, 50, batch=36, split=1) for part in step]
    )
    tops, lefts = views[:, 0, 0, 0], views[:, 1].min(axis=(1, 2))
    flips = views[:, 1, 0, 0] > views[:, 1, 0, -1]
    n = len(views)
    for values in (tops, lefts):  # 0, 1, 2 for 10 -> 8
        assert np.abs(np.bincount(values, minlength=3) - n / 3).max() < 5 * np.sqrt(n * 2 / 9)
    assert abs(flips.sum() - n / 2) < 5 * np.sqrt(n / 4)


def test_no_flip_and_no_crop(noise):
    """What remains is the resized image, as validation has it."""
    (step,) = steps_of(noise, 1, batch=23, split=1, flip=False, resolution=(16, 16))
    whole = next(loader.evaluation_batches(noise, Preprocessing(16), 23, 0)).images
    assert np.array_equal(step[0].images, whole[step[0].indices])


class Pictures:
    """Images of any sizes, without a class."""

    def __init__(self, pictures):
        self.pictures, self.labels = pictures, np.zeros(len(pictures), np.int64)

    def __len__(self):
        return len(self.pictures)

    def image(self, index):
        return Image.fromarray(self.pictures[index])


class Decoded:
    """The same images, but each decoded by itself, as files are; ``asked`` lists which."""

    def __init__(self, images):
        self.labels, self.classes, self._images, self.asked = images.labels, "abc", images, []

    def __len__(self):
        return len(self._images)

    def image(self, index):
        self.asked.append(index)
        return self._images.image(index)


@pytest.mark.parametrize("memory, decoded", [(23 * 3 * 100, 23), (23 * 3 * 100 - 1, 46)])
def test_images_are_kept_if_all_fit(noise, memory, decoded, monkeypatch):
    one_by_one = Decoded(noise)
    steps = steps_of(one_by_one, 8, memory=memory)
    assert len(one_by_one.asked) == decoded

    resized, counts = transforms.resized_together, []
    monkeypatch.setattr(
        transforms,
        "resized_together",
        lambda pixels, *more: counts.append(len(pixels)) or resized(pixels, *more),
    )
    transforms.resizes_together(8, 8, (10, 10), "bilinear")  # its own image is not counted
    counts.clear()
    together = steps_of(noise, 8, memory=memory)
    assert sum(counts) == decoded
    alone, joint = list(flat(steps)), list(flat(together))
    assert len(alone) == len(joint) and all(map(np.array_equal, alone, joint))


def test_images_of_a_small_set_are_decoded_once_though_drawn_often(noise):
    images = Decoded(noise)
    steps_of(images, 3, batch=60, memory=1 << 20)
    assert sorted(images.asked) == list(range(23))


# (height, width) in memory, (width, height) resized: enlarged, reduced, one of each, one side, none
SHAPES = [
    *(((32, 32), (160, 160)), ((8, 8), (35, 35)), ((41, 41), (24, 24)), ((62, 27), (121, 50))),
    *(((27, 62), (50, 121)), ((20, 31), (31, 40)), ((20, 31), (40, 20)), ((23, 31), (31, 23))),
]


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("shape, size", SHAPES)
def test_images_in_memory_have_the_pixels_of_pillow(shape, size, filter, monkeypatch):
    """Every one of a number that fills no whole call, whatever the order of its two passes."""
    random = np.random.default_rng(sum(shape))
    monkeypatch.setattr(transforms, "TOGETHER", 7 * 3 * size[0] * size[1])
    pixels = random.integers(0, 256, (19, *shape, 3), np.uint8)
    pixels[1] = np.where(pixels[1] > 127, 255, 0)  # overshoots with lanczos
    images = ArrayImages(pixels, [0] * len(pixels), ["a"], "noise")
    crop, rows = min(size) - 5, random.permutation(len(pixels)).tolist()
    corners = random.integers(0, [side - crop + 1 for side in size], (len(rows), 2)).tolist()
    found = list(transforms.crops(images, rows, lambda k, *_: (size, corners[k]), crop, filter))
    assert len(found) == len(rows)
    for row, (left, top), bands in zip(rows, corners, found):
        whole = Image.fromarray(pixels[row]).resize(size, Image.Resampling[filter.upper()])
        expected = np.asarray(whole.crop((left, top, left + crop, top + crop)))
        assert np.array_equal(np.stack(list(bands), axis=2), expected)


def test_neighbours_of_several_sizes_have_the_pixels_of_pillow():
    """Those of one size are resized together."""
    random = np.random.default_rng(0)
    shapes = [(32, 32), (32, 32), (32, 33), (32, 32), (40, 24), (40, 24), (40, 24), (500, 700)]
    pictures = [random.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    images = Decoded(Pictures(pictures))
    view = Preprocessing(24, 30, "bicubic")
    found = list(
        transforms.crops(
            images, range(8), lambda _, *size: view.geometry(*size), view.crop, view.filter
        )
    )
    assert len(found) == len(pictures)
    for picture, bands in zip(pictures, found):
        expected = transforms.evaluation_view(Image.fromarray(picture), view)
        assert np.array_equal(np.stack(list(bands)), expected)


@pytest.mark.parametrize("height, width, side", [(600, 600, 32), (32, 32, 600)])
def test_large_images_are_held_one_at_a_time(height, width, side):
    images = Decoded(ArrayImages(np.zeros((4, height, width, 3), np.uint8), [0] * 4, "a", "large"))
    found = transforms.crops(images, range(4), lambda *_: ((side, side), (0, 0)), side)
    for count, _ in enumerate(found, start=1):
        assert images.asked == list(range(count))


@pytest.mark.parametrize("side", [32, 160])
def test_square_images_are_resized_together(side):
    assert transforms.resizes_together(32, 32, (side, side), "bilinear")


@pytest.mark.parametrize("workers", [0, 3])
def test_evaluation_covers_every_image_in_order(noise, workers):
    batches = list(loader.evaluation_batches(noise, Preprocessing(8), 5, workers))
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 5, 3]
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(23))
    assert np.array_equal(batches[4].images[2], noise.pixels[22].transpose(2, 0, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_reaches_the_caller(workers, copied_folder):
    (copied_folder / "train" / "blue" / "3.png").write_bytes(b"broken")
    train = registry.open_dataset("folder", str(copied_folder)).train
    with pytest.raises(DataError, match="blue/3.png"):
        steps_of(train, 6, workers=workers)
