"""The command that shows data before training, in real processes."""

import csv
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers import commands
from PIL import Image

from bit_paddle.config import parsing
from bit_paddle.data import loader, transforms
from bit_paddle.data.readers import registry
from bit_paddle.training.classification.plan import make_plan
from bit_paddle.visual.sheet import PAPER, caption, cut

GAP, LINE = 8, 16


def run(*arguments, cwd=ROOT, **environment):
    if environment or cwd != ROOT:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        return commands.run_outside("show", *arguments, cwd=cwd, env=env)
    return commands.run_here("show", *arguments)


def shown(output, *arguments, **options):
    """Run the command, which must succeed; return what it printed."""
    done = run(*arguments, "--output", output, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def plan_of(*arguments):
    words = ["--model", "BiT-M-R50x1", *map(str, arguments)]
    return make_plan(parsing.parse(words, "train", registry.find)[0], fetch=False)


def expected_views(plan, count):
    """The views of training, taken from the loader: [count, side, side, 3], and their labels."""
    batch, seed = plan.settings.batch, plan.settings.seed
    batches = loader.training_batches(
        plan.data.train, plan.subset, plan.resolution, batch, seed, 0, plan.flip
    )
    images, labels = np.empty((0, 3, *[plan.resolution.crop] * 2), np.uint8), []
    while len(images) < count:
        (one,) = next(batches).micro_batches(1)
        images = np.concatenate([images, one.images])
        labels += one.labels.tolist()
    return images[:count].transpose(0, 2, 3, 1), labels[:count]


def tiles(path, count, side, columns=8):
    """Cut a sheet into its tiles [count, side, side, 3] and the lines of text below them."""
    sheet = np.asarray(Image.open(path))
    columns = min(columns, count)
    rows = -(-count // columns)
    assert sheet.shape == (GAP + rows * (side + LINE + GAP), GAP + columns * (side + GAP), 3)
    found, lines = [], []
    for place in range(count):
        top = GAP + place // columns * (side + LINE + GAP)
        left = GAP + place % columns * (side + GAP)
        found.append(sheet[top : top + side, left : left + side])
        lines.append(sheet[top + side : top + side + LINE, left : left + side])
    return np.stack(found), np.stack(lines)


def per_class(output):
    return [
        tuple(row.values()) for row in csv.DictReader(open(output / "per_class.csv", newline=""))
    ]


# --- The sheet -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [5, 512], ids=["several-steps", "part-of-one"])
def test_views_are_those_of_training(batch, image_folder, tmp_path):
    """Pixel for pixel, over as many steps as it takes; an epoch of 36 ends with a batch of one."""
    arguments = ["--dataset", "folder", "--datadir", image_folder, "--precrop", 160, "--crop", 128,
                 "--batch", batch, "--seed", 3]  # fmt: skip
    shown(tmp_path, *arguments, "--images", 43)
    expected, labels = expected_views(plan_of(*arguments), 43)
    found, lines = tiles(tmp_path / "sheet.png", 43, 128)
    assert np.array_equal(found, expected)
    by_label = {label: lines[labels.index(label)] for label in range(3)}
    for label, line in zip(labels, lines):
        assert (line < 100).any() and np.array_equal(line, by_label[label])
    assert not np.array_equal(by_label[0], by_label[1])


def test_workers_change_nothing(image_folder, tmp_path):
    for workers in (0, 3):
        shown(tmp_path / str(workers), "--dataset", "folder", "--datadir", image_folder,
              "--workers", workers)  # fmt: skip
    first, second = (tmp_path / workers / "sheet.png" for workers in "03")
    assert first.read_bytes() == second.read_bytes()


def test_small_views_are_enlarged_by_whole_pixels(image_folder, tmp_path):
    arguments = ["--dataset", "folder", "--datadir", image_folder, "--precrop", 50, "--crop", 40]
    shown(tmp_path, *arguments, "--images", 9)
    found, _ = tiles(tmp_path / "sheet.png", 9, 120)
    expected, _ = expected_views(plan_of(*arguments), 9)
    assert np.array_equal(found, expected.repeat(3, axis=1).repeat(3, axis=2))


def test_large_views_are_shrunk(image_folder, tmp_path):
    arguments = ["--dataset", "folder", "--datadir", image_folder, "--precrop", 340, "--crop", 320]
    shown(tmp_path, *arguments, "--images", 2)
    found, _ = tiles(tmp_path / "sheet.png", 2, 160)
    expected, _ = expected_views(plan_of(*arguments), 2)
    for view, small in zip(expected, found):
        image = Image.fromarray(view)
        image.thumbnail((160, 160))
        assert np.array_equal(np.asarray(image), small)


def test_few_shot_shows_the_chosen_images_alone(image_folder, tmp_path):
    """With --no-flip and --no-crop every tile is one of them, as it is but for its size."""
    arguments = ["--dataset", "folder", "--datadir", image_folder, "--precrop", 128, "--crop", 128,
                 "--examples_per_class", 2, "--examples_per_class_seed", 5,
                 "--no-flip", "--no-crop"]  # fmt: skip
    printed = shown(tmp_path, *arguments, "--images", 70)
    plan = plan_of(*arguments)
    chosen = {
        np.stack(transforms.resized(plan.data.train.image(index), (128, 128)), axis=2).tobytes()
        for index in plan.subset
    }
    found, _ = tiles(tmp_path / "sheet.png", 70, 128)
    assert len(chosen) == 6 and {view.tobytes() for view in found} == chosen
    assert per_class(tmp_path)[0] == ("0", "amber", "2", "12", "5")
    assert "6 training images, 2 per class by seed 5" in printed and "random flip" not in printed
    shown(tmp_path, *arguments[:-2], "--no-crop", "--images", 70)  # the same folder again
    found, _ = tiles(tmp_path / "sheet.png", 70, 128)
    mirrored = {view[:, ::-1].tobytes() for view in found} & chosen
    assert mirrored and {view.tobytes() for view in found} > chosen


def test_names_that_the_font_lacks_and_long_ones(image_folder, tmp_path):
    names = ["猫", "собака", "ж" * 80, "a name " * 30 + "end", "line\nbreak", "été"]
    for name in names:
        for part in ("train", "val"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            os.link(image_folder / "val/blue/0.png", tmp_path / "data" / part / name / "0.png")
    printed = shown(
        tmp_path / "out", "--dataset", "folder", "--datadir", tmp_path / "data", "--images", 30,
        PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert sorted(row[1] for row in per_class(tmp_path / "out")) == sorted(names)
    assert "\\u732b" in printed
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheet.png"))
    gaps = [sheet[:, GAP + column * (128 + GAP) - 4 :][:, :4] for column in range(1, 8)]
    assert (np.array(gaps) == PAPER[0]).all()  # no text runs into the next tile


@pytest.mark.parametrize(
    "name, drawn",
    [
        ("tabby cat", "tabby cat"),
        ("été Жük", "été Жük"),
        ("line\nbreak", "line break"),
        ("猫 a", "7: ? a"),
        ("\udcff", "7: ?"),  # of a folder's name that is in no encoding
    ],
)
def test_caption(name, drawn):
    assert caption(name, 7) == drawn


@pytest.mark.parametrize(
    "text, width, expected",
    [
        ("abcdefgh", 8, "abcdefgh"),
        ("abcdefgh", 7, "abc..gh"),
        ("Balinese-character03", 12, "Balin..ter03"),
        ("abc", 2, ".."),
        ("abc", 0, ".."),
    ],
)
def test_cut(text, width, expected):
    assert cut(text, width, len) == expected


# --- The table -----------------------------------------------------------------------------------


def test_table_and_plan(image_folder, tmp_path):
    """The plan is what `bit_paddle.train --dry-run` prints; all that is printed is in table.txt."""
    arguments = ["--dataset", "folder", "--datadir", image_folder]
    printed = shown(tmp_path, *arguments)
    assert plan_of(*arguments).describe() in printed
    table = (tmp_path / "table.txt").read_text()
    assert printed == f"{table}\n64 training views are in {tmp_path / 'sheet.png'}\n"
    rows = [" ".join(line.split()) for line in table.splitlines()]
    for row in (
        "class train used train all val",
        "amber 12 12 5",
        "all 3 classes 36 36 15",
        "fewest in a class 12 12 5",
        "most in a class 12 12 5",
    ):
        assert row in rows
    assert (
        "originals, height x width, by area: min 40 x 50, median 46 x 50, max 51 x 50 "
        "(of 36 training images)" in table
    )
    assert "originals     46 x 50 pixels" in table and "more in per_class" not in table
    assert per_class(tmp_path) == [
        (str(label), name, "12", "12", "5") for label, name in enumerate(["amber", "blue", "coral"])
    ]


def test_test_images_have_a_column(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "data")
    shutil.copytree(image_folder / "val", tmp_path / "data/test")
    shutil.rmtree(tmp_path / "data/test/coral")
    printed = shown(tmp_path / "out", "--dataset", "folder", "--datadir", tmp_path / "data")
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    for row in ("class train used train all val test", "amber 12 12 5 5", "coral 12 12 5 0",
                "all 3 classes 36 36 15 10", "note no test images of coral"):  # fmt: skip
        assert row in rows
    widths = {len(line) for line in printed.splitlines()[:7]}
    assert len(widths) == 1
    with open(tmp_path / "out/per_class.csv", newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head[-2:] == ["val", "test"] and [row[-1] for row in rows] == ["5", "5", "0"]


def test_many_classes(image_folder, tmp_path):
    for label in range(25):
        for part, count in (("train", 1 + label), ("val", 2)):
            folder = tmp_path / "data" / part / f"class {label:02}"
            folder.mkdir(parents=True)
            for k in range(count):
                os.link(image_folder / "val/blue/0.png", folder / f"{k}.png")
    printed = shown(tmp_path, "--dataset", "folder", "--datadir", tmp_path / "data", "--images", 1)
    assert "… 5 more in per_class.csv" in printed
    assert "class 19  " in printed and "class 20  " not in printed
    assert "most in a class            25" in printed
    assert [int(row[2]) for row in per_class(tmp_path)] == list(range(1, 26))
    tiles(tmp_path / "sheet.png", 1, 128)


def test_mixup_is_said_not_to_be_shown(tmp_path):
    """For 50,000 images there is some, and not for a few."""
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for name in names:
        content = {
            b"data": random.integers(0, 256, (10_000, 3072), np.uint8),
            b"labels": [k % 10 for k in range(10_000)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(
        pickle.dumps({b"label_names": [f"c{k}".encode() for k in range(10)]})
    )
    printed = shown(tmp_path / "out", "--dataset", "cifar10", "--datadir", tmp_path)
    assert "64 training views, before MixUp, are in" in printed
    assert "min 32 x 32, median 32 x 32, max 32 x 32 (of 256 training images)" in printed


# --- The command ---------------------------------------------------------------------------------


def test_default_folder(image_folder, tmp_path):
    """Below --logdir, named by the data, numbered where it exists."""
    files = ["per_class.csv", "sheet.png", "table.txt"]
    for logdir, number in (("bit_logs", ""), ("bit_logs", "-2"), ("logs", "")):
        flags = ["--logdir", logdir] if logdir == "logs" else []
        done = run("--dataset", "folder", "--datadir", image_folder, *flags, cwd=tmp_path)
        folder = f"{logdir}/show-{image_folder.name}{number}"
        assert done.returncode == 0 and f"are in {folder}/sheet.png" in done.stdout, done.stderr
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == files


def test_model_may_come_from_a_flag_or_a_file(image_folder, tmp_path):
    file = tmp_path / "c.yaml"
    lines = f"dataset: folder\ndatadir: {image_folder}\nfrom_scratch: true\n"
    for content, flags, model in (
        (lines, [], "R50x1,"),
        (f"{lines}model: R14x0.5\n", [], "R14x0.5,"),
        (f"{lines}model: R14x0.5\n", ["--model=R26x1"], "R26x1,"),
    ):
        file.write_text(content)
        printed = shown(tmp_path / "out", "--config", file, "--images", 1, *flags)
        assert f"model         {model}" in printed


def test_dry_run_prints_the_plan_alone(image_folder, tmp_path):
    arguments = ["--dataset", "folder", "--datadir", image_folder]
    printed = shown(tmp_path / "out", *arguments, "--dry-run")
    assert printed == plan_of(*arguments).describe() + "\n" and not (tmp_path / "out").exists()


def test_neither_paddle_nor_a_checkpoint(image_folder, tmp_path):
    code = (
        "import sys; from bit_paddle import show; status = show.main(sys.argv[1:]); "
        "assert not {'paddle', 'visualdl'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--dataset", "folder", "--datadir", image_folder, "--output",
         tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "BIT_PADDLE_HOME": str(tmp_path / "home"), "NO_PROXY": "*",
             "BIT_PADDLE_BASE_URL": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not downloaded yet" in done.stdout and not list(tmp_path.rglob("*R50x1*"))


def test_help():
    done = run("--help")
    assert done.returncode == 0
    for words in ("usage: python -m bit_paddle.show", "examples:", "--output DIR",
                  "--images N", "(default: 64)", "all flags of bit_paddle.train", "--val_fraction",
                  "--no-flip", "--no-crop", "MixUp is not shown", "sheet.png",
                  "default: BiT-M-R50x1"):  # fmt: skip
        assert words in done.stdout, words
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--no-flop"], "--no-flop: no such flag; did you mean --no-flip"),
        (["--imges", 4], "--imges: no such flag; did you mean --images"),
        (["--images", 0], "--images: is 0, expected at least 1"),
        (["--output"], "--output: expected one argument"),
        (["--batch"], "--batch: expected one argument"),
        (["--seed", "one"], "--seed: is 'one'"),
        (["--datadir", "nowhere"], "nowhere: no such folder"),
        (["--dataset", "foldr"], "did you mean folder"),
        (["--model", "BiT-M-R50x9"], "did you mean BiT-M-R50x"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--config", "LICENSE"], "LICENSE"),
        (["--output", "LICENSE"], "--output LICENSE: cannot be created"),
        (["--examples_per_class", 13], "not every class has that many"),
    ],
)
def test_mistakes(arguments, words, image_folder):
    done = run("--dataset", "folder", "--datadir", image_folder, *arguments)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_required_flags():
    done = run("--datadir", ROOT)
    assert done.returncode == 2 and "--dataset: is required" in done.stderr
    assert "--model" not in done.stderr
