"""The command: what it prints and writes, the model it makes, and wrong input."""

import io
import json

import numpy as np
import pytest
from helpers.commands import run
from PIL import Image

import bit_paddle as bit
from bit_paddle.inference import probing_models
from bit_paddle.visual import figures


def test_probe(tmp_path, small_checkpoint, image_folder):
    words = ("--dataset", "folder", "--datadir", image_folder, "--crop", 32, "--seeds", 2)
    output, results = tmp_path / "found.npz", tmp_path / "results"
    done = run(
        *("probe", "--model", small_checkpoint, *words),
        *("--output", output, "--results", results, "--layers"),
    )
    assert done.returncode == 0, done.stderr
    assert (results / "probe.txt").read_text() in done.stdout
    (content,) = json.loads((results / "probe.json").read_text())
    with Image.open(results / "probe.png") as chart:
        assert chart.format == "PNG"
    layers = {row["layer"] for row in content["rows"]}
    assert layers == {"features", "block1", "block2", "block3", "block4"}
    every = next(
        row
        for row in content["rows"]
        if (row["layer"], row["shots"], row["method"]) == ("features", None, "ridge")
    )
    model = bit.load(output)  # has its preprocessing and classes
    measured = bit.evaluate(model, image_folder)
    assert measured.top1 == every["scores"][0] and measured.classes == model.classes
    assert "32 x 32" in model.preprocessing


def test_the_written_head_gives_the_scores_of_ridge_regression(tmp_path, small_checkpoint):
    from bit_paddle.inference import probing

    model = bit.load(small_checkpoint, crop=32)
    images = [np.random.default_rng(k).integers(0, 256, (32, 32, 3), np.uint8) for k in range(12)]
    features, labels = model.features(images), np.arange(12) % 3
    fit = probing.Fit(features, labels, 3)
    classifier = fit.ridge(fit.strength)
    probing_models.write_head(model.file, classifier, ["a", "b", "c"], tmp_path / "found.npz")
    made = bit.load(tmp_path / "found.npz")
    scores = features.astype(np.float64) @ classifier[0] + classifier[1]
    np.testing.assert_allclose(made.logits(images), scores, atol=2e-4)


def test_several_models(small_checkpoint, image_folder):
    found = bit.probe([small_checkpoint, small_checkpoint], image_folder, crop=32, seeds=1)
    assert [row.scores for row in found[0].rows] == [row.scores for row in found[1].rows]
    lines = [line.split() for line in probing_models.summary(found).splitlines()]
    assert lines[0] == ["ridge,", "median", "1", "5", "10", "all"] and lines[1] == lines[2]
    medians = [row.spread[1] for row in found[0].rows if row.method == "ridge"]
    assert lines[1][1:] == [f"{100 * median:.1f}" for median in medians]
    sizes = []
    for some in (found[:1], found):
        stream = io.BytesIO()
        figures.draw_probes(some, stream)
        sizes.append(Image.open(stream).size)
    assert sizes[1][0] > 1.5 * sizes[0][0] and sizes[1][1] == sizes[0][1]  # a panel per model


def test_wrong_input(small_checkpoint, image_folder):
    words = ("--model", small_checkpoint, "--dataset", "folder", "--datadir", image_folder)
    for more, fault in (
        (("--output", "head.pth"), "must end in .npz"),
        (("--output", small_checkpoint), "exists; remove it, or choose another name"),
        (("--sead", "5"), "--sead: no such flag; did you mean --seeds"),
        (("--output", "missing/head.npz"), "missing is not a folder"),
        (("--seeds", 0), "--seeds"),
    ):
        done = run("probe", *words, "--crop", 32, *more)
        assert done.returncode == 2 and fault in done.stderr
    done = run("probe", *words)  # of an unknown resolution
    assert done.returncode == 2 and "--crop" in done.stderr
    with pytest.raises(bit.errors.ConfigError, match="model: is an empty list"):
        bit.probe([], image_folder)
    with pytest.raises(bit.errors.ConfigError, match="--output takes exactly one"):
        bit.probe([small_checkpoint] * 2, image_folder, output="a.npz")
