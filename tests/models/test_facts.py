"""What lies beside a model's weights: classes, preprocessing, configurations of other networks."""

import json

import numpy as np
import pytest

from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import CheckpointError
from bit_paddle.models import facts

BIT = {"model_type": "bit", "layer_type": "preactivation", "num_groups": 32}
TIMM = {"architecture": "resnetv2_50x1_bit", "num_classes": 3}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def write(folder, config=None, processor=None):
    for name, content in ((facts.CONFIG, config), (facts.PROCESSOR, processor)):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        # transformers' conversion of google/bit-50
        (
            {"size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}, **HALF}
            | {"resample": 2},
            Preprocessing(448, 448),
        ),
        # what BitImageProcessor does if it is told nothing but mean and std
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, **HALF},
            Preprocessing(224, 256, "bicubic"),
        ),
        (
            {"size": 256, "crop_size": 224, "resample": 0, **HALF},
            Preprocessing(224, 256, "nearest"),
        ),
        # what export --format huggingface writes for BiT's own preprocessing
        (
            {"size": {"height": 128, "width": 128}, "do_center_crop": False, "resample": 2, **HALF},
            Preprocessing(128),
        ),
        (
            {"size": {"height": 64, "width": 64}, "crop_size": {"height": 64, "width": 64}, **HALF},
            Preprocessing(64, None, "bicubic"),
        ),
        (
            {"size": {"shortest_edge": 96}, "crop_size": 96, "do_normalize": False},
            Preprocessing(96, 96, "bicubic", (0, 0, 0), (1, 1, 1)),
        ),
        (
            {"size": 96, "crop_size": 96, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]},
            Preprocessing(96, 96, "bicubic", (0.1, 0.2, 0.3), (1, 2, 3)),
        ),
        # pixels that our preprocessing cannot make: --crop is asked for
        ({"size": {"shortest_edge": 96}, "do_center_crop": False, **HALF}, None),
        ({"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 64}, **HALF}, None),
        ({"size": {"shortest_edge": 96}, "crop_size": 128, **HALF}, None),
        ({"do_resize": False, "crop_size": 128, **HALF}, None),
        ({"size": 96, "crop_size": 96, "rescale_factor": 1, **HALF}, None),
        ({"size": 96, "crop_size": 96, "do_rescale": False, **HALF}, None),
        ({"size": {"height": 96, "width": 96}, "crop_size": 64, **HALF}, None),
    ],
)
def test_processors_of_transformers(processor, expected, tmp_path):
    assert facts.beside(write(tmp_path, BIT, processor)).preprocessing == expected


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"input_size": [3, 448, 448], "crop_pct": 1.0}, Preprocessing(448, 448, centre="even")),
        ({"input_size": [3, 224, 224]}, Preprocessing(224, 256, centre="even")),
        (
            {"input_size": [3, 160, 160], "crop_pct": 0.9, "interpolation": "bicubic"},
            Preprocessing(160, 177, "bicubic", centre="even"),
        ),
        (
            {"input_size": [3, 96, 96], "crop_pct": 1, "crop_mode": "squash", "mean": [0, 0, 0]},
            Preprocessing(96, None, mean=(0, 0, 0), centre="even"),
        ),
        ({"input_size": [3, 96, 96], "crop_pct": 0.9, "crop_mode": "squash"}, None),
        ({"input_size": [3, 96, 96], "crop_mode": "border"}, None),
        ({"input_size": [3, 96, 64]}, None),
        ({"input_size": [3, 96, 96], "interpolation": "random"}, None),
        ({}, None),
    ],
)
def test_configurations_of_timm(about, expected, tmp_path):
    found = facts.beside(write(tmp_path, {**TIMM, "pretrained_cfg": about}))
    assert found.preprocessing == expected and found.classes is None and found.origin is None


def test_names(tmp_path):
    labels = {str(k): name for k, name in enumerate(["cat", "狗", "a, b"])}
    found = facts.beside(write(tmp_path, {**BIT, "id2label": labels}))
    assert found.classes == ["cat", "狗", "a, b"] and found.loss is None
    labels = {str(k): f"LABEL_{k}" for k in range(3)}
    several = {"id2label": labels, "problem_type": "multi_label_classification"}
    found = facts.beside(write(tmp_path, {**BIT, **several}))
    assert found.classes is None and found.loss == "sigmoid"
    about = {"tag": "goog_in21k", "label_names": ["n1", "n2", "n3"]}
    found = facts.beside(write(tmp_path, {**TIMM, "pretrained_cfg": about}))
    assert found.classes == ["n1", "n2", "n3"] and found.origin == "resnetv2_50x1_bit.goog_in21k"
    described = {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat"}}
    assert facts.beside(write(tmp_path, {**TIMM, **described})).classes == ["cat", "n2"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "vit"}, "'vit'; expected 'bit'"),
        ({"architecture": "resnet50"}, "'resnet50'; expected timm's"),
        ({"architecture": "resnetv2_50d_gn"}, "resnetv2_50d_gn"),
        ({**BIT, "layer_type": "bottleneck"}, "layer_type is 'bottleneck', but"),
        ({**BIT, "global_padding": "same"}, "global_padding is 'same'"),
        ({**BIT, "num_groups": 16}, "num_groups is 16"),
        ({**BIT, "hidden_act": "gelu"}, "hidden_act"),
        ({**BIT, "embedding_dynamic_padding": True}, "embedding_dynamic_padding"),
        ({**BIT, "output_stride": 16}, "output_stride"),
        ("{", "is no JSON object"),
        ("[1]", "it holds a list"),
        ("[" * 100_000, "is no JSON object"),
        ('{"model_type": "bit", "a": ' + "9" * 5000 + "}", "is no JSON object"),
        (" " * (1 << 25) + "{}", "more than"),
        ({**BIT, "id2label": {"1": "cat"}}, "malformed"),
        ({**BIT, "id2label": ["cat"]}, "malformed"),
        ({"architecture": 5}, "malformed"),
        ({**TIMM, "pretrained_cfg": {"input_size": 5}}, "malformed"),
        ({**TIMM, "pretrained_cfg": {"input_size": [3, 9, 9], "crop_pct": 0}}, "malformed"),
        ({**TIMM, "pretrained_cfg": {"input_size": [3, 9, 9], "mean": [1]}}, "malformed"),
        ({**TIMM, "pretrained_cfg": [1]}, "malformed"),
    ],
)
def test_what_is_refused(config, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        facts.beside(write(tmp_path, config))


@pytest.mark.parametrize(
    "processor",
    [
        {"size": [1], "crop_size": 96, **HALF},
        {"size": 96, "crop_size": 96},
        {"size": 96, "crop_size": 96, "resample": 9, **HALF},
        {"size": 96, "crop_size": 96, "image_mean": [0.5], "image_std": [0.5] * 3},
        {"size": "big", "crop_size": 96, **HALF},
        {"size": {"shortest_edge": [5]}, "crop_size": 96, **HALF},
        {"size": 96, "crop_size": -96, **HALF},
        {"size": {"height": 1e300, "width": 1e300}, "do_center_crop": False, **HALF},
        {"size": 10**9, "crop_size": 10**9, **HALF},
        {"size": 96, "crop_size": 96, "image_mean": [0.5] * 3, "image_std": [0, 0, 0]},
        {"size": 96, "crop_size": 96, "image_mean": [float("nan")] * 3, "image_std": [1, 1, 1]},
    ],
)
def test_processors_that_are_refused(processor, tmp_path):
    with pytest.raises(CheckpointError, match="malformed"):
        facts.beside(write(tmp_path, BIT, processor))


def test_a_file_of_weights_has_the_facts_of_its_folder(tmp_path):
    write(tmp_path, {**BIT, "id2label": {"0": "cat", "1": "dog"}})
    assert facts.beside(tmp_path / "model.safetensors").classes == ["cat", "dog"]
    assert facts.beside(tmp_path / "pytorch_model.bin").classes == ["cat", "dog"]
    assert facts.beside(tmp_path / "mine.safetensors") == facts.Facts()


def test_random_changes_of_both_files(tmp_path):
    """500 changed bytes in files that are right: facts, or the package's error."""
    random = np.random.default_rng(0)
    labels = {str(k): f"class {k}" for k in range(5)}
    processor = {"size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}}
    texts = [json.dumps({**BIT, "id2label": labels}), json.dumps({**processor, **HALF})]
    refused = 0
    for _ in range(500):
        changed = [bytearray(text.encode()) for text in texts]
        which = changed[random.integers(2)]
        for _ in range(random.integers(1, 4)):
            which[random.integers(len(which))] = random.integers(256)
        (tmp_path / facts.CONFIG).write_bytes(changed[0])
        (tmp_path / facts.PROCESSOR).write_bytes(changed[1])
        try:
            facts.beside(tmp_path)
        except CheckpointError:
            refused += 1
    assert 50 < refused < 500
