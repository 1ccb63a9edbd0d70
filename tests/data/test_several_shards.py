"""Several labels per image in shards: the same sets and batches as from files, mapped."""

import json
import tarfile

import numpy as np
import pytest
from helpers.tags import NAMES, make_tags

from bit_paddle import pack
from bit_paddle.data import identity, loader
from bit_paddle.data.labels import LabelSets, counts
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError, DataError
from bit_paddle.recipes.hyperrule import Resolution


@pytest.fixture(scope="module")
def tags(tmp_path_factory):
    return make_tags(tmp_path_factory.mktemp("tags"), train=40)


@pytest.fixture(scope="module")
def packed(tags, tmp_path_factory):
    """The images in shards of some images each."""
    folder = tmp_path_factory.mktemp("packed") / "out"
    pack(tags, folder, separator=";", shard_mb=0.05)
    return folder


def described(folder, text):
    path = folder / "own.yaml"
    path.write_text(f"reader: shards\n{text}\n")
    return registry.open_dataset(str(path))


def first_batches(images, count=6):
    stream = loader.training_batches(
        images, np.arange(len(images)), Resolution(40, 32), 16, 3, 0, True, 0.1
    )
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def test_labels_and_batches_are_those_of_the_files(tags, packed):
    files = registry.open_dataset("folder", str(tags), separator=";")
    spec = registry.find(str(packed / "data.yaml"))
    shards = registry.read(spec)
    assert spec.several and len(list((packed / "train").glob("*.tar"))) > 3
    for part in ("train", "val"):
        one, other = getattr(files, part), getattr(shards, part)
        assert isinstance(other.labels, LabelSets) and other.classes == one.classes
        assert other.labels.tolist() == one.labels.tolist()
        assert other.labels.labels is other.index.labels and other.held_bytes == 0
        assert isinstance(other.index.labels.base, np.memmap)
    for own, wanted in zip(first_batches(shards.train), first_batches(files.train)):
        assert own.labels.tolist() == wanted.labels.tolist() and own.lam == wanted.lam < 1
        assert np.array_equal(own.indices, wanted.indices)
        assert np.array_equal(own.pixels, wanted.pixels)


def test_a_sample_has_its_labels_in_json(packed):
    contents = []
    for path in sorted((packed / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert {member.name.split(".")[1] for member in members} == {"png", "json"}
            contents += [json.load(tar.extractfile(member)) for member in members[1::2]]
    assert contents[0] == {"name": "train/00.png", "labels": []}
    assert contents[7]["labels"] == list(NAMES[:3]) and len(contents) == 40


def without_index(packed):
    """Describe the tars of ``packed`` as those of another program, without their index."""
    last = len(list((packed / "train").glob("*.tar"))) - 1
    return f"datadir: {packed}\ntrain: 'train/{{000000..{last:06d}}}.tar'\nval: val"


def test_labels_are_not_left_out_in_silence(packed, tmp_path):
    fewer = sum(k % 16 not in (1, 2, 4, 8) for k in range(40))
    text = rf"train: {fewer} images do not have exactly one label; train/00.png has 0.*data.yaml"
    with pytest.raises(DataError, match=text):
        registry.open_dataset("shards", str(packed))
    with pytest.raises(DataError, match="3 images do not have exactly one label; 000000.png has 0"):
        described(tmp_path, without_index(packed))
    with pytest.raises(ConfigError, match="several: is 'yes', expected true or false"):
        described(tmp_path, "several: 'yes'")
    (tmp_path / "folder.yaml").write_text("reader: folder\ndatadir: .\nseveral: true\n")
    with pytest.raises(ConfigError, match="several: is not for folder"):
        registry.open_dataset(str(tmp_path / "folder.yaml"))


def test_shards_without_an_index(tags, packed, tmp_path):
    text = f"{without_index(packed)}\nseveral: true"
    train = described(tmp_path, text).train
    labels = registry.open_dataset("folder", str(tags), separator=";").train.labels
    assert train.classes == list(NAMES) and train.labels.tolist() == labels.tolist()
    chosen = described(tmp_path, f"{text}\nclasses: [dun, amber]").train
    wanted = labels.renumbered(np.array([1, -1, -1, 0]))
    assert chosen.labels.tolist() == wanted.tolist()


def test_labels_decide_the_identity(packed, tmp_path):
    plain = registry.open_dataset(str(packed / "data.yaml")).train
    every = np.arange(len(plain))
    merged = plain.chosen(every, plain.labels.renumbered(np.array([0, 1, 2, 2])), plain.classes)
    digests = {identity.digest((images, every)) for images in (plain, merged)}
    assert len(digests) == 2
    narrow = identity.digest((plain, every.astype(np.int32)))
    assert identity.digest((plain, every)) == narrow


def test_held_out_images_do_not_depend_on_shards(tags, tmp_path):
    found = []
    for name, size in (("one", 1000), ("two", 0.02)):
        path = pack(tags, tmp_path / name, separator=";", split="train", shard_mb=size)
        data = registry.open_dataset(str(path), val_fraction=0.25)
        assert len(data.train) + len(data.val) == 40 and 8 <= len(data.val) <= 12
        own = counts(data.val.labels, 4) / counts(data.train.labels, 4)
        assert (own > 0.2).all() and (own < 0.5).all()
        found.append({data.val.inner_name(k) for k in range(len(data.val))})
    assert found[0] == found[1]
