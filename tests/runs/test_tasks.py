"""The folder of a run belongs to a task: settings of another are refused, also with --force."""

from dataclasses import asdict

import pytest
from helpers.squares import make_squares

from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.config.saved import differences, kind_of, to_dict, to_yaml
from bit_paddle.config.settings import Settings
from bit_paddle.errors import ConfigError
from bit_paddle.models import npz
from bit_paddle.runs import folder, history
from bit_paddle.runs.checkpoints import Progress


@pytest.fixture
def both(tmp_path):
    """Settings of a classification and of a detection with the same name."""
    boxes = make_squares(tmp_path / "squares", 2) / "boxes.json"
    common = {"from_scratch": True, "logdir": str(tmp_path / "logs"), "name": "run"}
    return Settings("R14x0.5", "digits", **common), DetectionSettings(
        "R14x0.5", str(boxes), **common
    )


def leave(settings):
    """Write what a run of ``settings`` leaves in its folder."""
    with folder.claim(settings) as start:
        (start.folder / folder.CONFIG).write_text(to_yaml(settings))
        (start.folder / "metrics.jsonl").write_text("")
    return start.folder


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_another_task(both, force):
    for one, other in (both, both[::-1]):
        place = leave(one)
        message = f"holds a run of another task, {one.task}; take another name"
        with pytest.raises(ConfigError, match=message), folder.claim(other, force):
            pass
        with folder.claim(one) as start:
            assert start.folder == place
        (place / folder.CONFIG).unlink()
        (place / "metrics.jsonl").unlink()


def test_without_a_name_another_folder_is_taken(both, monkeypatch):
    monkeypatch.setattr(folder, "default_name", lambda settings: "same")
    first, second = (type(one)(**{**vars(one), "name": None}) for one in both)
    place = leave(first)
    with folder.claim(second) as start:
        assert start.folder.name == "same-2" and place.name == "same"


@pytest.mark.parametrize("force", [False, True])
def test_a_checkpoint_of_another_task(both, force, tmp_path):
    one, other = both
    path = tmp_path / "step-00000001.npz"
    progress = asdict(Progress(step=1))
    notes = {"settings": to_dict(other), "progress": progress, "data": {}, "batch_split": 1}
    npz.write(path, iter([]), notes)
    settings = type(one)(**{**vars(one), "resume": str(path)})
    message = "is a run of another task, detection"
    with pytest.raises(ConfigError, match=message), folder.claim(settings, force):
        pass


def test_name_of_a_folder(both):
    _, detection = both
    values = {**vars(detection), "repeats": 3}
    assert folder.default_name(type(detection)(**values)) == "R14x0.5-squares-boxes-x3"


def test_the_history_of_a_run_knows_its_task(both):
    for settings in both:
        place = leave(settings)
        (run,) = history.read(place)
        assert run.settings == settings and run.settings.task == settings.task
        (place / folder.CONFIG).unlink()
        (place / "metrics.jsonl").unlink()


def test_kind_of_settings(both):
    for settings in both:
        assert kind_of(to_dict(settings)) is type(settings)
        assert differences(to_dict(settings), settings) == []
    assert kind_of({"model": "R50x1"}) is None
    assert kind_of({"task": "detection", "model": "R50x1", "dataset": "digits"}) is None
    assert kind_of({"task": ["detection"], "model": "R50x1", "boxes": "x"}) is None
