"""The command of detection, as users run it."""

import pytest
from helpers.squares import make_squares

from bit_paddle import detect
from bit_paddle.config import detection_cli
from bit_paddle.errors import ConfigError
from bit_paddle.inference import detecting, objects

TINY = ["--model", "R14x0.5", "--from_scratch", "--side", "128", "--batch", "4", "--channels", "32",
        "--depth", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return make_squares(tmp_path_factory.mktemp("squares"), 12)


# --- Help, plans and faults ---------------------------------------------------------------------


def test_a_plan_without_a_run(squares, tmp_path, capsys):
    words = [*TINY, "--boxes", squares / "boxes.json", "--logdir", tmp_path, "--dry-run"]
    assert detect.main(["train", *map(str, words)]) == 0
    plan = capsys.readouterr().out
    for text in (
        "RetinaNet on R14x0.5",
        "11 training images with 20 boxes, 1 validation images with 2 boxes",
        "training: 128 x 128 pixels",
        "learning rate 0.00125, ",
        f"{tmp_path}/R14x0.5-{squares.name}-boxes/",
    ):
        assert text in plan, text
    assert not list(tmp_path.iterdir())


def test_the_plan_of_two_stages(squares, tmp_path, capsys):
    words = [*TINY[:-2], "--boxes", squares / "boxes.json", "--logdir", tmp_path, "--dry-run"]
    words += ["--detector", "faster_rcnn", "--regions", "pool", "--learn", "head"]
    words[words.index("--from_scratch")] = "--no-from_scratch"
    words[words.index("R14x0.5")] = "BiT-Mini"
    assert detect.main(["train", *map(str, words)]) == 0
    plan = capsys.readouterr().out
    for text in (
        "Faster R-CNN on R26x0.5: pyramid of 32 channels, RoI pool",
        "million weights; root_block, block1, block2, block3, block4, norm of the backbone",
        "3 at each place, sides of 32 to 512 pixels",
    ):
        assert text in plan, text


@pytest.mark.parametrize(
    "words, message",
    [
        (["trian"], "trian: no such command; did you mean train"),
        (["train"], "--boxes: is required"),
        (["train", "--boxs", "x"], "--boxs: no such flag; did you mean --boxes"),
        (["train", *TINY, "--boxes", "/nowhere.json"], "--boxes: /nowhere.json: no such file"),
        (["plan", *TINY, "--training_images", "9"], "only one is given"),
        (["plan", *TINY, "--boxes", ".", "--gpsu", "2"], "--gpsu: no such flag; .*--gpus"),
        (["evaluate", "--model", "x"], "--boxes"),
        (["evaluate", "--model", "x", "--boxes", "y", "--scales", "1,0"], "positive numbers"),
        (["predict", "x.png", "--model", "x", "--least_score", "2"], "from 0 to 1"),
    ],
)
def test_faults(words, message):
    with pytest.raises(ConfigError, match=message):
        detect.main(words)


def test_a_backbone_is_no_detector(squares):
    with pytest.raises(ConfigError, match="is a backbone without a detector"):
        detect.main(["evaluate", "--model", "BiT-M-R50x1", "--boxes", str(squares / "boxes.json")])


def test_estimate_of_the_paper(capsys):
    """R101x3 on COCO; the data need not be there."""
    words = "--model BiT-M-R101x3 --training_images 118287 --classes 90 --gpus 4"
    assert detect.main(["plan", *words.split(), "--images_per_second", "10"]) == 0
    estimate = capsys.readouterr().out
    for text in ("394", "1,621.8 G", "13,861 steps of 256 images", "24 h 39 min", "micro-batches"):
        assert text in estimate, text


def test_estimate_of_opened_data(squares, capsys):
    assert detect.main(["plan", *TINY, "--boxes", str(squares / "boxes.json")]) == 0
    assert "11 training images, 2 classes; views of 128 x 128" in capsys.readouterr().out


def test_help_names_what_there_is(capsys):
    assert detection_cli.SUPPRESSIONS == detecting.SUPPRESSIONS
    assert set(detection_cli.FORMATS) == set(objects.FORMATS)
    assert detection_cli.BATCH == detecting.BATCH
    with pytest.raises(SystemExit):
        detect.main([])
    shown = capsys.readouterr().out
    assert all(name in shown for name in detection_cli.COMMANDS)
