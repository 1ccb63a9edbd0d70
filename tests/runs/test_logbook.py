"""What a run writes about itself, on disks and terminals that fail too."""

import json
import math
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from conftest import ROOT

from bit_paddle.errors import ConfigError, WriteError
from bit_paddle.runs import logbook
from bit_paddle.system import files


@contextmanager
def file_size_limit(size):
    """No file grows beyond ``size`` bytes: what a full disk is, for every user."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- Folders ------------------------------------------------------------------------------------


def test_of_many_at_once_each_gets_a_folder(tmp_path):
    for round in range(20):
        logdir = str(tmp_path / str(round))
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(files.create_folder, logdir, "run", "x.txt") for _ in range(8)]
        folders = [future.result() for future in asked]
        names = {folder.name for folder in folders}
        assert names == {"run", *(f"run-{number}" for number in range(2, 9))}
        assert all((folder / "x.txt").exists() for folder in folders)


def test_a_folder_with_something_in_it_is_passed_by(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    (tmp_path / "run-2").mkdir()
    assert files.create_folder(str(tmp_path), "run", "x.txt") == tmp_path / "run-2"
    assert files.create_folder(str(tmp_path / "a/b"), "run", "x.txt") == tmp_path / "a/b/run"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a file is in its place"):
        files.create_folder(str(tmp_path), "file", "x.txt")
    for logdir in (tmp_path / "file", "/proc/nothing/here"):
        with pytest.raises(ConfigError, match=f"--logdir {logdir}: .*cannot be written"):
            files.create_folder(str(logdir), "run", "x.txt")


# --- A file that grows --------------------------------------------------------------------------


def test_what_cannot_be_written_is_kept_and_written_later_in_its_place(tmp_path):
    """Also the rest of a line that was written in part."""
    path = tmp_path / "x"
    path.write_bytes(b"before ")
    file = logbook.GrowingFile(path)
    file.write(b"a" * 40)
    assert file.error is None
    with file_size_limit(60):
        file.write(b"0123456789" * 3)
        assert path.stat().st_size == 60 and file.error.strerror == "File too large"
        file.write(b"more ")
        file.write()
        assert path.stat().st_size == 60 and file.error is not None
    file.write(b"end")
    assert file.error is None
    expected = b"before " + b"a" * 40 + b"0123456789" * 3 + b"more end"
    assert path.read_bytes() == expected
    with file_size_limit(60):
        file.write(b" last")
        assert path.read_bytes() == expected
    with pytest.raises(OSError, match="File too large"):  # not all of it is on the disk
        file.sync()
    file.close()  # the last attempt
    assert path.read_bytes() == expected + b" last"


def test_a_full_disk_ends_nothing_and_missing_says_what_is_not_there(tmp_path):
    with logbook.Logbook(tmp_path) as log:
        log.rewind(0, -1)
        log.say("started")
        size = (tmp_path / "train.log").stat().st_size
        assert log.missing() == []
        with file_size_limit(size + 10):
            log.say("no room")
            for step in (1, 2):
                log.metrics("train", step, loss=0.5)
            with pytest.raises(WriteError, match="metrics.jsonl"):
                log.sync()
            assert log.missing() == [
                f"part of {tmp_path / name} (File too large)"
                for name in ("train.log", "metrics.jsonl", logbook.SCALARS)
            ]
        assert log.missing() == []
    assert [line[20:] for line in (tmp_path / "train.log").read_text().splitlines()] == [
        "started",
        "no room",
    ]
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]
    assert scalars(tmp_path) == expected_scalars(lines_of(tmp_path))


# --- Metrics ------------------------------------------------------------------------------------


def lines_of(folder):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def scalars(folder):
    """Return what VisualDL shows: {tag: [(step, value, milliseconds)]}."""
    from visualdl import LogReader

    reader = LogReader(file_path=str(folder / logbook.SCALARS))
    return {
        tag: [
            (item.id, pytest.approx(item.value, rel=1e-6), item.timestamp)
            for item in reader.get_data("scalar", tag)
        ]
        for tag in reader.get_tags().get("scalar", [])
    }


def expected_scalars(lines):
    found = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("kind", "step", "time") and value is not None:
                shown = (line["step"], value, round(1000 * line["time"]))
                found.setdefault(f"{line['kind']}/{name}", []).append(shown)
    return found


def write_run(folder, steps, every=2):
    """Write the metrics of a run: a line a step, and a validation after ``every`` steps."""
    with logbook.Logbook(folder) as log:
        log.rewind(0, -1)
        for step in range(1, steps + 1):
            log.metrics("train", step, loss=1 / step, lr=0.1)
            if step % every == 0:
                log.metrics("val", step, loss=2 / step, top1=0.25, images=1234567)


def kinds(folder):
    return [(line["kind"], line["step"]) for line in lines_of(folder)]


def test_visualdl_shows_what_the_lines_say(tmp_path):
    write_run(tmp_path, 4)
    assert scalars(tmp_path) == expected_scalars(lines_of(tmp_path))
    assert set(scalars(tmp_path)) == {
        "train/loss",
        "train/lr",
        "val/loss",
        "val/top1",
        "val/images",
    }


@pytest.mark.parametrize(
    "step, evaluated, left",
    [
        (4, 4, ["train 1", "train 2", "val 2", "train 3", "train 4", "val 4"]),
        (4, 2, ["train 1", "train 2", "val 2", "train 3", "train 4"]),
        (3, 2, ["train 1", "train 2", "val 2", "train 3"]),
        (0, -1, []),
    ],
)
def test_rewind_takes_back_later_steps(step, evaluated, left, tmp_path):
    """With what follows, each step is there once, and VisualDL has the same."""
    write_run(tmp_path, 5)
    before = lines_of(tmp_path)
    (tmp_path / "vdlrecords.1234.log").touch()  # of an older version of this package
    with logbook.Logbook(tmp_path) as log:
        log.rewind(step, evaluated)
        assert [" ".join(map(str, one)) for one in kinds(tmp_path)] == left
        assert all(line in before for line in lines_of(tmp_path))
        log.metrics("train", step + 1, loss=9.0)
        log.metrics("val", step + 1, top1=0.5)
    assert kinds(tmp_path)[len(left) :] == [("train", step + 1), ("val", step + 1)]
    assert scalars(tmp_path) == expected_scalars(lines_of(tmp_path))
    assert [path.name for path in tmp_path.glob("vdlrecords*")] == [logbook.SCALARS]


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    write_run(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with logbook.Logbook(tmp_path) as log:
        log.rewind(3, 3)
        log.metrics("train", 3, loss=0.0)
    assert kinds(tmp_path) == [("train", 1), ("train", 2), ("val", 2), ("train", 3)]
    assert scalars(tmp_path) == expected_scalars(lines_of(tmp_path))
    assert not (tmp_path / "train.log").read_text()  # not worth a word


GARBAGE = [
    b"\x00\xff\xfe",
    b"[1, 2]",
    b"null",
    b"{}",
    b'{"kind": "train"}',
    b'{"kind": "train", "step": 1.5}',
    b'{"kind": "train", "step": true}',
    b'{"kind": "train", "step": -1}',
    b'{"kind": "other", "step": 1}',
    b'{"kind": ["train"], "step": 1}',
    b'{"kind": "train", "step": 1' + b"0" * 30 + b"}",
    b"[" * 100_000,
]


def test_garbage_is_left_out_and_counted(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(
        b"\n".join([b'{"kind": "train", "step": 1, "loss": 0.5}', *GARBAGE]) + b"\n"
    )
    lines, unreadable = logbook.read_metrics(tmp_path / "metrics.jsonl")
    assert lines == [{"kind": "train", "step": 1, "loss": 0.5}] and unreadable == len(GARBAGE)
    with logbook.Logbook(tmp_path) as log:
        log.rewind(9, 9)
    assert lines_of(tmp_path) == lines
    words = f"{len(GARBAGE)} lines of metrics.jsonl could not be read"
    assert words in (tmp_path / "train.log").read_text()
    assert logbook.read_metrics(tmp_path / "nothing") == ([], 0)
    with pytest.raises(WriteError, match="cannot be read"):
        logbook.read_metrics(tmp_path)


def test_odd_values_of_readable_lines_are_no_obstacle(tmp_path):
    """VisualDL is given what it can show; the lines stay as they are."""
    odd = [
        {"kind": "train", "step": 1, "loss": None, "time": None},
        {"kind": "train", "step": 2, "loss": "high", "lr": [1], "on": True, "é": 1.0},
        {"kind": "train", "step": 3, "loss": 0.5, "big": 10**400, "time": "now"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in odd))
    with logbook.Logbook(tmp_path) as log:
        log.rewind(9, 9)
    assert lines_of(tmp_path) == odd
    assert scalars(tmp_path) == {"train/loss": [(3, 0.5, 0)]}


def test_what_is_not_finite_is_null(tmp_path):
    with logbook.Logbook(tmp_path) as log:
        log.rewind(0, -1)
        log.metrics("train", 1, loss=math.nan, lr=0.1, other=-math.inf)
    (line,) = lines_of(tmp_path)
    assert line["loss"] is None and line["other"] is None and line["lr"] == 0.1
    assert set(scalars(tmp_path)) == {"train/lr"}


# --- The log and the console --------------------------------------------------------------------


def test_the_log_goes_on_where_it_ended(tmp_path, capsys):
    for text in ("one\ntwo", "three \udcff"):
        with logbook.Logbook(tmp_path) as log:
            log.say(text, console=text.isascii())  # `run_command` sees to the rest
            log.say("quietly", console=False)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["one", "two", "quietly", "three \\udcff", "quietly"]
    assert "one\ntwo\n" in capsys.readouterr().out


SAY = """
import sys
from pathlib import Path
from bit_paddle import errors
from bit_paddle.runs import logbook

def command(arguments):
    with logbook.Logbook(Path(arguments[0])) as log:
        for k in range(3):
            log.say(f"line {k}")
    return 0

sys.exit(errors.run_command(command, sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["broken pipe", "full", "closed"])
def test_a_console_that_has_gone_away_ends_nothing(how, tmp_path):
    command = [sys.executable, "-c", SAY, str(tmp_path)]
    if how == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        stdout = os.open(os.devnull, os.O_WRONLY)
    elif how == "full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(stdout)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["line 0", "line 1", "line 2"], done.stderr
    assert (done.returncode, done.stderr) == (0, "")


def test_metrics_of_any_time_and_size_are_taken_back_without_an_error(tmp_path):
    times = [1e308, -1e300, 1e18, True, None, "noon"]
    lines = [{"kind": "train", "step": k, "loss": 1, "time": time} for k, time in enumerate(times)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with logbook.Logbook(tmp_path) as log:
        log.rewind(9, 9)
    assert logbook.read_metrics(tmp_path / "metrics.jsonl") == (lines, 0)


def test_silent_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with logbook.Silent() as log:
        log.rewind(3, 2)
        log.say("x")
        log.metrics("train", 1, loss=0.5)
        log.sync()
        with log.timed("part"):
            pass
        assert log.missing() == [] and "part" in log.timings()
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")
