"""The model card: what it says is true, what is unknown is not there, and no name breaks it."""

import json
import math
import os
import re

import numpy as np
import pytest
import yaml
from helpers.hub import Hub
from PIL import Image

import bit_paddle as bit
from bit_paddle import errors, save_npz
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import ConfigError
from bit_paddle.inference import card, exporting, verify
from bit_paddle.inference.trained import find_trained
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.resnetv2 import ResNetV2

NASTY = ['cat "x"', "a\nb", "c|d", "<script>e</script>", "```", "---", "狗", "${f}", "{g}"]


def make(classes, width=0.5):
    model = ResNetV2(Architecture((1, 1, 1, 1), width), classes)
    model.reset_parameters()
    if classes:
        model.head.weight.set_value(
            np.random.default_rng(0).normal(size=model.head.weight.shape).astype(np.float32)
        )
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run."""
    place = tmp_path_factory.mktemp("run")
    for part, count in (("train", 6), ("val", 3)):
        for number, name in enumerate(("amber", "blue")):
            (place / "my_images" / part / name).mkdir(parents=True)
            for k in range(count):
                image = Image.new("RGB", (40, 40), (200 * number, 10 * k, 90))
                image.save(place / "my_images" / part / name / f"{k}.png")
    done = bit.fine_tune(
        "BiT-Mini",
        place / "my_images",
        name="pets",
        logdir=str(place),
        steps=2,
        batch=4,
        precrop=36,
        crop=32,
        device="cpu",
    )
    return done.folder


def front_matter(text):
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", text, re.S)[1])


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)


def card_of(model, output, **options):
    bit.export(model, "huggingface", output, **options)
    return (output / "README.md").read_text(encoding="utf-8")


# --- The numbers ---


@pytest.mark.parametrize("top1, images", [(0.7574, 10_000), (0.0, 20), (1.0, 7), (0.5, 2)])
def test_the_interval_is_wilsons(top1, images):
    z, share = 1.959963984540054, round(top1 * images) / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    half /= 1 + z**2 / images
    assert card.interval(top1, images) == pytest.approx((centre - half, centre + half), abs=1e-12)


# --- What it says ---


def test_a_run_tells_its_data_recipe_and_accuracy(run, tmp_path):
    text = card_of(run, tmp_path / "out")
    result = json.loads((run / "result.json").read_text())
    low, high = card.interval(result["top1"], result["images"])
    assert f"{result['top1']:.2%} top-1 on 6 validation images, after step 2." in text
    assert f"interval (Wilson's) is {low:.2%} to {high:.2%}" in text
    assert "my\\_images, 12 training images, 6 validation images, 2 classes" in text
    for row in ("start | BiT-Mini", "schedule | 2 steps", "batch | 4 images per step", "36 -"):
        assert f"| {row}" in text or row in text
    about = front_matter(text)
    assert "license" not in about and about["pipeline_tag"] == "image-classification"
    (entry,) = about["model-index"]
    assert entry["name"] == "pets"
    assert entry["results"][0]["metrics"][0]["value"] == pytest.approx(result["top1"], abs=1e-6)
    assert str(run.parent) not in text and "unknown" not in text.lower()
    assert "any shape is squashed" in text and "32 x 32 pixels" in text


def test_a_checkpoint_of_a_run_has_the_accuracy_of_its_step(run, tmp_path):
    text = card_of(run / "checkpoints/best.npz", tmp_path / "out")
    assert "after step 2." in text and text.count("# pets-best") == 1


def test_a_model_without_its_run_tells_what_its_file_knows(run, tmp_path):
    (tmp_path / "alone.npz").write_bytes((run / "model.npz").read_bytes())
    text = card_of(tmp_path / "alone.npz", tmp_path / "out")
    assert "12 training images" in text and "| batch | 4 images per step |" in text
    assert "## Accuracy" not in text and "model-index" not in text
    assert "schedule" not in text


def test_a_file_alone_tells_only_what_it_is(tmp_path):
    save_npz(make(0), tmp_path / "x.npz")
    text = card_of(tmp_path / "x.npz", tmp_path / "out", crop=64)
    for title in ("## Data", "## Classes", "## Training", "## Accuracy"):
        assert title not in text
    assert front_matter(text)["pipeline_tag"] == "image-feature-extraction"
    assert "features, without a head" in text and "id2label" not in text


def test_a_published_model_tells_its_licence_and_accuracy(tmp_path):
    text = card_of("BiT-Mini", tmp_path / "out")
    about = front_matter(text)
    assert about["license"] == "apache-2.0"
    assert about["model-index"][0]["results"][0]["dataset"] == {
        "name": "CIFAR-10",
        "type": "cifar10",
    }
    assert "75.74% top-1 on 10,000 test images" in text and "74.89% to 76.57%" in text


def test_a_model_trained_further_is_not_the_published_one(tmp_path):
    """The name of its file is, and so are its shapes; it has other weights."""
    model = bit.create_model("BiT-Mini", pretrained=True)
    settings = {"model": "BiT-Mini", "dataset": "folder", "datadir": "mine"}
    save_npz(model, tmp_path / "BiT-Mini.npz", {"crop": 64, "settings": settings})
    text = card_of(tmp_path / "BiT-Mini.npz", tmp_path / "out")
    assert "top-1" not in text and "license" not in front_matter(text)
    assert "Data set: mine, 10 classes." in text


def test_the_model_index_is_the_hubs(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card_of("BiT-Mini", tmp_path / "out")).data
    (result,) = data.eval_results
    assert (result.dataset_type, result.metric_value) == ("cifar10", 0.7574)
    assert data.library_name == "transformers" and data.license == "apache-2.0"


def test_a_repository_of_the_hub_is_called_by_its_name(tmp_path):
    bit.export("BiT-Mini", "huggingface", tmp_path / "out")
    cached = tmp_path / "models--me--my-bit" / "snapshots" / ("0" * 40)
    cached.parent.mkdir(parents=True)
    (tmp_path / "out").rename(cached)
    text = card_of(cached / "model.safetensors", tmp_path / "again")
    assert "\n# me/my-bit\n" in text and "0000" not in text


def test_several_labels_are_marked(tmp_path):
    notes = {"crop": 64, "classes": ["a", "b"], "settings": {"loss": "sigmoid"}}
    save_npz(make(2), tmp_path / "x.npz", notes)
    card_of(tmp_path / "x.npz", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert find_trained(str(tmp_path / "out")).loss == "sigmoid"


def test_a_head_of_zeros_is_told(tmp_path):
    model = make(3)
    model.head.weight.set_value(np.zeros(model.head.weight.shape, np.float32))
    save_npz(model, tmp_path / "x.npz", {"crop": 64})
    assert "random numbers in the head" in card_of(tmp_path / "x.npz", tmp_path / "out")


def test_the_centre_of_timm_is_told(tmp_path):
    save_npz(make(3), tmp_path / "x.npz")
    trained = find_trained(str(tmp_path / "x.npz"), crop=64)
    network, verified = Architecture((1, 1, 1, 1), 0.5), verify.Verified(0.0)
    told = "one pixel to the right"
    for view, expected in (
        (Preprocessing(64, resize=73, centre="even"), True),
        (Preprocessing(64, resize=73), False),
        (Preprocessing(64, centre="even"), False),
    ):
        changed = trained.__class__(**{**vars(trained), "preprocessing": view})
        card.write(tmp_path, changed, network, verified, "x")
        assert (told in (tmp_path / "README.md").read_text()) == expected


# --- Names ---


def test_no_name_breaks_it(tmp_path):
    save_npz(make(len(NASTY)), tmp_path / "x.npz", {"crop": 64, "classes": NASTY})
    text = card_of(tmp_path / "x.npz", tmp_path / 'a "b" {c}\n# d')
    outside = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.S | re.M)
    assert "<script>" not in outside and "狗" not in outside
    listed = re.search(r"## Classes\n\n```\n(.*?)^```$", text, re.S | re.M)[1]
    assert [json.loads(line) for line in listed.splitlines()] == NASTY
    assert re.findall(r"^# .*", text, re.M) == ["# x"]
    assert front_matter(text)["library_name"] == "transformers"
    for block in blocks(text):
        compile(block, "card", "exec")
    assert bit.load(tmp_path / 'a "b" {c}\n# d').classes == NASTY


def test_names_of_the_run_are_shown_as_they_are(tmp_path):
    settings = {"model": "/secret/place/a|b.npz", "dataset": "folder", "datadir": "/home/me/<i>x*"}
    notes = {"crop": 64, "settings": settings, "data": {"training images": 3}}
    save_npz(make(2), tmp_path / "x`y.npz", notes)
    text = card_of(tmp_path / "x`y.npz", tmp_path / "out")
    assert "# x\\`y" in text and "| start | a\\|b.npz |" in text
    assert "Data set: \\<i\\>x\\*, 3 training images, 2 classes." in text
    assert "secret" not in text and "/home" not in text


def test_many_classes_are_counted(tmp_path):
    names = [f"class {k}" for k in range(130)]
    save_npz(make(130), tmp_path / "x.npz", {"crop": 64, "classes": names})
    text = card_of(tmp_path / "x.npz", tmp_path / "out")
    assert '"class 99"' in text and '"class 100"' not in text
    assert "30 more names are in `config.json`" in text


# --- Its code ---


def run_block(code, folder, monkeypatch):
    monkeypatch.chdir(folder)
    values = {}
    exec(code, values)
    return values


@pytest.fixture(params=[(10, 0.5), (0, 0.5), (3, 1.5)], ids=["10 outputs", "no head", "wide"])
def exported(request, tmp_path):
    """(the card of an export, the outputs for cat.jpg)"""
    classes, width = request.param
    save_npz(make(classes, width), tmp_path / "x.npz", {"crop": 64, "resize": 73})
    image = np.random.default_rng(0).integers(0, 256, (97, 130, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "cat.jpg")
    model = bit.load(tmp_path / "x.npz", device="cpu")
    expected = (model.logits if classes else model.features)(tmp_path / "cat.jpg")
    return card_of(tmp_path / "x.npz", tmp_path / "out"), expected


def test_the_code_for_bit_paddle_runs(exported, tmp_path, monkeypatch, capsys):
    text, expected = exported
    values = run_block(blocks(text)[1], tmp_path, monkeypatch)
    found = values["model"]
    outputs = found.logits if found.file.outputs else found.features
    assert verify.relative_difference(outputs("cat.jpg"), expected) < 1e-5
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_code_for_transformers_and_timm_runs(exported, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    text, expected = exported
    transformers, _, timm = blocks(text)
    values = run_block(transformers, tmp_path, monkeypatch)
    found = values.get("logits", values.get("features")).numpy()
    assert verify.relative_difference(found, expected) < 1e-5
    pytest.importorskip("timm")
    exec(timm, values)
    found = values.get("logits", values.get("features")).numpy()
    assert verify.relative_difference(found, expected) < 1e-5


# --- The hub ---


@pytest.fixture
def hub(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    hub = Hub({})
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    # older versions have read it before the test
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_tests")
    yield hub
    hub.close()


def test_a_verified_folder_is_uploaded(hub, tmp_path):
    done = bit.export("BiT-Mini", "huggingface", tmp_path / "out", push="me/mini")
    assert done.address and "me/mini" in done.address
    folder = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.repositories["me/mini"] == folder and len(folder) == 4
    text = folder["README.md"].decode()
    assert 'bit.load("hf:me/mini")' in text
    assert 'hf_hub_download("me/mini", "model.safetensors")' in text
    assert 'from_pretrained("me/mini")' in text


def test_the_prefix_of_the_hub_is_no_part_of_the_name(hub, tmp_path):
    bit.export("BiT-Mini", "huggingface", tmp_path / "out", push="hf:me/mini")
    text = hub.repositories["me/mini"]["README.md"].decode()
    assert 'bit.load("hf:me/mini")' in text and 'from_pretrained("me/mini")' in text


@pytest.mark.slow
def test_a_failed_upload_leaves_the_folder(hub, tmp_path, capsys):
    hub.faults += [500] * 50
    words = ["--model", "BiT-Mini", "--format", "huggingface", "--push", "me/mini", "--private"]
    status = errors.run_command(bit.export.main, [*words, "--output", str(tmp_path / "o u")])
    assert status == 1
    message = capsys.readouterr().err
    assert "is complete and stays" in message
    assert f"hf upload me/mini '{tmp_path / 'o u'}' --private" in message
    assert (tmp_path / "o u" / "README.md").is_file() and hub.uploaded == {}


def test_wrong_flags_are_found_before_any_work(tmp_path, monkeypatch):
    output = tmp_path / "out"
    monkeypatch.setattr(exporting.hub, "is_installed", lambda: True)
    with pytest.raises(ConfigError, match=r"4 faults(.|\n)*--format(.|\n)*--push: needs --format"):
        bit.export("no such model", "npy", output, push="a/b/c")
    with pytest.raises(ConfigError, match="--private: needs --push"):
        bit.export("BiT-Mini", "huggingface", output, private=True)
    with pytest.raises(ConfigError, match="--push: needs --format huggingface, found npz"):
        bit.export("BiT-Mini", "npz", output, push="me/mini")
    monkeypatch.setattr(exporting.hub, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match="--push: the package huggingface_hub is needed"):
        bit.export("BiT-Mini", "huggingface", output, push="me/mini")
    assert os.listdir(tmp_path) == []


def test_export_is_a_call_and_a_command(run, tmp_path):
    import bit_paddle.export as command

    assert command is bit.export and command.main
    model = bit.load(run)
    done = bit.export(model, "npz", tmp_path / "x.npz")
    assert done.path == tmp_path / "x.npz" and done.verified.difference == 0
    assert (done.architecture, done.address) == ("R26x0.5", None)
    assert np.array_equal(
        bit.load(done.path).logits(np.zeros((32, 32, 3), np.uint8)),
        model.logits(np.zeros((32, 32, 3), np.uint8)),
    )
