"""The committed results: what the pages say is what the tables of all seeds give."""

import csv
import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

LOGS = ROOT / "bit_logs"
SCRIPTS = {
    "transfer": ["transfer_table.py", "{}"],
    "parts": ["rule_parts.py", "--logdir", "{}"],
}
BENCHES = {
    "probe": ["probe.py", "--logdir", "{}"],
    "heads": ["heads.py", "--logdir", "{}"],
    "distill": ["distill.py", "--logdir", "{}"],
    "blood-cells": ["detection.py", "--logdir", "{}"],
    "scenes": ["detection.py", "--logdir", "{}"],
    "speed": ["speed.py", "--logdir", "{}"],
}
RUNS = {"transfer": 24, "parts": 16}
SPREAD = re.compile(r"\d+\.\d-\*\*\d+\.\d\*\*-\d+\.\d")


def draw(claim, folder):
    """Run the script of a claim on a folder; return what it prints."""
    words = [word.format(folder) for word in {**SCRIPTS, **BENCHES}[claim]]
    command = [sys.executable, "-W", "ignore", ROOT / "scripts/benchmarks" / words[0], *words[1:]]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("claim", SCRIPTS)
def test_the_table_follows_from_every_seed(claim, tmp_path):
    with open(LOGS / claim / "runs.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = {row["run"] for row in rows}
    assert len(names) == RUNS[claim] and len(rows) == 5 * len(names)
    assert {row["seed"] for row in rows} == set("01234")
    shutil.copy(LOGS / claim / "runs.csv", tmp_path)
    assert draw(claim, tmp_path) == (LOGS / claim / "table.md").read_text()


@pytest.mark.parametrize("claim", SCRIPTS)
def test_the_table_of_real_runs(claim, tmp_path):
    """Of the folders that --repeats writes, which win over an older runs.csv."""
    with open(LOGS / claim / "runs.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        path = tmp_path / row["run"] / "repeats.json"
        path.parent.mkdir(exist_ok=True)
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        numbers = {key: json.loads(value) for key, value in row.items() if key != "run"}
        path.write_text(json.dumps({"count": len(runs) + 1, "runs": [*runs, numbers]}))
    (tmp_path / "runs.csv").write_text("run,seed,top1\nolder,0,0.1\n")
    assert draw(claim, tmp_path) == (LOGS / claim / "table.md").read_text()
    assert (tmp_path / "runs.csv").read_text() == (LOGS / claim / "runs.csv").read_text()


@pytest.mark.parametrize("claim", BENCHES)
def test_the_table_of_a_bench(claim, tmp_path):
    """It follows from the values of all runs."""
    for path in (LOGS / claim).iterdir():
        if path.suffix in (".csv", ".json"):
            shutil.copy(path, tmp_path)
    assert draw(claim, tmp_path) == (LOGS / claim / "table.md").read_text()


def test_pages_quote_the_tables():
    """Each row of lowest, median and highest, in whatever language, is one of a table."""
    known = {
        tuple(SPREAD.findall(line))
        for claim in SCRIPTS
        for line in (LOGS / claim / "table.md").read_text().splitlines()
    }
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    quoted = {
        (page.name, row)
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if len(row := tuple(SPREAD.findall(line))) > 1
    }
    assert quoted and not {row for _, row in quoted} - known, quoted


def test_pages_quote_the_table_of_speeds():
    """Its first table, and the range of the ratios of a training step."""
    table = (LOGS / "speed/table.md").read_text()
    section = (ROOT / "docs/speed.md").read_text().split("## Compared with others")[1]
    first, quoted = (
        [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
        for text in (table, section)
    )
    assert len(first) > 2 and quoted == first
    span = re.search(r"training step takes (\S+) to (\S+) of the time", table).groups()
    for page in ("README.md", "README.zh-CN.md", "docs/results.md"):
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if "scripts/benchmarks/step.py" in line]
        found = re.findall(r"(\d\.\d\d) (?:to|到) (\d\.\d\d)", "\n".join(lines))
        assert found == [span], page


def test_no_run_of_a_page_takes_a_committed_folder():
    """Its command would fail in a fresh clone."""
    committed = {path.name for path in LOGS.iterdir() if path.is_dir()}
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        names = set(re.findall(r"--name (\S+)", page.read_text(encoding="utf-8")))
        assert not names & committed, page


def test_what_is_committed_is_listed():
    """And is little; a folder of a user's run does not come in between."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "bit_logs"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a clone")
    files = set(done.stdout.split()) - {"bit_logs/README.md"}
    assert 0 < len(files) <= 30
    page = (LOGS / "README.md").read_text()
    for file in files:
        assert file.rpartition("/")[2] in page and file.split("/")[1] in page, file
    linked = {f"bit_logs/{path}" for path in re.findall(r"\]\(([^)#]+)\)", page)}
    assert linked <= files
    ignored = ["bit_logs/R50x1-pets/train.log", "bit_logs/my-transfer/runs.csv"]
    done = subprocess.run(
        ["git", "check-ignore", *ignored, *files, "--no-index"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ignored
