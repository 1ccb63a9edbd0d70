"""Names of other libraries: which checkpoint each stands for, and what a wrong name suggests."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

import bit_paddle as bit
from bit_paddle import catalog, export, predict, train
from bit_paddle.config import parsing
from bit_paddle.config.saved import differences, load_yaml
from bit_paddle.config.settings import Settings
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError, MissingFileError
from bit_paddle.models import aliases, published
from bit_paddle.models.published import ALIASES, CATALOG, NETWORKS, find, lookup, resolve
from bit_paddle.runs import folder

#: timm's names and its deprecated names, as timm 1.0.31 lists them, and the file that timm's older
#: versions loaded for each (`url` in timm 0.6.12's resnetv2.py).
TIMM = {
    "resnetv2_50x1_bit.goog_in21k_ft_in1k": ("resnetv2_50x1_bitm", "BiT-M-R50x1-ILSVRC2012"),
    "resnetv2_50x3_bit.goog_in21k_ft_in1k": ("resnetv2_50x3_bitm", "BiT-M-R50x3-ILSVRC2012"),
    "resnetv2_101x1_bit.goog_in21k_ft_in1k": ("resnetv2_101x1_bitm", "BiT-M-R101x1-ILSVRC2012"),
    "resnetv2_101x3_bit.goog_in21k_ft_in1k": ("resnetv2_101x3_bitm", "BiT-M-R101x3-ILSVRC2012"),
    "resnetv2_152x2_bit.goog_in21k_ft_in1k": ("resnetv2_152x2_bitm", "BiT-M-R152x2-ILSVRC2012"),
    "resnetv2_152x4_bit.goog_in21k_ft_in1k": ("resnetv2_152x4_bitm", "BiT-M-R152x4-ILSVRC2012"),
    "resnetv2_50x1_bit.goog_in21k": ("resnetv2_50x1_bitm_in21k", "BiT-M-R50x1"),
    "resnetv2_50x3_bit.goog_in21k": ("resnetv2_50x3_bitm_in21k", "BiT-M-R50x3"),
    "resnetv2_101x1_bit.goog_in21k": ("resnetv2_101x1_bitm_in21k", "BiT-M-R101x1"),
    "resnetv2_101x3_bit.goog_in21k": ("resnetv2_101x3_bitm_in21k", "BiT-M-R101x3"),
    "resnetv2_152x2_bit.goog_in21k": ("resnetv2_152x2_bitm_in21k", "BiT-M-R152x2"),
    "resnetv2_152x4_bit.goog_in21k": ("resnetv2_152x4_bitm_in21k", "BiT-M-R152x4"),
    "resnetv2_50x1_bit.goog_distilled_in1k": ("resnetv2_50x1_bit_distilled", "R50x1_224"),
    "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k": (
        "resnetv2_152x2_bit_teacher",
        "R152x2_T_224",
    ),
    "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384": (
        "resnetv2_152x2_bit_teacher_384",
        "R152x2_T_384",
    ),
}

#: `timm.get_pretrained_cfg(name).tag` of timm 1.0.31, for names without a tag.
TIMM_DEFAULTS = {
    "resnetv2_50x1_bit": "goog_distilled_in1k",
    "resnetv2_50x3_bit": "goog_in21k_ft_in1k",
    "resnetv2_101x1_bit": "goog_in21k_ft_in1k",
    "resnetv2_101x3_bit": "goog_in21k_ft_in1k",
    "resnetv2_152x2_bit": "goog_teacher_in21k_ft_in1k",
    "resnetv2_152x4_bit": "goog_in21k_ft_in1k",
}

KAGGLE = "https://www.kaggle.com/models/google/bit"

OTHERS = [
    # Hugging Face: the default of transformers' convert_bit_to_pytorch.py is resnetv2_50x1_bitm
    ("google/bit-50", "BiT-M-R50x1-ILSVRC2012"),
    ("bit-50", "BiT-M-R50x1-ILSVRC2012"),
    ("https://huggingface.co/google/bit-50", "BiT-M-R50x1-ILSVRC2012"),
    ("https://huggingface.co/google/bit-50/tree/main", "BiT-M-R50x1-ILSVRC2012"),
    ("https://huggingface.co/timm/resnetv2_50x3_bit.goog_in21k", "BiT-M-R50x3"),
    # TensorFlow Hub: the comments of colabs/big_transfer_tf2.ipynb
    ("bit/m-r50x1", "BiT-M-R50x1"),
    ("bit/m-r50x1/1", "BiT-M-R50x1"),
    ("google/bit/m-r50x1", "BiT-M-R50x1"),
    ("google/bit/m-r50x1/1", "BiT-M-R50x1"),
    ("https://tfhub.dev/google/bit/m-r50x1/1", "BiT-M-R50x1"),
    ("HTTPS://TFHub.dev/google/bit/m-R152x4/1", "BiT-M-R152x4"),
    ("https://tfhub.dev/google/bit/m-r50x1/1?tf-hub-format=compressed", "BiT-M-R50x1"),
    ("https://tfhub.dev/google/bit/m-r101x1/imagenet21k_classification/1", "BiT-M-R101x1"),
    ("bit/m-r101x3/ilsvrc2012_classification", "BiT-M-R101x3-ILSVRC2012"),
    ("https://tfhub.dev/google/bit/s-r50x3/ilsvrc2012_classification/1", "BiT-S-R50x3"),
    ("bit/s-r50x1", "BiT-S-R50x1"),
    # Kaggle: the same models
    (f"{KAGGLE}/TensorFlow2/m-r50x1/1", "BiT-M-R50x1"),
    (f"{KAGGLE}/TensorFlow2/s-r50x3-ilsvrc2012-classification/1", "BiT-S-R50x3"),
    (
        f"{KAGGLE}/frameworks/tensorFlow2/variations/m-r50x1/versions/1?tfhub-redirect=true",
        "BiT-M-R50x1",
    ),
    (
        f"{KAGGLE}/frameworks/TensorFlow2/variations/m-r101x1-ilsvrc2012-classification/versions/1",
        "BiT-M-R101x1-ILSVRC2012",
    ),
    ("google/bit/tensorFlow2/m-r152x4-imagenet21k-classification", "BiT-M-R152x4"),
    # README of sayakpaul/BiT-jax2tf
    ("https://tfhub.dev/sayakpaul/distill_bit_r50x1_224_classification/1", "R50x1_224"),
    ("sayakpaul/distill_bit_r50x1_160_feature_extraction/1", "R50x1_160"),
    ("sayakpaul/bit_r152x2_384_feature_extraction", "R152x2_T_384"),
    ("sayakpaul/bit_resnet152x2_224_classification/1", "R152x2_T_224"),
    # configs/bit/README.md of MindCV: trained on ImageNet-1k
    ("bit_resnet50", "BiT-S-R50x1"),
    ("bit_resnet50x3", "BiT-S-R50x3"),
    ("bit_resnet101", "BiT-S-R101x1"),
    # the reference code and its files; tfbit
    ("BiT-M-R50x1.npz", "BiT-M-R50x1"),
    ("BiT-M-R50x1.h5", "BiT-M-R50x1"),
    ("bit-m-r50x1", "BiT-M-R50x1"),
    ("BiT_S_R152x4", "BiT-S-R152x4"),
    ("bit_m_r101x3_ilsvrc2012", "BiT-M-R101x3-ILSVRC2012"),
    ("bit-mini", "BiT-Mini"),
    ("BIT-M-R50X1-RUN0-DSPRITES_XPOS", "BiT-M-R50x1-run0-dsprites-xpos"),
    ("https://storage.googleapis.com/bit_models/BiT-M-R50x1.npz", "BiT-M-R50x1"),
    ("gs://bit_models/BiT-S-R50x1.h5", "BiT-S-R50x1"),
    ("https://storage.googleapis.com/bit_models/distill/R50x1_224.npz", "R50x1_224"),
    (
        "https://storage.googleapis.com/bit_models/vtab/BiT-M-R50x1-run2-dtd.npz",
        "BiT-M-R50x1-run2-dtd",
    ),
]


@pytest.mark.parametrize("prefix", ["", "timm/", "hf_hub:timm/", "hf-hub:timm/"])
@pytest.mark.parametrize("name", TIMM)
def test_names_of_timm(name, prefix):
    old, expected = TIMM[name]
    assert resolve(prefix + name) is CATALOG[expected]
    assert resolve(prefix + name.upper()) is CATALOG[expected]
    assert resolve(prefix + old) is CATALOG[expected]
    assert CATALOG[expected].aliases[0] == name


def test_names_of_timm_without_a_tag():
    for name, tag in TIMM_DEFAULTS.items():
        assert find(name) is find(f"{name}.{tag}")


@pytest.mark.parametrize("name, expected", OTHERS)
def test_names_of_other_libraries(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # there is no such file
    assert resolve(name) is CATALOG[expected]
    assert published.canonical(name) == expected and not published.is_path(name)


def test_every_name_stands_for_one_checkpoint():
    names = [(name, entry) for entry in CATALOG.values() for name in (entry.name, *entry.aliases)]
    assert len({name for name, _ in names}) == len(names) == 313 + len(ALIASES)
    assert len({(aliases.fold(name), entry.name) for name, entry in names}) == len(
        {aliases.fold(name) for name, _ in names}
    )
    for name, entry in names:
        assert lookup(name) is lookup(name.upper()) is entry
    assert len(TIMM) == len(NETWORKS) * 2 + 3
    assert not set(ALIASES) & set(CATALOG)


@pytest.mark.parametrize("name", ["hf:timm/resnetv2_50x1_bit.goog_in21k", "R50x1", "r50x1", ""])
def test_what_is_no_name_of_a_checkpoint(name):
    assert lookup(name) is None and published.canonical(name) == name


def test_a_file_that_exists_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("BiT-M-R50x1.npz", "google/bit-50"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert resolve(name) == path.relative_to(tmp_path) and published.canonical(name) == name
    (tmp_path / "BiT-M-R50x1").mkdir()
    (tmp_path / "resnetv2_50x1_bitm").mkdir()
    assert resolve("BiT-M-R50x1") is CATALOG["BiT-M-R50x1"]  # as before: ./BiT-M-R50x1 is a path
    assert resolve("resnetv2_50x1_bitm") is CATALOG["BiT-M-R50x1-ILSVRC2012"]


def test_a_path_object_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("google/bit-50", "BiT-M-R50x1.npz"):
        for function in (bit.load, bit.create_model):
            with pytest.raises(MissingFileError, match="no such checkpoint file"):
                function(Path(name))


# --- Wrong names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, first",
    [
        ("resnetv2_50x1_bitm_in22k", "resnetv2_50x1_bitm_in21k"),
        ("resnetv2_50x1_bit.in21k", "resnetv2_50x1_bitm_in21k"),
        ("resnetv2_50x1_bit.goog_in12k", "resnetv2_50x1_bit.goog_in21k"),
        ("resnetv2_152x2_bit_teacher_385", "resnetv2_152x2_bit_teacher_384"),
        ("resnetv2_50x1", "BiT-M-R50x1"),
        ("resnet50", "BiT-S-R50x1"),  # by MindCV's bit_resnet50; both are of ImageNet-1k
        ("ResNet50V2", "BiT-M-R50x1"),
        ("bit_resnet152", "BiT-M-R152x2"),
        ("bit_resnet101x3", "BiT-M-R101x3"),
        ("BiT-M-R50", "BiT-M-R50x1"),
        ("BiT-S-R50", "BiT-S-R50x1"),
        ("BiT-M-50x1", "BiT-M-R50x1"),
        ("BiTM-R50x1", "BiT-M-R50x1"),
        ("R50x1-M", "BiT-M-R50x1"),
        ("M-R50x1", "BiT-M-R50x1"),
        ("r50x1", "BiT-M-R50x1"),
        ("BiT-M-R50x2", "BiT-M-R50x1"),
        ("BiT-M-R152x3", "BiT-M-R152x2"),
        ("BiT-XL", "BiT-M-R50x1"),
        ("bit-m-r50x1-imagenet", "BiT-M-R50x1-ILSVRC2012"),
        ("BiT-M-R50x1-imagenet21k", "BiT-M-R50x1"),
        ("BiT-M-R50x1-in1k", "BiT-M-R50x1-ILSVRC2012"),
        ("BiT-M-R101x3-imagenet2012", "BiT-M-R101x3-ILSVRC2012"),
        ("BiT-M-R50x1-CIFAR-10", "BiT-M-R50x1-CIFAR10"),
        ("BiT-M-R50x1-cifar100", "BiT-M-R50x1-run0-cifar100"),
        ("BiT-M-R50x1-run3-dtd", "BiT-M-R50x1-run0-dtd"),
        ("distilled_R50x1", "R50x1_224"),
        ("R152x2_T_256", "R152x2_T_224"),
        ("BiT-Min", "BiT-Mini"),
        ("caltech101", "BiT-M-R50x1-run0-caltech101"),
        ("imagenet", "BiT-M-R50x1-ILSVRC2012"),
    ],
)
def test_the_first_suggestion(wrong, first):
    with pytest.raises(ConfigError, match=f"did you mean {re.escape(first)}( or |\\?)"):
        resolve(wrong)


def test_a_name_that_could_be_several_lists_them():
    """The reference code's README calls the distilled models BiT-R50x1, the paper others."""
    with pytest.raises(ConfigError, match="did you mean BiT-M-R50x1 or BiT-S-R50x1"):
        find("BiT-R50x1")


@pytest.mark.parametrize("wrong", ["vit_base_patch16_224", "efficientnet", "?"])
def test_nothing_is_suggested_for_another_network(wrong):
    with pytest.raises(ConfigError, match=r"choose from BiT-Mini, BiT-S-R50x1, .* 301 more"):
        find(wrong)


@pytest.mark.parametrize(
    "wrong, advice",
    [
        (
            "google/bit-101",
            r"\(or did you mean BiT-M-R101x1-ILSVRC2012\?\); for .* write hf:google/bit-101$",
        ),
        (
            "timm/resnetv2_50x1_bitm_in22k",
            r"did you mean resnetv2_50x1_bitm_in21k\?\); for .* write hf:timm/",
        ),
        ("https://huggingface.co/owner/bert", "write hf:owner/bert$"),
        ("hf_hub:owner/bert", "write hf:owner/bert$"),
        ("owner/name@main", "write hf:owner/name@main$"),
        ("bit/m-r50x2", r"did you mean bit/m-r50x1\?\); for .* write hf:bit/m-r50x2$"),
        ("models/x.npz", "models/x.npz: no such checkpoint file$"),
        ("models/x.safetensors", "no such checkpoint file$"),
        ("./owner/name", "no such checkpoint file$"),
        ("a/b/c", "no such checkpoint file$"),
    ],
)
def test_a_missing_path_that_could_be_a_repository(wrong, advice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=advice):
        resolve(wrong)


# --- Where the names are shown and taken ----------------------------------------------------------


def test_list_models():
    assert bit.list_models("timm/*") == [
        f"timm/{name}" for name in ALIASES if name.startswith("resnetv2") and "." in name
    ]
    assert len(bit.list_models("timm/*")) == 15
    assert bit.list_models("*bitm") == [old for old, _ in TIMM.values() if old.endswith("bitm")]
    assert bit.list_models("google/*") == ["google/bit-50"]
    assert bit.list_models("BiT-M-R50x1") == ["BiT-M-R50x1"]
    assert all(name in CATALOG for name in bit.list_models("*50x1*"))


@pytest.mark.parametrize(
    "words, rows",
    [
        (["bitm"], [name for _, name in TIMM.values() if name.startswith("BiT-M")]),
        (["google/bit-50"], ["BiT-M-R50x1-ILSVRC2012"]),
        (["https://tfhub.dev/google/bit/m-r50x1/1"], ["BiT-M-R50x1"]),
        (["BIT_RESNET101"], ["BiT-S-R101x1"]),
        (["timm", "152x4"], ["BiT-M-R152x4", "BiT-M-R152x4-ILSVRC2012"]),
        (["resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384"], ["R152x2_T_384"]),
    ],
)
def test_the_catalog_finds_other_names(words, rows):
    lines = catalog.table(words).splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == sorted(rows)
    if "/1" not in words[0]:  # such an address is not shown
        assert all(words[0].lower() in line for line in lines)


def test_the_catalog_fits_a_terminal():
    for words in ([], ["bit"], ["timm"], ["resnetv2"]):
        assert max(map(len, catalog.table(words).splitlines())) <= 150


SPELLINGS = (
    "resnetv2_50x1_bitm",
    "timm/resnetv2_50x1_bit.goog_in21k_ft_in1k",
    "google/bit-50",
    "bit-m-r50x1-ilsvrc2012",
    "BiT-M-R50x1-ILSVRC2012.npz",
    "https://tfhub.dev/google/bit/m-r50x1/ilsvrc2012_classification/1",
)


@pytest.mark.parametrize("name", SPELLINGS)
def test_settings_hold_the_name_of_the_catalogue(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.yaml"
    file.write_text(f"model: {name}\ndataset: digits\n")
    for words in (["--model", name, "--dataset", "digits"], ["--config", str(file)]):
        settings, _ = parsing.parse(words, "train", registry.find)
        assert settings.model == "BiT-M-R50x1-ILSVRC2012"
        assert folder.default_name(settings) == "BiT-M-R50x1-ILSVRC2012-digits"
    before = {"model": name, "dataset": "digits"}  # as version 0.1.0 wrote it
    assert differences(before, settings) == []
    words = ["--model", "resnetv2_50x1_bitm_in21k", "--dataset", "digits"]
    other, _ = parsing.parse(words, "train", registry.find)
    assert differences(before, other) == ["model: BiT-M-R50x1-ILSVRC2012 -> BiT-M-R50x1"]


@pytest.fixture
def directory(small_checkpoint, tmp_path, monkeypatch):
    """A folder of published files; the only one is a small network. It is the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(small_checkpoint, tmp_path / "BiT-M-R50x1-ILSVRC2012.npz")
    return str(tmp_path)


@pytest.mark.parametrize("name", ["google/bit-50", "resnetv2_50x1_bitm"])
def test_python_and_commands_take_other_names(name, directory, image_folder, capsys):
    model = bit.load(name, directory=directory)
    assert "resized to 480 x 480" in model.preprocessing and len(model.classes) == 10
    assert bit.create_model(name, pretrained=True, directory=directory).num_classes == 10
    flags = ["--model", name, "--bit_pretrained_dir", directory]
    assert predict.main([str(image_folder / "val/blue/0.png"), *flags, "--crop", "32"]) == 0
    assert export.main([*flags, "--format", "npz", "--output", "out.npz"]) == 0
    words = ["--dataset", "folder", "--datadir", str(image_folder), "--steps", "2", "--dry-run"]
    assert train.main([*flags, *words]) == 0
    out = capsys.readouterr().out
    assert "BiT-M-R50x1-ILSVRC2012.npz" in out and "BiT-M-R50x1-ILSVRC2012-images" in out


@pytest.mark.slow
def test_another_spelling_resumes_the_run(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"steps": 3, "batch": 4, "precrop": 36, "crop": 32, "save_every": 1, "workers": 0}
    run = bit.fine_tune("BiT-Mini", image_folder, **options)
    before = (run.folder / "model.npz").read_bytes()
    *_, newest = sorted(run.folder.glob("checkpoints/step-*.npz"))
    for gone in (run.folder / "result.json", run.folder / "model.npz", newest):
        gone.unlink()  # as if it was stopped before the last step
    resumed = bit.fine_tune("bit_mini", image_folder, **options)
    assert resumed.folder == run.folder and [run.folder] == list((tmp_path / "bit_logs").iterdir())
    log = (run.folder / "train.log").read_text()  # a save that is due while one runs is left out
    assert re.search(r"resumes after step [12]\b", log)
    assert (run.folder / "model.npz").read_bytes() == before
    config = load_yaml(run.folder / "config.yaml")
    assert config["model"] == "BiT-Mini"
    with pytest.raises(ConfigError, match="complete|differs"):
        bit.fine_tune("BiT-MINI.npz", image_folder, name=run.folder.name, **{**options, "seed": 1})


def test_the_name_of_a_folder_has_no_separator():
    for model in ("hf:owner/name@main", "google/bit-50"):
        assert "/" not in folder.default_name(Settings(model=model, dataset="digits"))


def test_the_page_tells_the_same():
    page = (ROOT / "docs/models-and-weights.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` (\| .*`.*\|)$", page.split("## Names")[1], re.M)[:7]
    assert [name for name, _ in rows][-1] == "R152x2_T_384"
    for name, others in rows:
        for other in re.findall("`([^`]+)`", others):
            assert find(other).name == name
