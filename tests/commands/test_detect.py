"""The command of detection, as users run it."""

import functools
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import run_here, wait_until
from helpers.places import ROOT
from helpers.runs import assert_same, lines_of, state_of
from helpers.squares import make_squares
from PIL import Image

from bit_paddle import detect
from bit_paddle.config import detection_cli, parsing
from bit_paddle.config.contradictions import of_detection
from bit_paddle.config.detection_settings import DetectionSettings
from bit_paddle.config.run_settings import fields_of
from bit_paddle.errors import ConfigError
from bit_paddle.inference import detecting, objects
from bit_paddle.runs import logbook
from bit_paddle.system.signals import Interrupt
from bit_paddle.training import run as training_run
from bit_paddle.training.detection.plan import make_plan

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
        "11 training images with 20 boxes, 1 validation image with 2 boxes",
        "training: 128 x 128 pixels",
        "learning rate 0.00125, ",
        f"{tmp_path}/R14x0.5-{squares.name}-boxes/",
    ):
        assert text in plan, text
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_a_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(ConfigError, match="--output: .* is a folder; give the name of a file"):
        detect.main(["predict", "a.jpg", "--model", "none", "--output", str(tmp_path)])


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
    assert "host memory   0.94 GiB per GPU for the views" in estimate
    for text in ("394", "1,621.8 G", "13,861 steps of 256 images", "24 h 39 min", "micro-batches"):
        assert text in estimate, text


def test_estimate_of_opened_data(squares, capsys):
    assert detect.main(["plan", *TINY, "--boxes", str(squares / "boxes.json")]) == 0
    assert "11 training images, 2 classes; views of 128 x 128" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/detection").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_is_planned(path, capsys):
    """Its header has the command, and the split that the plan gives."""
    words = ["--config", str(path), "--training_images", "118287", "--classes", "80", "--gpus", "4"]
    assert detect.main(["plan", *words]) == 0
    (split,) = re.findall("^split +(.*)$", capsys.readouterr().out, re.M)
    text = path.read_text()
    assert f"#   {split}\n" in text
    command = f"python -m bit_paddle.detect train --config configs/detection/{path.name}"
    assert f"#   {command}\n" in text and "ublished" in text
    recipe = parsing.parse_as(
        DetectionSettings,
        detection_cli.train_parser(),
        ["--config", str(path)],
        functools.partial(of_detection, opened=False),
    )[0]
    assert recipe.recipe_schedule(118_287).drops == (7392, 10_165)


def test_help_names_what_there_is(capsys):
    assert detection_cli.SUPPRESSIONS == detecting.SUPPRESSIONS
    assert set(detection_cli.FORMATS) == set(objects.FORMATS)
    assert detection_cli.BATCH == detecting.BATCH
    with pytest.raises(SystemExit):
        detect.main([])
    shown = capsys.readouterr().out
    assert all(name in shown for name in detection_cli.COMMANDS)


# --- The whole way ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(squares, tmp_path_factory):
    """A short training, validated on all images."""
    boxes = squares / "boxes.json"
    logs = tmp_path_factory.mktemp("logs")
    return ["train", *TINY, "--boxes", boxes, "--val_boxes", boxes, "--steps", 6, "--eval_every", 3,
            "--base_lr", 0.01, "--workers", 0, "--device", "cpu", "--logdir", logs]  # fmt: skip


@pytest.fixture(scope="module")
def run(words):
    """The folder of such a run."""
    pytest.importorskip("pycocotools")
    done = run_here("detect", *words, "--name", "run")
    assert done.returncode == 0, done.stderr
    return words[-1] / "run"


def test_a_run_leaves_what_every_run_does(run, words):
    names = {path.name for path in run.iterdir()}
    assert {"train.log", "config.yaml", "plan.json", "result.json", "model.npz"} <= names
    assert (run / "config.yaml").read_text().startswith("# python -m bit_paddle.detect train --mod")
    result = json.loads((run / "result.json").read_text())
    validations = lines_of(run, "val")
    assert [line["step"] for line in validations] == [3, 6]
    assert result["steps"] == 6 and result["ap50"] == validations[-1]["ap50"]
    assert all(np.isfinite(line["loss"]) for line in lines_of(run, "train"))
    done = run_here("detect", *words, "--name", "run")
    assert done.returncode == 0 and "this run is complete: steps 6" in done.stdout
    done = run_here(
        "train", *TINY[:3], "--dataset", "digits", "--name", "run", "--logdir", words[-1]
    )
    assert done.returncode == 2 and "holds a run of another task, detection" in done.stderr


@pytest.mark.slow
def test_a_killed_run_goes_on(run, words):
    """Its last weights, momentum and metrics are those of the undisturbed run."""
    arguments = [*words, "--name", "killed", "--save_every", 1]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "bit_paddle.detect", *map(str, arguments)],
        cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    place = words[-1] / "killed"
    wait_until(lambda: list((place / "checkpoints").glob("step-*.npz")), process, 120)
    process.kill()
    process.communicate()
    assert not (place / "result.json").exists()
    done = run_here("detect", *arguments, "--batch", 2)
    assert done.returncode == 2 and "batch: 4 -> 2" in done.stderr
    done = run_here("detect", *arguments)
    assert done.returncode == 0 and "resumes after step" in done.stdout, done.stderr
    assert_same(state_of(place), state_of(run))


def test_other_boxes_are_another_run(words, squares, tmp_path):
    place = words[-1] / "changed"
    arguments = [*words, "--name", "changed", "--steps", 2]
    process = run_here("detect", *arguments, "--save_every", 1)
    assert process.returncode == 0
    (place / "result.json").unlink()
    other = make_squares(tmp_path / "other", 12, seed=1) / "boxes.json"
    done = run_here("detect", *arguments, "--boxes", other)
    assert done.returncode == 2 and "names, boxes and labels: " in done.stderr


def test_evaluate(run, squares, tmp_path):
    """The same scores as in the run's own validation; several views change them."""
    boxes, common = squares / "boxes.json", ["--workers", 0, "--device", "cpu"]
    done = run_here("detect", "evaluate", "--model", run, "--boxes", boxes, *common,
                    "--output", tmp_path / "one")  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "one/metrics.json").read_text())
    result = json.loads((run / "result.json").read_text())
    for name in ("ap", "ap50", "ap75"):
        assert metrics[name] == pytest.approx(result[name], abs=1e-6)
    assert metrics["side"] == 128 and metrics["scales"] == [1.0] and metrics["images"] == 12
    assert {"per_class.csv", "detections.json", "precision.png"} <= {
        path.name for path in (tmp_path / "one").iterdir()
    }
    done = run_here("detect", "evaluate", "--model", run / "model.npz", "--boxes", boxes, *common,
                    "--output", tmp_path / "two", "--scales", "0.75,1", "--flip",
                    "--suppression", "soft-nms")  # fmt: skip
    assert done.returncode == 0, done.stderr
    several = json.loads((tmp_path / "two/metrics.json").read_text())
    assert several["scales"] == [0.75, 1.0] and several["flip"]
    found = [(tmp_path / name / "detections.json").read_text() for name in ("one", "two")]
    assert found[0] != found[1]


def test_evaluate_skips_unreadable_images_only_if_asked(run, squares, tmp_path):
    folder = shutil.copytree(squares, tmp_path / "broken")
    (folder / "images/2.png").write_bytes(b"nothing")
    words = ["evaluate", "--model", run, "--boxes", folder / "boxes.json", "--workers", 0,
             "--device", "cpu", "--output", tmp_path / "out"]  # fmt: skip
    done = run_here("detect", *words)
    assert done.returncode == 2 and "1 of 12 images cannot be used" in done.stderr
    done = run_here("detect", *words, "--on_bad_image", "skip")
    assert done.returncode == 0 and "skipped: " in done.stderr and "2.png" in done.stderr
    assert json.loads((tmp_path / "out/metrics.json").read_text())["images"] == 11


def test_predict(run, squares, tmp_path):
    """Images in their order, with a picture each; an unreadable one costs the status alone."""
    (tmp_path / "broken.png").write_bytes(b"nothing")
    Image.new("RGB", (90, 200), (40, 40, 220)).save(tmp_path / "high.png")
    images = [squares / "images/1.png", tmp_path / "broken.png", tmp_path / "high.png",
              squares / "images/2.png"]  # fmt: skip
    common = ["--model", run, "--least_score", 0, "--workers", 0, "--device", "cpu"]
    done = run_here("detect", "predict", *images, *common, "--format", "json",
                    "--pictures", tmp_path / "drawn")  # fmt: skip
    assert done.returncode == 1 and "skipped: " in done.stderr and "broken.png" in done.stderr
    results = json.loads(done.stdout)
    assert [result["image"] for result in results] == [str(images[k]) for k in (0, 2, 3)]
    for result, (width, height) in zip(results, ((128, 96), (90, 200), (128, 96))):
        assert 0 < len(result["objects"]) <= 100
        for item in result["objects"]:
            x1, y1, x2, y2 = item["box"]
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            assert item["class"] in ("blue", "red") and 0 <= item["score"] <= 1
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["0001-1.png", "0003-high.png", "0004-2.png"]
    assert Image.open(tmp_path / "drawn/0003-high.png").size == (90, 200)
    out = tmp_path / "found.csv"
    done = run_here("detect", "predict", images[0], *common, "--format", "csv", "--output", out)
    assert done.returncode == 0 and out.read_text().startswith("image,class,score,x1,y1,x2,y2\n")
    assert len(out.read_text().splitlines()) == 1 + len(results[0]["objects"])
    done = run_here("detect", "predict", images[0], *common[:2], "--least_score", 1)
    assert done.returncode == 0 and done.stdout == f"{images[0]}: 0 objects\n"


def test_a_detector_is_no_classifier(run, squares):
    """Its backbone can be trained again, and a note says what is lost."""
    done = run_here("predict", squares / "images/1.png", "--model", run)
    assert done.returncode == 2 and "is a detector; `bit_paddle detect`" in done.stderr
    done = run_here("detect", "train", "--model", run, "--boxes", squares / "boxes.json",
                    "--dry-run")  # fmt: skip
    assert "is a detector: its backbone alone is taken" in done.stdout


def test_another_network_is_not_forced_on_a_run(run, words):
    """Its checkpoints are whole: they are not set aside as damaged, and nothing replaces them."""
    place = shutil.copytree(run, words[-1] / "forced")
    names = ("model.npz", "config.yaml", "plan.json", "result.json")
    files = [*place.glob("checkpoints/*"), *(place / name for name in names)]
    before = {path: path.read_bytes() for path in files}
    changes = ["--channels", 64, "--steps", 8, "--force"]
    done = run_here("detect", *words, "--name", "forced", *changes)
    assert done.returncode == 2 and "arrays are not those of this detector" in done.stderr
    assert (
        "--force cannot resume a run with another network or optimizer; take another --name"
        in done.stderr
    )
    assert {path: path.read_bytes() for path in files} == before
    assert set(place.glob("checkpoints/*")) == set(files[: -len(names)])


def test_repeats_report_average_precision(words):
    pytest.importorskip("pycocotools")
    done = run_here("detect", *words, "--steps", 1, "--no-save", "--repeats", 2, "--name", "two")
    assert done.returncode == 0, done.stderr
    head, *rows = (words[-1] / "two/repeats.txt").read_text().splitlines()
    assert head.split()[:3] == ["seed", "AP", "AP50"]
    assert [row.split()[0] for row in rows] == ["0", "1", "min", "median", "max"]


# --- Every setting does something ---------------------------------------------------------------

CHANGES = {
    "model": {"model": "R14x1"},
    "val_fraction": {"val_fraction": 0.4},
    "from_scratch": None,
    "detector": {"detector": "faster_rcnn"},
    "recipe": {"recipe": "detectron"},
    "box_loss": {"box_loss": "giou"},
    "regions": {"regions": "pool"},
    "anchor_base": {"anchor_base": 2.0},
    "side": {"side": 100},
    "scale_min": {"scale_min": 0.5},
    "scale_max": {"scale_max": 2.0},
    "flip": {"flip": False},
    "channels": {"channels": 64},
    "depth": {"depth": 2},
    "learn": {"learn": "head"},
    "batch": {"batch": 2},
    "base_lr": {"base_lr": 0.02},
    "weight_decay": {"weight_decay": 10.0},
    "epochs": None,  # of the plan; --steps here
    "steps": {"steps": 2},
    "warmup": {"warmup": 1},
    "seed": {"seed": 1},
}


def test_every_setting_that_affects_a_result_has_a_row():
    every = fields_of(DetectionSettings)
    affect = {name for name, item in every.items() if item.metadata["affects_result"]}
    assert set(CHANGES) == affect - {"on_bad_box", "on_bad_image", "amp", "reduce_dtype"}


@pytest.fixture(scope="module")
def outcome(squares, tmp_path_factory):
    """Settings -> everything that a run of them shows, without a process each."""

    @functools.cache
    def run(**changes):
        values = {
            "model": "R14x0.5", "boxes": str(squares / "boxes.json"), "from_scratch": True,
            "side": 128, "batch": 4, "channels": 32, "depth": 1, "steps": 3, "workers": 0,
            "batch_split": 1, "base_lr": 0.01, "amp": "off", "save": False, "device": "cpu",
        }  # fmt: skip
        settings = DetectionSettings(**{**values, **changes})
        return _shown(settings, tmp_path_factory.mktemp("run"))

    return run


def _shown(settings, place):
    shown = []

    class Log(logbook.Silent):
        def metrics(self, kind, step, **numbers):
            numbers.pop("images_per_second", None)
            shown.append((kind, step, sorted((k, str(round(v, 6))) for k, v in numbers.items())))

    log = Log()
    log.folder = place
    training_run.run(make_plan(settings), log, Interrupt())
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, change in CHANGES.items() if change])
def test_every_setting_changes_something(name, outcome):
    pytest.importorskip("pycocotools")
    beside = {"detector": "faster_rcnn"} if name == "regions" else {}
    before, after = outcome(**beside), outcome(**beside, **CHANGES[name])
    assert before and after and before != after


def test_a_setting_that_is_not_changed_changes_nothing(outcome):
    """The control of the test above: two runs of the same settings show the same."""
    pytest.importorskip("pycocotools")
    assert outcome() == outcome(on_bad_box="skip")
