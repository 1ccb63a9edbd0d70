"""Claims as data, the rule of the verdicts, and `reproduce` from end to end on small claims."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT
from helpers.commands import run_here, wait_until
from helpers.places import SHARED
from PIL import Image

import bit_paddle
from bit_paddle import errors
from bit_paddle.config import claims as claims_of
from bit_paddle.config.claims import Published
from bit_paddle.inference import verdicts
from bit_paddle.inference.verdicts import Measured, outcomes
from bit_paddle.system import processes
from bit_paddle.system.signals import Interrupt
from bit_paddle.training.claims import jobs
from bit_paddle.training.claims.jobs import jobs_of

TINY = "{model: BiT-Mini, dataset: digits, steps: 1, batch: 4, precrop: 36, crop: 32}"
DIGITS = f"""
title: digits
source: made up
command: train
settings: {TINY}
rows:
  wrong: {{published: 99.9}}
"""


@pytest.fixture
def claim_file(tmp_path):
    """Write a claim, return its path."""

    def write(text, name="tiny.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


# --- Claims -------------------------------------------------------------------------------------


def test_every_claim_is_valid_and_its_command_can_be_parsed(tmp_path):
    from bit_paddle import reproduce

    names = claims_of.known()
    assert {"cifar10", "cifar100", "imagenet", "imagenet-files", "students"} < set(names)
    assert len([name for name in names if name.startswith("vtab/")]) == 10
    for claim in claims_of.find(names):
        for row in claim.rows:
            (tmp_path / row.settings.get("datadir", "")).mkdir(exist_ok=True)
        for job in jobs_of(claim, tmp_path, str(tmp_path), seeds=1):
            reproduce._check(job)


def test_published_figures_are_those_of_the_facts():
    found = {
        claim.name: {row.name: str(row.published) for row in claim.rows}
        for claim in claims_of.find(["cifar10", "cifar100", "imagenet", "imagenet-files"])
    }
    facts = SHARED / "FACTS.md"
    if not facts.is_file():
        pytest.skip("the facts are not here")
    text = facts.read_text()
    table = re.findall(r"^\| (R\d+x\d) \| CIFAR-(100?) \|(.+)\|$", text, re.M)
    assert len(table) == 6
    for network, classes, cells in table:
        one, five, full = (cell.strip().replace("*", "") for cell in cells.split("|"))
        rows = found[f"cifar{classes}"]
        assert (rows[f"{network}-1shot"], rows[f"{network}-5shot"]) == (one, five)
        assert full in rows[network].split("-")  # some have a range too
    for network, accuracy in re.findall(r"(R\d+x\d) (8\d\.\d{3}) @4", text):
        assert float(found["imagenet-files"][network]) == float(accuracy)
    assert found["imagenet"]["R50x1"] == "80.68" and found["imagenet"]["R101x3-1shot"] == "25.55"


def test_the_page_quotes_the_claims():
    """Every published accuracy, and what others reached; ours are empty until they are measured."""
    page = (ROOT / "docs/reproduce.md").read_text()
    for claim in claims_of.find(["cifar10", "cifar100", "imagenet", "imagenet-files", "students"]):
        for row in claim.rows:
            port = row.others.get("earlier Paddle port", "")
            line = f"| {claim.name} | {row.name} | {row.published or ''} | {port} | |"
            assert re.sub(" +", " ", line) in page, line
    for name in ("vtab/R152x4", "vtab/R101x3"):
        (claim,) = claims_of.find([name])
        for group, published in claim.means.items():
            assert f"| {name} | {group} | {published} | | |" in page


def test_all_faults_of_a_claim_at_once(claim_file):
    path = claim_file(
        """
titel: digits
source: made up
metric: top2
settings: {model: [1]}
means: {natural: 50}
rows:
  a/b: {command: train}
  one: {command: trian, published: 101}
  two: {command: train, published: {min: 5, median: 4, max: 6}, tolerance: 1, hourss: 3}
  three: {published: {min: 5}}
"""
    )
    with pytest.raises(errors.ConfigError) as error:
        claims_of.find([path.as_posix(), "cifar01"])
    for word in (
        "'titel' is not a known key; did you mean title?",
        "title: is missing",
        "metric: is 'top2'",
        "settings: model: is [1]",
        "means: no row has the group 'natural'",
        "'a/b' is no name",
        "one: command: is 'trian'",
        "one: published: median: is 101",
        "min <= median <= max",
        "two: tolerance: is for evaluate",
        "did you mean hours?",
        "three: published: is {'min': 5}",
        "three: command: is missing",
        "cifar01: no such claim; did you mean cifar10 or cifar100?",
    ):
        assert word in str(error.value), word


@pytest.mark.parametrize(
    "text, words",
    [
        ("rows: {", "cannot be read as YAML"),
        ("- 1", "contains a list"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ("title: x\nsource: y\nrows: 3", "expected one or more rows"),
        ("base: tiny.yaml\ntitle: x", "base is 'tiny.yaml'"),
    ],
)
def test_broken_files(claim_file, text, words):
    done = run_here("reproduce", claim_file(text))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_wrong_commands_are_reported_before_any_run(claim_file, tmp_path):
    wrong = DIGITS.replace("steps: 1", "stepps: 1").replace("title: digits", "title: other")
    paths = [claim_file(wrong, "a.yaml"), claim_file(DIGITS.replace("99.9", "9"), "b.yaml")]
    done = run_here("reproduce", *paths, "vtab/R50x1", "--logdir", tmp_path / "logs")
    assert done.returncode == 2 and not (tmp_path / "logs").exists()
    assert "a wrong: --stepps=1: no such flag; did you mean --steps" in done.stderr
    assert "vtab/R50x1: needs its data: --datadir vtab-1k=DIR" in done.stderr


@pytest.mark.parametrize("flags", [["--resize", 72], ["--crop", 64, "--filter", "bicubic"]])
def test_evaluate_needs_the_whole_preprocessing(flags):
    done = run_here("evaluate", "--model", "BiT-Mini", "--dataset", "digits", *flags)
    assert done.returncode == 2 and "--resize needs --crop, and --filter needs both" in done.stderr


def test_without_claims_they_are_listed():
    done = run_here("reproduce")
    assert done.returncode == 0 and "\nvtab/R152x4 " in done.stdout
    assert "_tasks" not in done.stdout


# --- The rule -----------------------------------------------------------------------------------


def claim_of(claim_file, rows, more=""):
    path = claim_file(f"title: x\nsource: y\ncommand: train\n{more}rows: {json.dumps(rows)}")
    return claims_of.read(path, "x")


def judged(claim_file, published, *values, **more):
    row = {"published": published, **more}
    claim = claim_of(claim_file, {"a": row})
    results = {run: Measured(value, 10_000) for run, value in enumerate(values)}
    return outcomes(claim, {"a": results}, claim_file("", "z").parent)[0]


def test_the_t_interval_of_several_runs(claim_file):
    """t of 4 degrees of freedom is 2.7764; s of 1 ... 5 is sqrt(2.5)."""
    spread = {"min": 39, "median": 44.9, "max": 46, "runs": 5}
    found = judged(claim_file, spread, 41, 42, 43, 44, 45)
    half = 2.776445 * np.sqrt(2.5) * np.sqrt(2 / 5)
    assert found.interval == pytest.approx((43 - half, 43 + half), abs=1e-5)
    assert found.verdict == "reproduced" and found.spread == "41.00-43.00-45.00"
    alone = judged(claim_file, 44.9, 41, 42, 43, 44, 45)  # of one published run
    assert alone.interval[1] - 43 == pytest.approx(half * np.sqrt(1.2 / 0.4), abs=1e-5)
    edge = {"median": round(43 + half, 1) + 0.1, "runs": 5}
    assert judged(claim_file, edge, 41, 42, 43, 44, 45).verdict == "not reproduced"
    assert alone.verdict == "undecided"  # half of the interval is 4.8 points


def test_wide_intervals_prove_nothing(claim_file):
    """The t interval of 72, 77 and 85 contains 97; five published runs near 97 do not fit."""
    ours = (72, 77, 85)
    spread = {"min": 96, "median": 97, "max": 98}
    found = judged(claim_file, {**spread, "runs": 5}, *ours)
    assert found.interval[1] > 97 and found.verdict == "not reproduced"  # chance: 2 / 56
    assert judged(claim_file, {**spread, "runs": 3}, *ours).verdict == "undecided"  # 2 / 20
    assert judged(claim_file, {"median": 80, "runs": 5}, *ours).verdict == "undecided"
    wide = {"min": 60, "median": 80, "max": 98, "runs": 5}
    assert judged(claim_file, wide, *ours).verdict == "reproduced"
    assert judged(claim_file, {"median": 80, "runs": 5}, 79, 79.5, 80).verdict == "reproduced"


def test_the_last_published_digit_is_allowed_for(claim_file):
    assert judged(claim_file, {"median": 97.4, "runs": 5}, 97.36, 97.36, 97.36).verdict == (
        "reproduced"
    )
    assert judged(claim_file, {"median": 97.41, "runs": 5}, 97.36, 97.36, 97.36).verdict == (
        "not reproduced"
    )


def test_one_run_and_two(claim_file):
    """Wilson's interval of 50 % of 10,000 images is 49.02 to 50.98."""
    spread = {"min": 45, "median": 47, "max": 49.1, "runs": 5}
    assert judged(claim_file, 50.9, 50).verdict == "reproduced"
    assert judged(claim_file, 51.1, 50).verdict == "not reproduced"
    assert judged(claim_file, spread, 50).verdict == "reproduced"  # the range is touched
    assert judged(claim_file, spread, 50, 50.4).verdict == "not reproduced"
    assert judged(claim_file, spread, 49, 50).interval == pytest.approx((48.52, 50.48), abs=0.01)
    assert judged(claim_file, None, 50).verdict == "nothing published"
    assert judged(claim_file, 50).verdict == "not measured"


def test_the_tolerance_of_an_evaluation(claim_file):
    tolerant = {"command": "evaluate", "tolerance": 0.1}
    assert judged(claim_file, 80.386, 80.48, **tolerant).verdict == "reproduced"
    assert judged(claim_file, 80.386, 80.5, **tolerant).verdict == "not reproduced"


def test_means_are_those_of_each_run(claim_file):
    rows = {"a": {"group": "g"}, "b": {"group": "g"}, "c": {"group": "h"}}
    claim = claim_of(claim_file, rows, "means: {g: 15, overall: 90}\nruns: 3\n")
    runs = {
        "a": {0: 10, 1: 10.5, 2: 11},
        "b": {0: 20, 1: 20, 2: 20},
        "c": {0: 30, 1: 40},
    }
    results = {
        row: {run: Measured(value, 100) for run, value in values.items()}
        for row, values in runs.items()
    }
    found = {one.name: one for one in outcomes(claim, results, claim_file("", "z").parent)}
    assert found["mean: g"].values == {0: 15, 1: 15.25, 2: 15.5}
    assert found["mean: g"].verdict == "reproduced"
    assert found["mean: overall"].values == {0: 20, 1: 23.5}  # run 2 has no c
    assert found["mean: overall"].verdict == "undecided"
    assert found["mean: h"].verdict == "nothing published"


def test_published_figures_keep_their_digits():
    assert str(Published(65.5, 64.7, 66.0)) == "64.7-65.5-66.0"
    assert Published(84.43).rounding == pytest.approx(0.005)


# --- The command --------------------------------------------------------------------------------


def vtab(root):
    """Three tasks in the layout of VTAB-1k: grey squares whose brightness is the class."""
    for folder, classes in (("svhn", 10), ("eurosat", 10), ("dsprites_loc", 16)):
        for part in ("train800val200", "test"):
            place = root / folder / "images" / part
            place.mkdir(parents=True)
            lines = []
            for k in range(classes):
                Image.new("RGB", (32, 32), (15 * k,) * 3).save(place / f"{k}.png")
                lines.append(f"images/{part}/{k}.png {k}\n")
            (root / folder / f"{part}.txt").write_text("".join(lines))
    return root


@pytest.mark.slow
def test_from_end_to_end(claim_file, tmp_path):
    """A right and a wrong figure, means by group, an evaluation alone, a run that fails."""
    base = ROOT / "configs/claims/stand-in/vtab.yaml"
    content = yaml.safe_load(base.read_text())
    content["settings"].update(steps=1, batch=2)
    tasks = claim_file(yaml.safe_dump({**content, "runs": 1, "means": {"overall": 1}}), "v.yaml")
    alone = claim_file(
        f"""
title: a file alone
source: made up
data: pictures
settings: {{model: BiT-Mini, dataset: list}}
rows:
  right: {{command: evaluate, settings: {{crop: 64, resize: 72, filter: bicubic}}, published: 10}}
  fails: {{command: evaluate, settings: {{model: {tmp_path}/damaged.npz}}, published: 10}}
""",
        "alone.yaml",
    )
    (tmp_path / "damaged.npz").write_bytes(b"no model")
    data = vtab(tmp_path / "vtab-1k")
    for part, other in (("train800val200", "train"), ("test", "val")):
        lines = (data / f"svhn/{part}.txt").read_text().split()
        names = [f"{path} {CIFAR10[int(label)]}\n" for path, label in zip(lines[::2], lines[1::2])]
        (data / f"svhn/{other}.txt").write_text("".join(names))
    folders = [f"vtab-1k={data}", f"pictures={data}/svhn"]
    words = [tasks, alone, "--logdir", tmp_path, "--name", "n", "--datadir", *folders]
    done = run_here("reproduce", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "alone fails, run 0: failed with status 2: error: " in done.stdout
    with open(tmp_path / "n/reproduce.csv", newline="") as lines:
        rows = {(row["claim"], row["accuracy"]): row for row in csv.DictReader(lines)}
    right, missing = rows["alone", "right"], rows["alone", "fails"]
    assert right["ours"] == "10.00" and right["verdict"] == "reproduced"
    assert (missing["ours"], missing["verdict"]) == ("", "not measured")
    metrics = json.loads((tmp_path / "n/alone/right/run-0/metrics.json").read_text())
    assert metrics["preprocessing"]["resize"] == 72
    assert metrics["preprocessing"]["centre"] == "even"
    values = [float(rows["v", name]["mean"]) for name in ("svhn", "eurosat", "dsprites-xpos")]
    assert float(rows["v", "mean: overall"]["mean"]) == pytest.approx(np.mean(values), abs=0.01)
    assert rows["v", "mean: structured"]["mean"] == rows["v", "dsprites-xpos"]["mean"]
    page = (tmp_path / "n/reproduce.html").read_text()
    assert 'href="v/svhn/seed-0/train.log"' in page and verdicts.RULE[:60] in page
    assert "http" not in re.sub(r"xmlns\S+|https?://(www\.w3\.org|storage)\S*", "", page)
    assert "bit_paddle" in page and "Python" in page
    assert rows["v", "svhn"]["verdict"] == "not reproduced"
    # Finished runs are kept, and another command's results stay on the page.
    again = bit_paddle.reproduce(
        alone, datadir={"pictures": data / "svhn"}, logdir=tmp_path, name="n", device="cpu"
    )
    assert [one.verdict for one in again.outcomes["alone"]] == ["reproduced", "not measured"]
    assert list(again.failed) == ["alone fails, run 0"]
    assert 'href="v/svhn/seed-0/train.log"' in again.page.read_text()
    # A result of other settings does not count.
    tasks.write_text(tasks.read_text().replace("steps: 1", "steps: 2"))
    done = run_here(
        "reproduce", tasks, "--logdir", tmp_path, "--name", "n", "--datadir", folders[0]
    )
    assert done.returncode == 1 and "holds a run that differs" in done.stdout
    assert "| v | mean: overall | 1.0 |  |  | 0 of 1 |" in done.stdout


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed(number, claim_file, tmp_path):
    """After SIGKILL no process of the run is left, and the same command finishes it."""
    text = DIGITS.replace("steps: 1", "steps: 60, save_every: 5").replace("99.9", "10")
    path = claim_file(text)
    command = [sys.executable, "-W", "ignore", "-m", "bit_paddle.reproduce", path,
               "--logdir", tmp_path]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)  # fmt: skip
    place = tmp_path / "reproduce/tiny/wrong/seed-0"
    wait_until(lambda: list((place / "checkpoints").glob("step-*.npz")), process)
    child = int(re.search(r"process (\d+)", (place / "run.owner").read_text())[1])
    process.send_signal(number)
    assert process.wait(60) == (-9 if number == signal.SIGKILL else 128 + number)
    process.stderr.close()
    wait_until(lambda: not os.path.exists(f"/proc/{child}") or _is_dead(child))
    table = tmp_path / "reproduce/reproduce.md"
    assert table.exists() == (number == signal.SIGTERM)
    if number == signal.SIGTERM:
        assert "not measured" in table.read_text()
        return
    path.write_text(text.replace("published: 10", "published: 11"))
    done = run_here("reproduce", path, "--logdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the run resumes after step" in (place / "train.log").read_text()
    assert "| tiny | wrong | 11.0 |" in table.read_text()


def _is_dead(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_estimate_runs_nothing(tmp_path):
    words = ["--estimate", "--images_per_second", "100", "--logdir", tmp_path / "logs"]
    done = run_here("reproduce", "imagenet", "vtab/R50x1-files", "--seeds", 2, *words)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "logs").exists()
    lines = {line[:42].strip(): line[42:].split() for line in done.stdout.splitlines()}
    assert lines["imagenet R50x1"][:4] == ["1", "of", "1", "7.11"]  # 20,000 x 512 / 100 / 4 GPUs
    assert lines["imagenet R50x1-1shot"][:3] == ["2", "of", "2"]
    assert lines["imagenet R50x1"][4:6] == ["0.4", "GiB"]
    assert lines["vtab/R50x1-files dtd"][:4] == ["2", "of", "2", "unknown"]
    assert "38 runs of unknown length" in done.stdout
    assert re.search(r"downloads: \d+\.\d\d GB in \d+ files", done.stdout)


def test_runs_share_the_gpus(claim_file, tmp_path, monkeypatch):
    """Two GPUs: two runs at a time, and one that takes both."""
    text = "title: x\nsource: y\ncommand: evaluate\nrows: {a: {}, b: {}, c: {gpus: 4}, d: {}}"
    claim = claims_of.read(claim_file(text), "x")
    running, most, taken = [], [], []

    class Child:
        def __init__(self, command, env, **_):
            self.gpus = env["CUDA_VISIBLE_DEVICES"].split(",")
            taken.append(env["CUDA_VISIBLE_DEVICES"])
            assert not set(self.gpus) & {gpu for child in running for gpu in child.gpus}
            running.append(self)
            most.append(len(running))

        def poll(self):
            if len(most) > 1 or len(self.gpus) > 1:
                running.remove(self)
                return 3
            return None

    monkeypatch.setattr(processes, "visible_gpus", lambda: ["0", "5"])
    monkeypatch.setattr(jobs.subprocess, "Popen", Child)
    monkeypatch.setattr(jobs.environment, "machine", lambda: "none")
    told = []
    failed = jobs.carry_out(jobs_of(claim, tmp_path), Interrupt(), told.append)
    assert taken == ["0", "5", "0,5", "0"] and max(most) == 2
    assert list(failed.values()) == [3, 3, 3, 3]
