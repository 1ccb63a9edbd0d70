"""Data sets of one's own and ImageNet's: folders, lists, their description, and broken files."""

import json
import os
import shutil

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from bit_paddle.config.settings import Settings
from bit_paddle.data import check, names, stamps
from bit_paddle.data import spec as specs
from bit_paddle.data.images import SUFFIXES, FileImages
from bit_paddle.data.readers import folders, listing, registry
from bit_paddle.errors import ConfigError, DataError, MissingFileError
from bit_paddle.training.classification import plan


def write_images(root, *paths, size=(6, 5)):
    """Write a small image of its own colour at each of ``paths``."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number % 256, number // 256, 7)).save(
            root / path, format="PNG" if str(path).lower().endswith("png") else "JPEG"
        )


def names_of(images):
    return [(images.paths[k], images.classes[images.labels[k]]) for k in range(len(images))]


@pytest.fixture
def copied_folder(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "images")
    return tmp_path / "images"


# --- Folders ------------------------------------------------------------------------------------


def test_nested_folders_and_suffixes_of_any_case(tmp_path):
    write_images(
        tmp_path, "train/a/1.JPG", "train/a/deep/er/2.png", "train/b/3.JpEg", "val/b/x/4.png"
    )
    for stray in ("train/a/notes.txt", "train/a/.hidden.png", "train/.cache/5.png"):
        write_images(tmp_path, stray)
    data = registry.open_dataset("folder", str(tmp_path))
    train, val = data[:2]
    assert names_of(train) == [("a/1.JPG", "a"), ("a/deep/er/2.png", "a"), ("b/3.JpEg", "b")]
    assert names_of(val) == [("b/x/4.png", "b")]
    write_images(tmp_path, "train/a/5.xcf", "train/a/deep/6", "val/b/7.XCF", "train/about.md")
    for _ in range(2):  # read, and remembered
        first, hidden, second, _ = registry.open_dataset("folder", str(tmp_path)).notes
        assert "3 files in the class folders" in first and "(.xcf 1)" in second
        assert all(f"{kind} 1" in first for kind in (".txt", ".xcf", "none"))
        assert "2 hidden or system files and folders" in hidden and "(.cache 1, .* 1)" in hidden


@pytest.mark.parametrize("suffix", sorted(SUFFIXES - {".avif", ".jp2"}))
def test_what_counts_as_an_image_can_be_read(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    format = Image.registered_extensions()[suffix]
    grey = suffix in (".pbm", ".pgm")
    Image.new("L" if grey else "RGB", (40, 40)).save(path, format=format)
    assert FileImages([path.name], [0], ["a"], tmp_path).image(0).size == (40, 40)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_what_people_call_validation(name, tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/2.png", f"{name}/a/3.png", f"{name}/b/4.png")
    assert len(registry.open_dataset("folder", str(tmp_path)).val) == 2


def test_a_class_in_training_only_is_reported(tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png")
    assert registry.open_dataset("folder", str(tmp_path)).notes == ("no validation images of b",)


def test_one_tree_is_split_by_names_alone(tmp_path):
    """Each class in proportion, the same after a move, and nearly so after an addition."""
    write_images(tmp_path, *(f"one/{label}/{k}.png" for label in "ab" for k in range(20)))

    def split(root, **more):
        data = registry.open_dataset("folder", str(root), **more)
        return [set(names_of(part)) for part in data[:2]], data.notes

    (train, val), notes = split(tmp_path / "one")
    assert (len(train), len(val)) == (36, 4) and not train & val
    assert sum(label == "a" for _, label in val) == 2
    assert "4 of 40 images are held out, 10% per class" in notes[0]
    shutil.copytree(tmp_path / "one", tmp_path / "two/train")
    assert split(tmp_path / "two")[0] == [train, val]
    larger = split(tmp_path / "one", val_fraction=0.3)[0][1]
    assert len(larger) == 12 and val < larger
    write_images(tmp_path, "one/a/new.png")
    assert len(split(tmp_path / "one")[0][1] ^ val) <= 2


@pytest.mark.parametrize(
    "paths, more, error, words",
    [
        ([], {}, DataError, "0 class folders; expected two or more$"),
        (["1.png", "2.png"], {}, DataError, "two or more. It holds 2 images: put each into the"),
        (["train/a/1.png"], {}, DataError, r"1 class folders \(a\); expected two or more"),
        (["val/a/1.png", "val/b/1.png"], {}, MissingFileError, "has no train/.*found val"),
        (["train/blue/1.png", "train/red/1.png", "val/blu/1.png"], {}, DataError,
         "'blu' is not in training .did you mean blue"),
        (["train/a/1.png", "train/b/x.txt", "val/a/1.png"], {}, DataError, "no images in b"),
        (["train/a/1.png", "train/b/1.png", "val/a/x.txt"], {}, DataError, "val: no images"),
        (["a/1.png", "b/1.png", "b/2.png"], {}, DataError, "a/1.png: is the only image"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png"], {"val_fraction": 0.2}, ConfigError,
         "nothing is held out"),
    ],
)  # fmt: skip
def test_folder_faults(paths, more, error, words, tmp_path):
    write_images(tmp_path, *paths)
    with pytest.raises(error, match=words):
        registry.open_dataset("folder", str(tmp_path), **more)


def test_datadir_is_needed_and_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="--datadir: is required by --dataset folder"):
        registry.open_dataset("folder")
    with pytest.raises(MissingFileError, match="no such folder"):
        registry.open_dataset("folder", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="--val_fraction: is not for cifar10"):
        registry.open_dataset("cifar10", val_fraction=0.1)


# --- ImageNet, in each of its published layouts -------------------------------------------------

IDS = ["n01440764", "n01443537", "n02085620"]  # sorted, as the heads have them
TRUTH = [2, 0, 0, 1]  # of four validation images


def imagenet(root, parts=""):
    write_images(root / parts, *(f"train/{name}/{name}_{k}.JPEG" for name in IDS for k in (1, 22)))
    write_images(root / parts, *(f"val/ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 5)))


def devkit(folder):
    """The devkit numbers classes in an order of its own, and lists ancestors after them."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    order = [IDS[2], IDS[0], IDS[1], "n00000001"]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.zeros((4, 1), fields)
    for number, name in enumerate(order, 1):
        synsets[number - 1, 0] = (float(number), name, "a, b", float(number == 4))
    savemat(folder / "meta.mat", {"synsets": synsets})
    lines = "".join(f"{order.index(IDS[label]) + 1}\n" for label in TRUTH)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)


@pytest.mark.parametrize("layout", ["folders", "devkit", "devkit's files", "ids", "kaggle"])
def test_imagenet(layout, tmp_path):
    imagenet(tmp_path, "ILSVRC/Data/CLS-LOC" if layout == "kaggle" else "")
    if layout == "folders":
        for number, label in enumerate(TRUTH, 1):
            name = f"ILSVRC2012_val_{number:08}.JPEG"
            (tmp_path / "val" / IDS[label]).mkdir(exist_ok=True)
            (tmp_path / "val" / name).rename(tmp_path / "val" / IDS[label] / name)
    elif layout == "devkit":
        devkit(tmp_path / "ILSVRC2012_devkit_t12/data")
    elif layout == "devkit's files":
        devkit(tmp_path / "x")
        for path in (tmp_path / "x").iterdir():
            path.rename(tmp_path / path.name)
    elif layout == "ids":
        ids = "".join(f"{IDS[label]}\n" for label in TRUTH)
        (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text(ids)
    else:
        rows = [f"ILSVRC2012_val_{k:08},{IDS[TRUTH[k - 1]]} 1 2 3 4 \n" for k in (3, 1, 4, 2)]
        text = "ImageId,PredictionString\n" + "".join(rows)
        (tmp_path / "LOC_val_solution.csv").write_text(text)
    train, val = registry.open_dataset("imagenet2012", str(tmp_path))[:2]
    assert train.classes == val.classes == IDS
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    found = {os.path.basename(path): label for path, label in names_of(val)}
    assert [found[f"ILSVRC2012_val_{k:08}.JPEG"] for k in range(1, 5)] == [IDS[k] for k in TRUTH]
    assert val.image(0).size == (6, 5) and train.image(5).size == (6, 5)


@pytest.mark.parametrize(
    "damage, error, words",
    [
        (lambda root: None, MissingFileError, "and the file of its labels is missing"),
        (lambda root: (devkit(root / "d"), (root / "d/meta.mat").unlink(),
                       (root / "d/ILSVRC2012_validation_ground_truth.txt").rename(
                           root / "ILSVRC2012_validation_ground_truth.txt")),
         MissingFileError, "uses the class numbers of the devkit's meta.mat"),
        (lambda root: (root / "imagenet_2012_validation_synset_labels.txt").write_text(IDS[0]),
         DataError, "1 labels for 4 images"),
        (lambda root: (root / "imagenet_2012_validation_synset_labels.txt").write_text(
            "n09\n" * 4), DataError, "validation class n09 is not in train"),
        (lambda root: shutil.rmtree(root / "train"), MissingFileError, "has no train/"),
        (lambda root: [path.unlink() for path in (root / "val").iterdir()], DataError,
         "val: no images"),
        (lambda root: (root / "LOC_val_solution.csv").write_text("a,b\n1,2\n"), DataError,
         "labels of val/ cannot be read .KeyError"),
        (lambda root: (devkit(root / "ILSVRC2012_devkit_t12/data"),
                       (root / "ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"x" * 200)),
         DataError, "labels of val/ cannot be read"),
    ],
)  # fmt: skip
def test_imagenet_faults(damage, error, words, tmp_path):
    imagenet(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=words):
        registry.open_dataset("imagenet2012", str(tmp_path))


# --- Lists --------------------------------------------------------------------------------------


def list_of(root, name, lines):
    (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize(
    "name, lines",
    [
        ("csv", ["p/1.png,owl", "p/2 x.png,crow", '"p/3,4.png",owl']),
        ("csv", ["Label,ID,Path", "owl,1,p/1.png", "crow,2,p/2 x.png", 'owl,3,"p/3,4.png"']),
        ("tsv", ["file\tclass", "p/1.png\towl", "p/2 x.png\tcrow", "p/3,4.png\towl"]),
        ("txt", ["p/1.png owl", "", "p/2 x.png  crow", "p/3,4.png owl "]),
    ],
)
def test_lists(name, lines, tmp_path):
    write_images(tmp_path, "p/1.png", "p/2 x.png", "p/3,4.png")
    list_of(tmp_path, f"train.{name}", lines)
    list_of(tmp_path, "test.txt", ["p/1.png owl"])
    train, val = registry.open_dataset("list", str(tmp_path))[:2]
    assert names_of(train) == [("p/1.png", "owl"), ("p/2 x.png", "crow"), ("p/3,4.png", "owl")]
    assert train.classes == ["crow", "owl"] and names_of(val) == [("p/1.png", "owl")]
    assert train.image(2).getpixel((0, 0)) == (2, 0, 7)


def test_padded_numbers_are_names(tmp_path):
    list_of(tmp_path, "all.csv", [f"{k}.png,{k % 2:02}" for k in range(20)])
    assert registry.open_dataset("list", str(tmp_path / "all.csv")).train.classes == ["00", "01"]


def test_one_list_is_split(tmp_path):
    list_of(tmp_path, "all.csv", [f"{k}.png,{k % 2}" for k in range(20)])
    train, val, *_ = registry.open_dataset("list", str(tmp_path / "all.csv"), val_fraction=0.2)
    assert (len(train), len(val)) == (16, 4) and train.classes == ["0", "1"]


@pytest.mark.parametrize(
    "train, val, words",
    [
        (["1.png,a", "2.png"], None, r"train.csv:2: found '2.png', expected a path and a label"),
        (["1.png,a", "2.png,"], None, "train.csv:2"),
        (["1.png,a", "2.png,b"], ["3.png,c"], r"val.csv:1: class 'c' is not in training"),
        (["1.png,0", "2.png,1"], ["3.png,2"], r"val.csv:1: class '2' is not in training"),
        (["1.png,0", "2.png,2"], ["3.png,0"], "no training image has label 1, .*go up to 2"),
        (["1.png,1", "2.png,2"], ["3.png,1"], "no training image has label 0"),
        (["1.png,a", "2.png,b"], [], "val.csv: names no images"),
        (["1.png,a", "2.png,a"], None, "all training images are of class 'a'"),
        (["1.png,a", '2.png,"b' + "x" * 200_000], None, "is a quote not closed"),
    ],
)
def test_list_faults(train, val, words, tmp_path):
    list_of(tmp_path, "train.csv", train)
    if val is not None:
        list_of(tmp_path, "val.csv", val)
    with pytest.raises(DataError, match=words):
        registry.open_dataset("list", str(tmp_path))


def test_a_list_names_an_image_twice(tmp_path):
    """Both copies go to one side, and it is said."""
    list_of(tmp_path, "all.csv", [f"{k % 20}.png,{k % 2}" for k in range(40)])
    train, val, *_, notes = registry.open_dataset("list", str(tmp_path / "all.csv"))
    assert (len(train), len(val)) == (36, 4) and not set(train.paths) & set(val.paths)
    assert "20 lines repeat an image of an earlier line" in notes
    list_of(tmp_path, "train.csv", ["1.png,a", "1.png,b"])
    list_of(tmp_path, "val.csv", ["1.png,a"])
    notes = registry.open_dataset("list", str(tmp_path)).notes
    assert "1 images have two labels or more" in notes
    assert "1 images are in both lists: validation is not independent" in notes


def test_given_classes_name_numbers_or_labels(tmp_path):
    """Also a class without a training image, as 72 of VTAB's sun397 are; and labels from 1 on."""
    list_of(tmp_path, "train.txt", ["1.png 1", "2.png 3"])
    list_of(tmp_path, "val.txt", ["3.png 2"])

    def opened(classes):
        text = yaml.safe_dump({"reader": "list", "classes": classes, "datadir": "."})
        (tmp_path / "x.yaml").write_text(text)
        return registry.open_dataset(str(tmp_path / "x.yaml"))

    data = opened(["a", "b", "c", "d"])
    assert names_of(data.train) == [("1.png", "b"), ("2.png", "d")]
    assert "no training images of a, c" in data.notes
    assert opened(["3", "2", "1"]).train.labels.tolist() == [2, 0]
    with pytest.raises(DataError, match="class '3' is not in the given classes"):
        opened(["a", "b", "c"])


def test_a_folder_without_lists(tmp_path):
    write_images(tmp_path, "a.png")
    with pytest.raises(MissingFileError, match=r"has no train.csv or train.tsv or .*found a.png"):
        registry.open_dataset("list", str(tmp_path))


# --- A data set in a file -----------------------------------------------------------------------


def test_a_file_describes_a_data_set(tmp_path):
    """A user's own: everything in one file, found from any working folder."""
    list_of(tmp_path, "learn.txt", ["1.png 1", "2.png 0"])
    list_of(tmp_path, "exam.txt", ["3.png 1"])
    (tmp_path / "names.txt").write_text("crow\nowl\n")
    (tmp_path / "birds.yaml").write_text(
        "reader: list\ndatadir: .\ntrain: learn.txt\nval: exam.txt\nclasses: names.txt\n"
        "flip: false\nrandom_crop: false\nresolution: small\n"
    )
    data = registry.open_dataset(str(tmp_path / "birds.yaml"))
    assert names_of(data.train) == [("1.png", "owl"), ("2.png", "crow")]
    assert (data.flip, data.random_crop, data.resolution) == (False, False, "small")


@pytest.mark.parametrize(
    "text, words",
    [
        ("reader: lists", "reader: is 'lists': did you mean list"),
        ("train: x", "reader: is missing"),
        (
            "reader: list\nflips: no\ncrop: 3",
            "'flips' is not a known key; did you mean flip.*'crop' is not",
        ),
        ("reader: list\nflip: 1", "flip: is 1, expected true or false"),
        ("reader: list\nclasses: [a]", "two or more names"),
        ("reader: list\nclasses: [yes, no]", "quotes around yes"),
        ("reader: [folder]", "reader: is \\['folder'\\]"),
        ("reader: digits\ntrain: x", "train: is not for digits"),
        ("reader: list\nclasses: [a, b, a]", "classes: listed twice: a"),
        ("reader: list\nclasses: none.txt", "none.txt: cannot be read"),
        ("reader: list\nresolution: 3", "expected small or large"),
        ("reader: list\nval_fraction: 1.5", "between 0 and 1"),
        ("reader: [", "cannot be read as YAML"),
        ("- 1", "contains a list"),
    ],
)
def test_faults_of_such_a_file(text, words, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    datadir = None if "digits" in text else str(tmp_path)
    with pytest.raises(ConfigError, match=words.replace("; ", ".*")):
        registry.find(str(tmp_path / "x.yaml"), datadir=datadir)


# FACTS, section 5: classes, rule, flip, crop
VTAB = {
    "caltech101": (102, "large", True, True),
    "cifar100": (100, "small", True, True),
    "dtd": (47, "large", True, True),
    "oxford_flowers102": (102, "large", True, True),
    "oxford_iiit_pet": (37, "large", True, True),
    "sun397": (397, "large", True, True),
    "svhn": (10, "small", True, True),
    "patch_camelyon": (2, "large", True, True),
    "eurosat": (10, "small", True, True),
    "resisc45": (45, "large", True, True),
    "diabetic_retinopathy": (5, "large", True, True),
    "clevr-count": (8, "large", True, False),
    "clevr-distance": (6, "large", True, False),
    "dmlab": (6, "large", True, False),
    "kitti-distance": (4, "large", True, False),
    "dsprites-xpos": (16, "small", False, False),
    "dsprites-orientation": (16, "small", False, True),
    "smallnorb-azimuth": (18, "large", False, True),
    "smallnorb-elevation": (9, "large", True, True),
}


def test_every_vtab_task_has_a_file():
    files = {path.stem for path in (ROOT / "configs/data/vtab").glob("*.yaml")}
    assert files == set(VTAB) and len(VTAB) == 19


@pytest.mark.parametrize("task", VTAB)
def test_vtab_task(task, tmp_path):
    """In the published layout: lists of 800 + 200 and of the test images, made small."""
    classes, rule, flip, crop = VTAB[task]
    numbers = [*range(classes), 0, 1]
    paths = [f"images/train800val200/{k:06}.jpg" for k in range(len(numbers))]
    list_of(tmp_path, "train800val200.txt", [f"{p} {k}" for p, k in zip(paths, numbers)])
    list_of(tmp_path, "test.txt", ["images/test/000000.jpg 1"])
    data = registry.open_dataset(f"vtab/{task}", str(tmp_path))
    assert len(data.train.classes) == classes and data.train.labels.tolist() == numbers
    assert (data.resolution, data.flip, data.random_crop) == (rule, flip, crop)
    assert data.val.labels.tolist() == [1]


def test_every_described_data_set_is_listed_and_valid():
    for name in specs.described():
        specs.find(name, registry.READERS)
    with pytest.raises(ConfigError, match="did you mean vtab/dtd"):
        registry.find("vtab/dtb")


def test_an_installed_package_has_them_too(tmp_path):
    """setup.py puts configs/ inside the package, where there is no clone beside it."""
    assert yaml.safe_load((ROOT / "configs/data/digits.yaml").read_text())["flip"] is False
    assert specs._HOMES[0].parts[-3:] == ("bit_paddle", "configs", "data")


# --- The list of files --------------------------------------------------------------------------


@pytest.fixture
def settled(monkeypatch):
    """What has just changed counts as settled."""
    monkeypatch.setattr(listing, "SETTLED", 0)


def test_files_are_listed_once(settled, tmp_path, monkeypatch):
    write_images(tmp_path, "a/1.png", "a/deep/2.png", "b/3.png", "4.png")
    first = listing.list_images(tmp_path).images
    assert first == {"": ["4.png"], "a": ["a/1.png", "a/deep/2.png"], "b": ["b/3.png"]}
    scanned, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scandir(path))
    assert listing.list_images(tmp_path).images == first and scanned == []
    write_images(tmp_path, "a/deep/5.png")
    second = listing.list_images(tmp_path).images
    assert "a/deep/5.png" in second["a"]
    assert [os.path.basename(path) for path in scanned] == ["deep"]
    (tmp_path / "b/3.png").unlink()
    assert listing.list_images(tmp_path).images["b"] == []


def test_a_change_within_the_clock_s_tick_is_seen(tmp_path):
    """The folder's date is set back to what it was when it was listed, as tar may do."""
    write_images(tmp_path, "a/1.png")
    date = os.stat(tmp_path / "a").st_mtime_ns
    listing.list_images(tmp_path).images
    write_images(tmp_path, "a/2.png")
    os.utime(tmp_path / "a", ns=(date, date))
    assert listing.list_images(tmp_path).images["a"] == ["a/1.png", "a/2.png"]


def test_links(tmp_path):
    """One that leads back ends; of two to one place each has what is there."""
    write_images(tmp_path, "a/1.png")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert listing.list_images(tmp_path).images == {"": [], "a": ["a/1.png"], "b": ["b/1.png"]}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"": 3}', b'{"": []}'])
def test_a_damaged_cache_is_made_anew(content, settled, tmp_path):
    write_images(tmp_path, "a/1.png")
    found = listing.list_images(tmp_path).images
    listing._memory(listing._KIND, os.path.realpath(tmp_path)).write_bytes(content)
    assert listing.list_images(tmp_path).images == found


def test_without_a_cache_folder(tmp_path, monkeypatch):
    write_images(tmp_path, "a/1.png")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "file/cache"))
    assert listing.list_images(tmp_path).images["a"] == ["a/1.png"]


# --- Broken images ------------------------------------------------------------------------------


@pytest.fixture
def one_broken(tmp_path):
    """2,000 files, of which one is cut in half."""
    write_images(tmp_path, *(f"{label}/{k:04}.jpg" for label in "ab" for k in range(1000)))
    path = tmp_path / "b/0777.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return tmp_path


def test_one_broken_file_in_2000(one_broken):
    data = registry.open_dataset("folder", str(one_broken))
    images = max(data[:2], key=lambda part: "b/0777.jpg" in part.paths)
    every = np.arange(len(images))
    with pytest.raises(DataError, match=r"1 of [\d,]+ images cannot be used; .*skip.*\n.*0777.jpg"):
        check.require_usable([(images, every)], 2)
    rest, skipped = check.usable(images, 2, True)
    others = np.delete(every, images.paths.index("b/0777.jpg"))
    assert len(rest) == len(images) - 1 and "b/0777.jpg" not in rest.paths
    assert len(skipped) == 1 and "0777.jpg" in skipped[0]
    assert (
        rest.labels.tolist() == np.delete(images.labels, images.paths.index("b/0777.jpg")).tolist()
    )
    others = np.delete(every, images.paths.index("b/0777.jpg"))
    check.require_usable([(images, others)], 2)  # few-shot subsets without it are good


def test_what_was_checked_is_remembered_until_the_files_change(tmp_path, monkeypatch):
    write_images(tmp_path, "a/1.png", "b/2.png")
    looked, fault = [], FileImages.fault
    monkeypatch.setattr(
        FileImages, "fault", lambda self, *more: looked.append(more) or fault(self, *more)
    )

    def run():
        looked.clear()
        images = folders.class_folders(tmp_path, listing.list_images(tmp_path).images, None)
        check.require_usable([(images, np.arange(len(images)))], 1)
        return len(looked)

    assert run() == 2 and run() == 2  # files of the last two seconds may change once more
    monkeypatch.setattr(stamps, "SETTLED", 0)
    assert run() == 2 and run() == 0
    write_images(tmp_path, "b/3.png")
    assert run() == 3 and run() == 0  # another list of files
    folder = os.stat(tmp_path / "b").st_ctime_ns
    content = (tmp_path / "b/2.png").read_bytes()
    (tmp_path / "b/2.png").write_bytes(bytes(len(content)))  # in its place, and of its size
    assert os.stat(tmp_path / "b").st_ctime_ns == folder
    for _ in range(2):  # a broken file is checked each time
        with pytest.raises(DataError, match="b/2.png"):
            run()
        assert len(looked) == 1
    (tmp_path / "b/2.png").write_bytes(content)
    assert run() == 1 and run() == 0  # repaired
    os.utime(tmp_path / "b/3.png", ns=(0, 0))  # tools such as rsync set this date, not the ctime
    assert run() == 1 and run() == 0


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nonsense", "short"])
def test_a_damaged_cache_of_checks_is_made_again(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stamps, "SETTLED", 0)
    write_images(tmp_path / "d", "a/1.png", "b/2.png")
    images = FileImages(["a/1.png", "b/2.png"], [0, 1], ["a", "b"], tmp_path / "d")
    check.require_usable([(images, np.arange(2))], 1)
    (file,) = (tmp_path / "cache" / check._KIND).iterdir()
    content = file.read_bytes()
    if damage == "short":
        with np.load(file) as arrays:
            shorter = {name: values[:1] for name, values in arrays.items()}
        with open(file, "wb") as stream:
            np.savez(stream, **shorter)
    else:
        file.write_bytes(damage)
    (tmp_path / "d/b/2.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="b/2.png"):
        check.require_usable([(images, np.arange(2))], 1)
    assert file.read_bytes() not in (damage, content)


def test_a_class_that_is_all_broken(tmp_path):
    write_images(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    (tmp_path / "b/3.png").write_bytes(b"x")
    images = folders.class_folders(tmp_path, listing.list_images(tmp_path).images, None)
    with pytest.raises(DataError, match="no image of b can be read: .*b/3.png"):
        check.usable(images, 1, every_class=True)
    rest, skipped = check.usable(images, 1, every_class=False)  # as of validation images
    assert rest.paths == ["a/1.png", "a/2.png"] and len(skipped) == 1


def test_few_shot_runs_do_not_look_at_other_images(tmp_path):
    write_images(tmp_path, *(f"{part}/{c}/{k}.png" for part in ("train", "val") for c in "ab"
                             for k in range(4)))  # fmt: skip
    settings = Settings("R14x0.5", "folder", str(tmp_path), from_scratch=True, examples_per_class=2)
    used = plan.make_plan(settings).subset
    for index in set(range(8)) - set(used.tolist()):
        (tmp_path / "train" / f"{'ab'[index // 4]}/{index % 4}.png").write_bytes(b"broken")
    assert np.array_equal(plan.make_plan(settings).subset, used)


# --- What class names say -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes, words",
    [
        (["turn left", "turn_right", "stop"], "left and right"),
        (list("0123456789"), "written digits"),
        (["3 objects", "4 objects", "5 objects"], "count things"),
        (["cat", "dog"], None),
        (["Right Whale", "left"], "left and right"),
        ([str(k) for k in range(100)], None),
    ],
)
def test_suspicious_class_names(classes, words):
    found = plan.suspicions(classes, flip=True, crops=True)
    assert (words is None) == (not found) and (words is None or words in found[0])
    assert not plan.suspicions(classes, flip=False, crops=False)


def test_listing_is_json_that_others_can_read(tmp_path):
    write_images(tmp_path, "a/1.png")
    listing.list_images(tmp_path).images
    content = json.loads(listing._memory(listing._KIND, os.path.realpath(tmp_path)).read_text())
    assert content["a"][1] == ["1.png"]


# --- The third part -----------------------------------------------------------------------------


def opened_as(tmp_path, text, **more):
    (tmp_path / "x.yaml").write_text(f"datadir: .\n{text}")
    return registry.open_dataset(str(tmp_path / "x.yaml"), **more)


THREE = [f"{part}/{name}/1.png" for part in ("train", "val", "test") for name in "ab"]


def test_a_third_folder_is_the_test_part(tmp_path):
    write_images(tmp_path, *THREE, "test/a/2.png")
    data = registry.open_dataset("folder", str(tmp_path))
    assert (len(data.train), len(data.val), len(data.test)) == (2, 2, 3) and not data.notes
    assert data.test.labels.tolist() == [0, 0, 1] and data.test.classes == ["a", "b"]
    assert data.test.name(0) == str(tmp_path / "test/a/1.png")


def test_a_file_names_the_test_part(tmp_path):
    """A file that names ``val`` also names ``test``, or there is none."""
    write_images(tmp_path, *THREE, "exam/a/7.png")
    data = opened_as(tmp_path, "reader: folder\nval: val\ntest: exam")
    assert names_of(data.test) == [("a/7.png", "a")]
    assert "no test images of b" in data.notes
    data = opened_as(tmp_path, "reader: folder\nval: val")
    assert data.test is None and any("folders exam, test" in note for note in data.notes)
    shutil.rmtree(tmp_path / "val")
    write_images(tmp_path, *(f"train/{name}/{k}.png" for name in "ab" for k in range(10)))
    data = opened_as(tmp_path, "reader: folder\ntest: test")
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 2)
    for text, words in (
        ("val: val\ntest: val", "test: 'val' is also train or val"),
        ("test: [a]", "expected a text"),
        ("test: nowhere", "has no nowhere"),
    ):
        with pytest.raises((ConfigError, MissingFileError), match=words):
            opened_as(tmp_path, f"reader: folder\n{text}")


def test_train_and_test_alone(tmp_path):
    """Test images validate, and the note names the cure; --val_fraction is one."""
    write_images(tmp_path, *(f"train/{name}/{k}.png" for name in "ab" for k in range(10)))
    write_images(tmp_path, "test/a/1.png", "test/b/1.png")
    data = registry.open_dataset("folder", str(tmp_path))
    assert (len(data.train), len(data.val), data.test) == (20, 2, None)
    (note,) = data.notes
    assert "test are used for validation" in note and "name it val" in note
    assert "--val_fraction" in note
    data = registry.open_dataset("folder", str(tmp_path), val_fraction=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 2)
    assert "4 of 20 images are held out" in data.notes[0] and len(data.notes) == 1
    shutil.rmtree(tmp_path / "test")
    held = registry.open_dataset("folder", str(tmp_path), val_fraction=0.2).val
    assert held.paths == data.val.paths


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
def test_lists_of_three_parts(suffix, tmp_path):
    separator = {"csv": ",", "tsv": "\t", "txt": " "}[suffix]
    rows = [f"{k}.png{separator}{'ab'[k % 2]}" for k in range(20)]
    list_of(tmp_path, f"train.{suffix}", rows)
    list_of(tmp_path, f"test.{suffix}", [f"7.png{separator}b", f"x.png{separator}a"])
    data = registry.open_dataset("list", str(tmp_path))
    assert (len(data.train), len(data.val), data.test) == (20, 2, None)
    assert f"test.{suffix} are used for validation" in data.notes[0]
    data = registry.open_dataset("list", str(tmp_path), val_fraction=0.1)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 2)
    list_of(tmp_path, f"val.{suffix}", [f"y.png{separator}a", f"x.png{separator}a"])
    data = registry.open_dataset("list", str(tmp_path))
    assert (len(data.train), len(data.val), len(data.test)) == (20, 2, 2)
    assert names_of(data.test) == [("7.png", "b"), ("x.png", "a")]
    assert data.notes[:2] == (
        "1 images are in the lists of train and test: test is not independent",
        "1 images are in the lists of validation and test: test is not independent",
    )
    (tmp_path / "exam.txt").write_text("z.png b\n")
    data = opened_as(tmp_path, f"reader: list\nval: val.{suffix}\ntest: exam.txt")
    assert names_of(data.test) == [("z.png", "b")]


def test_a_class_of_the_test_part_must_be_known(tmp_path):
    write_images(tmp_path, *THREE, "test/c/1.png")
    with pytest.raises(DataError, match="test: class 'c' is not in training"):
        registry.open_dataset("folder", str(tmp_path))
    for name in ("train", "val"):
        list_of(tmp_path, f"{name}.csv", ["1.png,a", "2.png,b"])
    list_of(tmp_path, "test.csv", ["3.png,a", "4.png,c"])
    with pytest.raises(DataError, match="test.csv:2: class 'c' is not in training"):
        registry.open_dataset("list", str(tmp_path))


def test_test_images_without_labels_are_left_out(tmp_path):
    """Those of competitions; if a file names them, they are a fault."""
    write_images(tmp_path, *THREE[:4], "test/1.png", "test/images/2.png")
    data = registry.open_dataset("folder", str(tmp_path))
    assert data.test is None and len(data.val) == 2
    assert data.notes == (
        f"{tmp_path}/test: no folder in it has the name of a class, so its images are not "
        "measured at the end of a run",
    )
    with pytest.raises(DataError, match="class 'images' is not in training"):
        opened_as(tmp_path, "reader: folder\ntest: test")
    list_of(tmp_path, "train.csv", [f"{k}.png,{'ab'[k % 2]}" for k in range(20)])
    for lines, words in (
        (["id", "1.png"], "test.csv:1: found 'id'"),
        ([], "names no images"),
        (["1.png,?"], "no label is a class"),
    ):
        list_of(tmp_path, "test.csv", lines)
        data = registry.open_dataset("list", str(tmp_path))
        assert (len(data.val), data.test) == (2, None)
        assert any(words in note and "are not measured" in note for note in data.notes)
        with pytest.raises(DataError):
            opened_as(tmp_path, "reader: list\ntest: test.csv")


# --- Names that mislead -------------------------------------------------------------------------


def test_names_that_differ_in_little_are_noted(tmp_path):
    write_images(
        tmp_path, *(f"{name}/{k}.png" for name in ("Cat", "cat", "cat ", "dog") for k in "12")
    )
    data = registry.open_dataset("folder", str(tmp_path))
    assert data.train.classes == ["Cat", "cat", "cat ", "dog"]
    assert (
        "differ only in case, blanks or the encoding of accents: 'Cat' and 'cat' and 'cat '"
        in (data.notes[-2])
    )
    assert data.notes[-1] == "class names begin or end with a blank: 'cat '"
    accents = names.notes(["caf\u00e9", "cafe\u0301", "cafe"], ordered=False)
    assert len(accents) == 1 and "'caf\u00e9' and 'cafe\u0301';" in accents[0]
    assert names.notes(["cat", "dog"], ordered=False) == []


def test_a_suggested_name_with_a_blank_is_quoted(tmp_path):
    write_images(tmp_path, "train/cat /1.png", "train/dog/1.png", "val/cat/1.png")
    with pytest.raises(DataError, match="class 'cat' is not in training .did you mean 'cat '[?]"):
        registry.open_dataset("folder", str(tmp_path))


def test_numbers_keep_the_order_of_text_and_it_is_noted(tmp_path):
    """Every published head counts so; `classes` sets another order, without a note."""
    write_images(tmp_path, *(f"{name}/{k}.png" for name in ("1", "10", "2") for k in "12"))
    data = registry.open_dataset("folder", str(tmp_path))
    assert data.train.classes == ["1", "10", "2"]
    assert "order of text: 1, 10, 2 …, not 1, 2, 10 …" in data.notes[-1]
    data = opened_as(tmp_path, "reader: folder\nclasses: [1, 2, 10]")
    assert data.train.classes == ["1", "2", "10"] and len(data.notes) == 1
    assert names.notes(["0", "1", "2"], ordered=False) == []
