"""Settings of a detection: from flags and files, and kept apart from those of a classification."""

import pytest
from helpers.squares import make_squares

from bit_paddle.config import parsing, saved
from bit_paddle.config.contradictions import of_detection
from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.config.run_settings import RunSettings, fields_of
from bit_paddle.config.settings import Settings
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError
from bit_paddle.recipes import detection


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = make_squares(tmp_path_factory.mktemp("squares"), 2)
    return ["--model", "R50x1", "--from_scratch", "--boxes", str(folder / "boxes.json")]


def parse(*arguments):
    words = [str(word) for word in arguments]
    command = parsing.parser("detect", "", "", kind=DetectionSettings)
    return parsing.parse_as(DetectionSettings, command, words, of_detection)[0]


def test_model_and_boxes_are_enough(base):
    found = parse(*base)
    assert (found.batch, found.base_lr, found.weight_decay, found.side) == (256, 0.08, 1e-4, 1024)
    assert (found.recipe, found.box_loss, found.flip, found.val_fraction) == (
        "tpu", "huber", True, None)  # fmt: skip
    assert found.recipe_schedule(118_287) == detection.schedule(118_287, 256)


def test_learning_rate_follows_the_batch(base):
    assert parse(*base, "--batch", 16).base_lr == 0.005
    assert parse(*base, "--batch", 16, "--base_lr", 0.02).base_lr == 0.02


def test_written_settings_come_back(base, tmp_path):
    found = parse(*base, "--batch", 8, "--no-flip", "--steps", 7, "--scale_max", 2)
    file = tmp_path / "c.yaml"
    file.write_text("# a comment\n" + saved.to_yaml(found))
    assert "task: detection" in file.read_text()
    assert parse("--config", file) == found == saved.load_settings(file)


def test_files_of_another_task_are_refused(base, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(saved.to_yaml(Settings("R50x1", "digits", from_scratch=True)))
    with pytest.raises(ConfigError, match="settings of classification; they are for .*train$"):
        parse(*base, "--config", file)
    file.write_text(saved.to_yaml(parse(*base)))
    words = ["--config", str(file), "--model", "R50x1", "--dataset", "digits"]
    with pytest.raises(ConfigError, match="settings of detection; they are for .*detect train"):
        parsing.parse(words, "train", registry.find)
    file.write_text("task: segmentation\n")
    with pytest.raises(ConfigError, match="'task' is no setting"):
        parse(*base, "--config", file)


def test_all_faults_at_once(base, tmp_path):
    words = (
        "--modle x --boxes nowhere.json --val_images nowhere --batch 10 --batch_split 4 --recipe "
        "detectorn --steps 3 --epochs 2 --scale_min 2 --scale_max 1 --channels 100 --side 1 "
        "--learn head --from_scratch --anchor_base 0"
    )
    with pytest.raises(ConfigError) as caught:
        parse(*words.split())
    message = str(caught.value)
    for words in (
        "--modle: no such flag; did you mean --model",
        "--boxes: nowhere.json: no such file or folder",
        "--val_images: nowhere: no such file or folder",
        "--val_images: needs --val_boxes",
        "--batch_split: is 4, which does not divide --batch 10; 2 or 5",
        "--recipe: is 'detectorn': did you mean detectron",
        "--epochs and --steps: both",
        "--scale_min: is 2, larger than --scale_max 1",
        "--channels: is 100, expected a multiple of 32",
        "--side: is 1, expected at least 32",
        "--anchor_base: is 0, expected above 0 and at most 10000",
        "--learn: is head, which keeps the weights",
        "--model: is required",
        "13 faults",
    ):
        assert words in message, words
    for flags, words in (
        (["--regions", "pool"], "--regions: is for --detector faster_rcnn only"),
        (["--detector", "faster_rcnn", "--depth", 2], "--depth: is for --detector retinanet only"),
        (["--detector", "yolo"], "--detector: is 'yolo'"),
        (["--side", 1 << 17], "--side: is 131072, expected at most 65536"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse(*base, *flags)
    assert parse(*base, "--detector", "faster_rcnn", "--regions", "pool").regions == "pool"
    with pytest.raises(ConfigError, match="--val_fraction and --val_boxes: both"):
        parse(*base, "--val_fraction", 0.2, "--val_boxes", base[-1])


@pytest.mark.parametrize("kind", [Settings, DetectionSettings])
def test_every_task_has_what_the_loop_reads(kind):
    of_class = {"task", "prog", "size", "groups", "seeds"}
    names = RunSettings.__mro__[1].__annotations__.keys() - of_class
    assert {*names, kind.size} <= fields_of(kind).keys()
    assert set(kind.groups) == {item.metadata["group"] for item in fields_of(kind).values()}
