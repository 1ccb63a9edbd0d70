"""The page of a detector's run: the same page, with the sections of its task."""

import json
import re

import paddle
import pytest
from helpers.squares import make_squares

from bit_paddle import create_model, report
from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.config.saved import to_yaml
from bit_paddle.data.boxes.reading import read_boxes
from bit_paddle.errors import ConfigError
from bit_paddle.inference import misses
from bit_paddle.inference.detecting import DetectorModel
from bit_paddle.models.detection.configuration import Detector, network

CLASSES = ("blue", "red")


@pytest.fixture(scope="module")
def model():
    """A random detector."""
    paddle.seed(0)
    detector = Detector(CLASSES, channels=32, depth=0, side=128)
    net = network(detector, create_model("R14x0.5", 0))
    net.eval()
    return DetectorModel(net, detector)


@pytest.fixture
def run_folder(tmp_path, monkeypatch, model):
    """The records of a run of two measurements, whose model is the random one."""
    data, folder = make_squares(tmp_path / "data"), tmp_path / "runs/squares"
    settings = DetectionSettings(
        "R14x0.5", str(data / "boxes.json"), val_boxes=str(data / "boxes.json"), side=128,
        device="cpu",
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(settings))
    lines = [
        {"kind": "train", "step": 1, "loss": 2.5, "lr": 0.1},
        {"kind": "val", "step": 1, "ap": None, "ap50": None, "ap75": None},
        {"kind": "val", "step": 2, "ap": 0.375, "ap50": 0.625, "ap75": 0.25},
        {"kind": "train", "step": 3, "loss": 2.0, "lr": 0.1},
        {"kind": "val", "step": 3, "ap": 0.3125, "ap50": 0.5, "ap75": 0.125},
        {"kind": "test", "step": 2, "best": True, "ap": 0.4375},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "model.npz").write_bytes(b"")
    monkeypatch.setattr(misses, "open_detector", lambda path, device: model)
    return folder


def test_a_page(run_folder, model):
    path = report.write_report([run_folder], mistakes=4)
    text = path.read_text()
    rows = dict(re.findall(r"<tr><th>([^<]*)</th><td>([^<]*)</td></tr>", text))
    assert rows["last AP"] == "31.25%" and rows["best AP"] == "37.50%"
    assert (rows["last AP50"], rows["last AP75"]) == ("50.00%", "12.50%")
    assert rows["test AP, best model"] == "43.75% (step 2)" and rows["data"].endswith("boxes.json")
    assert not [title for title in rows if "top-1" in title or "accuracy" in title]
    assert "Confusion matrix" not in text and "Missed boxes" in text
    scores = model.measure(read_boxes(run_folder.parents[1] / "data/boxes.json")).scores
    for name, (ap, ap50) in scores.per_class.items():
        assert f"<tr><th>{name}</th><td>5</td><td>{ap:.2%}</td><td>{ap50:.2%}</td></tr>" in text
    names = {one.name for one in path.parent.glob("report-*.png")}
    assert {f"report-{name}.png" for name in ("ap", "ap50", "precision", "images")} < names
    assert "report-accuracy.png" not in names
    assert not re.findall(r'(?:src|href)="(?!data:image/(?:png|jpeg);|#)[^"]', text)


def test_without_model(run_folder):
    text = report.write_report([run_folder], model=False).read_text()
    assert "(--no-model)" in text and "Missed boxes" not in text and "37.50%" in text


def test_unreadable_images_are_skipped_as_in_the_run(run_folder):
    (run_folder.parents[1] / "data/images/2.png").write_bytes(b"nothing")
    reason = "was not evaluated on the validation images"
    assert reason in report.write_report([run_folder]).read_text()
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("on_bad_image: error", "on_bad_image: skip"))
    text = report.write_report([run_folder]).read_text()
    assert reason not in text and "<tr><th>red</th><td>4</td>" in text


def test_classes_of_other_data(run_folder, model):
    """They are refused, and the page tells why it has no pictures."""
    other = read_boxes(run_folder.parents[1] / "data/boxes.json", classes=["red", "blue"])
    with pytest.raises(ConfigError, match=r"2 classes \(red, blue.*knows 2 \(blue, red"):
        model.measure(other)
    data = run_folder.parents[1] / "data/boxes.json"
    data.write_text(data.read_text().replace('"name": "blue"', '"name": "teal"'))
    text = report.write_report([run_folder]).read_text()
    assert "was not evaluated on the validation images: the data have 2 classes (teal, red" in text
