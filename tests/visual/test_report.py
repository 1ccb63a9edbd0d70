"""The report: what it says is what the run did, and it holds together."""

import re
import shutil

import numpy as np
import pytest
from conftest import run_here, run_train
from PIL import Image

from bit_paddle import create_model
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.data.transforms import evaluation_view
from bit_paddle.errors import MissingFileError
from bit_paddle.inference import examine, predictor
from bit_paddle.runs import history
from bit_paddle.visual import figures

CLASSES = ("<b>& amber", "blue", "coral")


def report(*words):
    return run_here("report", *words)


@pytest.fixture(scope="module")
def images(image_folder, tmp_path_factory):
    """The three colours, one of which has a name that HTML would take for its own."""
    root = tmp_path_factory.mktemp("report") / "images"
    shutil.copytree(image_folder, root)
    for part in ("train", "val"):
        (root / part / "amber").rename(root / part / CLASSES[0])
    return root


@pytest.fixture(scope="module")
def run_folder(images, tmp_path_factory):
    """A short run that has learned something, and not all."""
    logs = tmp_path_factory.mktemp("logs")
    done = run_train("--model", "R14x0.5", "--from_scratch", "--dataset", "folder", "--datadir",
                     images, "--precrop", 36, "--crop", 32, "--batch", 8, "--steps", 3, "--base_lr",
                     0.05, "--eval_every", 2, "--logdir", logs, "--name", "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return logs / "run"


def logits_of(run_folder, images):
    """[15, 3] and the labels, computed one image at a time."""
    model = create_model(run_folder / "model.npz")
    model.eval()
    paths = sorted((images / "val").rglob("*.png"), key=lambda path: (path.parent.name, path.name))
    rows = []
    for path in paths:
        view = evaluation_view(Image.open(path).convert("RGB"), Preprocessing(32))
        rows.append(predictor.infer(model, view[None])[0])
    return np.array(rows), np.array([CLASSES.index(path.parent.name) for path in paths]), model


def test_a_page(run_folder, images, tmp_path):
    done = report(run_folder, "--output", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"open {(tmp_path / 'page.html').as_uri()}"
    text = (tmp_path / "page.html").read_text()
    (val,) = [one for one in history.read(run_folder)[0].val if one["step"] == 3]
    assert f"<td>{val['top1']:.2%}</td>" in text and f"<td>{val['loss']:.4f}</td>" in text
    balanced = f"{val['balanced_accuracy']:.2%}"
    assert f"<tr><th>last balanced accuracy</th><td>{balanced}</td></tr>" in text
    # Nothing is elsewhere, nothing of the data's is taken for HTML.
    addresses = set(re.findall(r"https?://[\w./-]+", text))
    assert all("www.w3.org" in one for one in addresses), addresses  # names, not places
    assert not re.findall(r'(?:src|href)="(?!data:image/png|#)[^"]', text)
    assert "<b>& amber" not in text and "&lt;b&gt;&amp; amber" in text
    assert "36 -&gt; 32, by --precrop and --crop" in text and " s in all: " in text
    # The table is the confusion.
    logits, labels, _ = logits_of(run_folder, images)
    cells = re.findall(r'<td style="background:rgba\(var\(--heat\),[\d.]+\)">(\d*)</td>', text)
    expected = np.zeros((3, 3), int)
    np.add.at(expected, (labels, logits.argmax(axis=1)), 1)
    assert [int(cell or 0) for cell in cells] == expected.ravel().tolist()
    wrong = int((logits.argmax(axis=1) != labels).sum())
    right = int((expected.diagonal() > 0).sum())
    assert text.count('<img alt=""') == 2 * (min(12, wrong) + right)
    names = {path.name for path in tmp_path.iterdir()}
    sheets = {"right"} | ({"mistakes"} if wrong else set())
    assert names == {"page.html", *(f"page-{name}.png" for name in
                     ("loss", "lr", "accuracy", "confusion", *sheets))}  # fmt: skip
    for name in names - {"page.html"}:
        with Image.open(tmp_path / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 5


def test_a_run_that_diverged_says_so(images, tmp_path):
    done = run_train("--model", "R14x0.5", "--from_scratch", "--dataset", "folder", "--datadir",
                     images, "--precrop", 36, "--crop", 32, "--batch", 8, "--steps", 12,
                     "--base_lr", 1e12, "--logdir", tmp_path, "--name", "run")  # fmt: skip
    assert done.returncode == 1, done.stderr
    (run,) = history.read(tmp_path / "run")
    assert run.unfinished and 0 < run.step < run.planned == 12
    assert run.said.startswith("NonFiniteError: step ")
    done = report(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run/report.html").read_text()
    assert f"<td>{run.step} of 12</td>" in text and "NonFiniteError: step " in text
    assert f"The model is the checkpoint step-{run.step:08}.npz" in text
    assert not (tmp_path / "run/report-accuracy.png").exists()  # of which there is none


def test_a_model_that_gives_no_numbers_is_not_shown(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    with np.load(run_folder / "model.npz") as file:
        arrays = dict(file)
    arrays["resnet/head/conv2d/kernel"][:] = np.nan
    np.savez(tmp_path / "run/model.npz", **arrays)
    done = report(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run/report.html").read_text()
    assert "its outputs are not finite" in text and not re.search(r"predicted \w+ \(", text)


def test_what_is_examined(run_folder, images):
    logits, labels, _ = logits_of(run_folder, images)
    (run,) = history.read(run_folder)
    seen = examine.analyze(run, run.model, 4, batch=4)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
    best = logits.argmax(axis=1)
    for answers, chosen in ((seen.wrong, best != labels), (seen.right, best == labels)):
        assert all((one.label == one.prediction) == (answers is seen.right) for one in answers)
        surest = sorted(shares[chosen], reverse=True)
        found = [one.probability for one in answers]
        assert found == sorted(found, reverse=True)
        if answers:
            assert found[0] == pytest.approx(surest[0], rel=1e-4)
    assert [one.probability for one in seen.wrong] == pytest.approx(
        sorted(shares[best != labels], reverse=True)[:4], rel=1e-4
    )
    assert len({one.label for one in seen.right}) == len(seen.right)
    assert seen.confusion.sum() == 15


def test_the_map_of_a_shown_image_is_that_of_its_prediction(run_folder, images):
    """It adds up to the logit: see tests/inference/test_explain.py."""
    _, _, model = logits_of(run_folder, images)
    (run,) = history.read(run_folder)
    analysis = examine.analyze(run, run.model, 4, batch=4)
    for shown in (*analysis.wrong, *analysis.right):
        pixels = shown.pixels.transpose(2, 0, 1)[None]
        logit = predictor.infer(model, pixels)[0, shown.prediction]
        bias = float(model.head.bias[shown.prediction])
        tolerance = 1e-3 * float(np.abs(shown.map).max())
        assert shown.map.mean() + bias == pytest.approx(logit, abs=tolerance)


def test_without_model_or_images(run_folder, images, tmp_path):
    """The page is there all the same, and says what is missing."""
    shutil.copytree(run_folder, tmp_path / "run")
    done = report(tmp_path / "run", "--no-model")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run/report.html").read_text()
    assert "--no-model" in text and "<svg" in text and "data:image" not in text
    (tmp_path / "run/model.npz").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints")
    done = report(tmp_path / "run")
    assert done.returncode == 0
    assert "there is no model in " in (tmp_path / "run/report.html").read_text()
    shutil.copy(run_folder / "model.npz", tmp_path / "run/model.npz")
    settings = (tmp_path / "run/config.yaml").read_text().replace(str(images), "/nowhere")
    (tmp_path / "run/config.yaml").write_text(settings)
    done = report(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run/report.html").read_text()
    assert "The model was not evaluated on the validation images: " in text


def test_several_runs_and_repeats(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "five" / "seed-0")
    shutil.copytree(run_folder, tmp_path / "five" / "seed-1")
    done = report(run_folder, tmp_path / "five", "--no-model", "--output", tmp_path / "all.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "all.html").read_text()
    for name in ("run", "five/seed-0", "five/seed-1"):
        assert f"<h2>{name}</h2>" in text
    assert text.count("<section>") == 3


@pytest.mark.parametrize("what", ["nothing", "empty", "settings", "output"])
def test_faults(what, run_folder, tmp_path):
    folder, more = tmp_path / "run", []
    if what == "empty":
        folder.mkdir()
    elif what != "nothing":
        shutil.copytree(run_folder, folder)
    if what == "settings":
        (folder / "config.yaml").write_text("modle: x\n")
    if what == "output":
        more = ["--output", tmp_path / "none" / "page.html"]
    done = report(folder, "--no-model", *more)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    named = {"nothing": "no such folder", "empty": "is no run's folder", "output": "--output: "}
    named["settings"] = "config.yaml: is not what a run writes"
    assert named[what] in done.stderr


def test_no_run_is_no_run(tmp_path):
    with pytest.raises(MissingFileError):
        history.read(tmp_path)


def test_smoothing_is_a_mean_and_skips_what_is_none():
    values = [1.0, 2.0, np.nan, 4.0, 5.0]
    assert figures.smoothed(values, 3).tolist() == pytest.approx([1.5, 1.5, 3.0, 4.5, 4.5])
    assert figures.smoothed([3.0] * 9, 5).tolist() == pytest.approx([3.0] * 9)


def test_text_of_a_drawing_has_the_page_s_colour(run_folder):
    for _, figure in figures.draw_curves(history.read(run_folder)).values():
        text = figures.to_svg(figure)
        assert "currentColor" in text and figures.INK not in text and "<text" in text
