"""Where a run starts from, and who has its folder."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from bit_paddle.config import parsing
from bit_paddle.config.saved import differences, load_yaml, to_dict, to_yaml
from bit_paddle.config.settings import Settings
from bit_paddle.config.types import BadValue, interval
from bit_paddle.data.readers import registry
from bit_paddle.errors import CheckpointError, ConfigError, MissingFileError
from bit_paddle.models import npz
from bit_paddle.runs import folder as runs_folder
from bit_paddle.runs import history, logbook, results
from bit_paddle.runs.checkpoints import (
    CHECKPOINTS,
    Progress,
    checkpoint_files,
    checkpoint_path,
    open_checkpoint,
    set_aside,
)
from bit_paddle.system import files

DEFAULT = "R14x0.5-digits"
DATA = {"train": "aa", "val": "bb"}
RESULT = {"steps": 9, "top1": 0.5, "top5": 1.0, "loss": 2.5}


@pytest.fixture
def settings(tmp_path):
    """Give settings of a run in tmp_path, some of them changed."""
    usual = Settings(model="R14x0.5", dataset="digits", from_scratch=True, logdir=str(tmp_path))
    return lambda **changes: dataclasses.replace(usual, **changes)


def write_checkpoint(folder, settings, step, /, **changes):
    """Write all of a checkpoint that the choice of a start looks at: its notes."""
    notes = {
        "progress": dataclasses.asdict(Progress(step)),
        "settings": to_dict(settings),
        "data": DATA,
        **changes,
    }
    path = checkpoint_path(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    npz.write(path, [("x", np.zeros(3))], notes)
    return path


def leave(folder, settings, steps=(), result=None):
    """Leave ``folder`` as a run does, with checkpoints after ``steps``; return their files."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / runs_folder.CONFIG).write_text("# the command\n" + to_yaml(settings))
    if result is not None:
        (folder / results.RESULT).write_text(json.dumps(result))
    return [write_checkpoint(folder, settings, step) for step in steps]


def claimed(settings, **options):
    """Return the start, with the folder given back."""
    with runs_folder.claim(settings, **options) as start:
        return start


def refusal(settings, **options):
    """Return the text of the `ConfigError`."""
    with pytest.raises(ConfigError) as caught, runs_folder.claim(settings, **options):
        pass
    return str(caught.value)


def paths(start):
    return [found.path for found in start.checkpoints]


def tree(folder):
    """Return everything below ``folder``: {name: (content, time of change)}."""
    return {
        path.relative_to(folder): (
            path.read_bytes() if path.is_file() else None,
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
    }


# --- Where a run starts from --------------------------------------------------------------------


def test_a_new_folder_has_nothing_to_go_on_from(settings, tmp_path):
    start = claimed(settings(name="run"))
    assert start == runs_folder.Start(tmp_path / "run")
    assert claimed(settings()).folder == tmp_path / DEFAULT


def test_own_checkpoints_come_before_those_of_resume(settings, tmp_path):
    (other,) = leave(tmp_path / "other", settings(), [700])
    asked = settings(name="run", resume=str(other))
    assert paths(claimed(asked)) == [other]  # a new folder
    leave(tmp_path / "run", asked)
    start = claimed(asked)  # begun, but without a checkpoint
    assert paths(start) == [other] and "from the beginning" in " ".join(start.notes)
    own = leave(tmp_path / "run", asked, [20, 10])
    assert paths(claimed(asked)) == [*own, other]  # should all of its own be damaged
    other.unlink()
    assert paths(claimed(asked)) == own
    assert claimed(asked).checkpoints[0].progress == Progress(20)
    begun = dataclasses.replace(asked, resume=None, name="begun")
    leave(tmp_path / "begun", begun)
    assert claimed(begun).checkpoints == ()  # pre-trained, or random: the caller's


def test_resume_takes_a_file_or_the_newest_of_a_folder(settings, tmp_path):
    steps = [100, 100_000_000, 99_999_999]
    old, newest, middle = leave(tmp_path / "other", settings(), steps)
    for resume, expected in (
        (tmp_path / "other", [newest, middle, old]),
        (middle, [middle]),
    ):
        assert paths(claimed(settings(name="run", resume=str(resume)))) == expected
    newest.write_bytes(newest.read_bytes()[:-40])
    resume = settings(name="run", resume=str(tmp_path / "other"))
    assert paths(claimed(resume)) == [middle, old]


def test_resume_refuses_what_holds_no_run(settings, tmp_path):
    leave(tmp_path / "other", settings())
    model = tmp_path / "other" / "model.npz"
    npz.write(model, [("x", np.zeros(3))], {"classes": ["a"]})
    (damaged,) = leave(tmp_path / "damaged", settings(), [3])
    damaged.write_bytes(b"PK\x03\x04 no more")
    for resume, words in (
        (model, ["model.npz", "has a model, but not the state of a run", "with --model instead"]),
        (tmp_path / "nowhere.npz", ["nowhere.npz", "no such"]),
        (tmp_path / "other", ["holds no checkpoint that can be read"]),
        (tmp_path / "damaged", ["holds no checkpoint that can be read", damaged.name]),
        (damaged, [damaged.name, "not a readable .npz"]),
    ):
        text = refusal(settings(name="run", resume=str(resume)))
        assert text.startswith("--resume ") and all(word in text for word in words), text
        assert not (tmp_path / "run").exists()


def test_resume_refuses_other_settings_unless_forced(settings, tmp_path):
    (other,) = leave(tmp_path / "other", settings(seed=7, batch=64), [5])
    for resume in (other, other.parent.parent):
        asked = settings(name="run", resume=str(resume), keep=9)
        text = refusal(asked)
        assert "seed: 7 -> 0" in text and "batch: 64 -> 512" in text and "--force" in text
        assert "keep" not in text
        assert paths(claimed(asked, force=True)) == [other]


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": None},
        {"progress": {"step": 5}},
        {"progress": {"step": -1, "evaluated": -1, "nonfinite": 0, "best": 0.5}},
        {"progress": {"step": 5.0, "evaluated": -1, "nonfinite": 0, "best": 0.5}},
        {"progress": {"step": 5, "evaluated": -1, "nonfinite": 0, "best": 0.5, "more": 1}},
        {"progress": {**dataclasses.asdict(Progress(5)), "loss_scale": 0.0}},
        {"progress": {**dataclasses.asdict(Progress(5)), "loss_scale": 3.0}},
        {"settings": None},
        {"data": []},
    ],
)
def test_notes_that_are_not_those_of_a_run_are_refused(changes, settings, tmp_path):
    path = write_checkpoint(tmp_path, settings(), 5)
    assert open_checkpoint(path).progress == Progress(5)
    write_checkpoint(tmp_path, settings(), 5, **changes)
    with pytest.raises(CheckpointError, match="not the state of a run"):
        open_checkpoint(path)


def test_an_unreadable_checkpoint_is_passed_over_with_a_note(settings, tmp_path):
    first, second, third = leave(tmp_path / "run", settings(), [1, 2, 3])
    third.write_bytes(third.read_bytes()[:100])
    second.write_bytes(b"")
    start = claimed(settings(name="run"), dry=True)
    assert paths(start) == [first] and len(checkpoint_files(tmp_path / "run")) == 3
    assert claimed(settings(name="run")) == start
    assert [third.name in start.notes[0], second.name in start.notes[1]] == [True, True]
    assert all("is skipped" in note and "\n" not in note for note in start.notes)
    # They are put aside, so that they count neither now nor later.
    assert checkpoint_files(tmp_path / "run") == [first]
    assert third.with_name("step-00000003.npz.damaged").stat().st_size == 100
    first.write_bytes(b"")
    start = claimed(settings(name="run"))
    assert (
        not start.checkpoints and len(start.notes) == 2 and "from the beginning" in start.notes[1]
    )


def test_checkpoints_are_in_the_order_of_their_numbers(settings, tmp_path):
    for step in (5, 123_456_789, 99_999_999, 70, 1_000_000_000):
        write_checkpoint(tmp_path, settings(), step)
    for other in ("best.npz", "step-1.npz", "step-00000009.npz.damaged", "step-00000009.npz.part"):
        (tmp_path / CHECKPOINTS / other).touch()
    names = [path.name for path in checkpoint_files(tmp_path)]
    assert names == [
        "step-1000000000.npz",
        "step-123456789.npz",
        "step-99999999.npz",
        "step-00000070.npz",
        "step-00000005.npz",
    ]
    assert checkpoint_files(tmp_path / "nowhere") == []


def test_set_aside_keeps_the_file_but_nobody_tries_it_again(settings, tmp_path):
    old, new = leave(tmp_path / "run", settings(), [1, 2])
    content = new.read_bytes()
    set_aside(new)
    assert paths(claimed(settings(name="run"))) == [old]
    assert new.with_name("step-00000002.npz.damaged").read_bytes() == content
    set_aside(new)  # it is not there: no matter


def test_other_data_is_refused_with_every_difference(settings, tmp_path):
    files = leave(tmp_path / "run", settings(), [5, 3])
    start = claimed(settings(name="run"))
    runs_folder.check_data(start, dict(DATA))
    with pytest.raises(ConfigError) as caught:
        runs_folder.check_data(start, {"train": "a2", "val": "bb", "classes": 3})
    text = str(caught.value)
    assert "train: aa -> a2" in text and "classes: None -> 3" in text and "val" not in text
    assert str(files[0]) in text and "--force" in text
    runs_folder.check_data(
        claimed(settings(name="new")), {"train": "a2"}
    )  # which has no other data


# --- The folder of a run ------------------------------------------------------------------------


def test_a_named_run_goes_on_or_tells_its_result(settings, tmp_path):
    named = settings(name="run")
    files = leave(tmp_path / "run", named, [5, 3])
    assert claimed(named) == runs_folder.Start(
        tmp_path / "run", tuple(open_checkpoint(path) for path in files)
    )
    leave(tmp_path / "run", named, result=RESULT)
    assert claimed(named) == runs_folder.Start(tmp_path / "run", result=RESULT)


@pytest.mark.parametrize("result", [None, RESULT])
def test_a_named_run_of_other_settings_is_refused_unless_forced(result, settings, tmp_path):
    files = leave(tmp_path / "run", settings(base_lr=1e-5, crop=32, precrop=36), [5], result)
    before = tree(tmp_path)
    asked = settings(name="run", seed=3, workers=7, save_every="3", device="cpu")
    text = refusal(asked)
    lines = [line.strip() for line in text.splitlines() if " -> " in line]
    assert lines == [
        "base_lr: 1e-05 -> 0.003",
        "precrop: 36 -> None",
        "crop: 32 -> None",
        "seed: 0 -> 3",
    ]
    assert "--name run" in text and "--force" in text
    after = tree(tmp_path)
    assert {name: after[name][0] for name in before} == {name: before[name][0] for name in before}
    start = claimed(asked, force=True)
    assert paths(start) == files and start.result is None


def test_a_run_that_made_no_step_gives_its_folder_to_other_settings(settings, tmp_path):
    """Also without a name. A line of metrics, a result or an inner run keeps the folder."""
    for name in ("run", DEFAULT):
        leave(tmp_path / name, settings(seed=1))
        (tmp_path / name / "train.log").write_text("the plan")
        (tmp_path / name / logbook.METRICS).touch()
    for named in ({"name": "run"}, {}):
        start = claimed(settings(**named))
        assert start.folder == tmp_path / named.get("name", DEFAULT) and not start.checkpoints
        assert "made no step" in start.notes[0]
    (tmp_path / "run" / logbook.METRICS).write_text('{"kind": "train", "step": 1}\n')
    assert "seed: 1 -> 0" in refusal(settings(name="run"))
    (tmp_path / "run" / logbook.METRICS).unlink()
    leave(tmp_path / "run" / "seed-0", settings())
    assert "seed: 1 -> 0" in refusal(settings(name="run"))
    leave(tmp_path / DEFAULT, settings(seed=1), result=RESULT)
    assert claimed(settings()).folder == tmp_path / f"{DEFAULT}-2"


def test_a_default_name_is_the_first_that_is_free_or_its_own(settings, tmp_path):
    """Finished and other runs are passed by; an unfinished one of these settings goes on."""
    leave(tmp_path / DEFAULT, settings(), [5], RESULT)
    leave(tmp_path / f"{DEFAULT}-2", settings(seed=1), [5])
    assert claimed(settings()) == runs_folder.Start(tmp_path / f"{DEFAULT}-3")
    (tmp_path / f"{DEFAULT}-3").mkdir()
    (tmp_path / f"{DEFAULT}-3" / "thesis.txt").touch()
    assert claimed(settings()) == runs_folder.Start(tmp_path / f"{DEFAULT}-4")
    files = leave(tmp_path / f"{DEFAULT}-4", settings(workers=9, datadir="moved"), [7])
    start = claimed(settings())
    assert start.folder == tmp_path / f"{DEFAULT}-4" and paths(start) == files
    assert claimed(settings(), force=True).folder == tmp_path / f"{DEFAULT}-2"
    assert claimed(settings(seed=1)).folder == tmp_path / f"{DEFAULT}-2"


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"examples_per_class": 5}, "R14x0.5-digits-5shot"),
        ({"examples_per_class": 5, "repeats": 3}, "R14x0.5-digits-5shot-x3"),
        ({"model": "some/where/mine.npz", "dataset": "vtab/pets"}, "mine-vtab-pets"),
        ({"dataset": "folder", "datadir": "/data/pets"}, "R14x0.5-pets"),
    ],
)
def test_default_names(changes, name, settings, tmp_path):
    assert claimed(settings(**changes)).folder == tmp_path / name


def test_a_name_with_something_else_in_it_is_refused(settings, tmp_path):
    (tmp_path / "run").mkdir()
    assert claimed(settings(name="run")).folder == tmp_path / "run"  # an empty one is as good
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "thesis.txt").touch()
    text = refusal(settings(name="run"))
    assert "--name run" in text and "thesis.txt" in text
    assert [
        path.name for path in (tmp_path / "run").iterdir() if path.name != runs_folder.LOCK
    ] == ["thesis.txt"]


@pytest.mark.parametrize(
    "content", [b"model: [R14", b"\xff\xfe\x00", b"- a list\n", b"", b"# the command\n"]
)
def test_a_damaged_config_is_nobody_s_run(content, settings, tmp_path):
    """Its checkpoints are of unknown settings: a named run says so, another takes the next."""
    for name in ("run", DEFAULT):
        leave(tmp_path / name, settings(), [5])
        (tmp_path / name / runs_folder.CONFIG).write_bytes(content)
    assert runs_folder.CONFIG in refusal(settings(name="run"))
    assert claimed(settings()).folder == tmp_path / f"{DEFAULT}-2"


@pytest.mark.parametrize("leftover", ["run.owner.12.part", "config.yaml.12.part", "train.log"])
def test_what_a_process_killed_at_its_start_has_left_is_no_hindrance(leftover, settings, tmp_path):
    """Also where the disk was full: the log is there, the configuration could not be written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / leftover).write_text("the first words")
    (tmp_path / "run" / runs_folder.LOCK).touch()
    (tmp_path / "run" / runs_folder.OWNER).write_text("process 12 on here since 2026-01-01\n")
    assert claimed(settings(name="run")).folder == tmp_path / "run"


@pytest.mark.parametrize("content", [b'{"top1": 0.', b"", b"[1]", b"{}", b'"\xff"', b"[" * 99_999])
def test_a_damaged_result_is_of_no_finished_run(content, settings, tmp_path):
    files = leave(tmp_path / "run", settings(), [5], RESULT)
    assert results.result(tmp_path / "run", settings()) == RESULT
    (tmp_path / "run" / results.RESULT).write_bytes(content)
    start = claimed(settings(name="run"))
    assert start.result is None and paths(start) == files


def test_repeats_are_complete_when_all_are_counted(settings, tmp_path):
    leave(tmp_path, settings(repeats=3), result=RESULT)
    for content, expected in (
        ({**RESULT, "count": 2}, None),
        ({**RESULT, "count": 3}, {**RESULT, "count": 3}),
    ):
        (tmp_path / results.REPEATS).write_text(json.dumps(content))
        assert results.result(tmp_path, settings(repeats=3)) == expected
    assert results.result(tmp_path, settings()) == RESULT


def test_a_claim_that_did_nothing_leaves_no_folder_behind(settings, tmp_path):
    with runs_folder.claim(settings(name="run")) as start:
        assert start.folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), runs_folder.claim(settings()) as start:
        (start.folder / runs_folder.CONFIG).touch()
        (start.folder / "train.log").touch()
        runs_folder.forget(start.folder)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with runs_folder.claim(settings(name="run")) as start:
        (start.folder / "train.log").touch()
    assert {path.name for path in start.folder.iterdir()} == {"train.log", runs_folder.LOCK}


def test_a_dry_claim_touches_nothing(settings, tmp_path):
    files = leave(tmp_path / "run", settings(), [5])
    leave(tmp_path / DEFAULT, settings(), [5], RESULT)
    (tmp_path / "run" / "config.yaml.99.part").touch()
    before = tree(tmp_path)
    assert paths(claimed(settings(name="run"), dry=True)) == files
    assert claimed(settings(), dry=True).folder == tmp_path / f"{DEFAULT}-2"
    assert claimed(settings(name="new", logdir=str(tmp_path / "a/b")), dry=True).folder.name
    assert "seed: 0 -> 1" in refusal(settings(name="run", seed=1), dry=True)
    assert tree(tmp_path) == before


def test_what_a_killed_process_was_writing_is_removed(settings, tmp_path):
    leave(tmp_path / "run", settings(), [5])
    folder, checkpoints = tmp_path / "run", tmp_path / "run" / CHECKPOINTS
    leftovers = [
        folder / "result.json.77.part",
        checkpoints / "step-00000006.npz.77.part",
        checkpoints / "best.npz.77.part",
    ]
    for path in leftovers:
        path.write_text("begun")
    (checkpoints / "best.npz").touch()
    claimed(settings(name="run"))
    assert not any(path.exists() for path in leftovers)
    assert {path.name for path in checkpoints.iterdir()} == {"best.npz", "step-00000005.npz"}


@pytest.mark.parametrize("logdir", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_named(logdir, settings, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "run").touch()
    text = refusal(settings(name="run", logdir=str(tmp_path / logdir)))
    assert "--logdir" in text and str(tmp_path / logdir) in text
    assert "a file is in its place" in refusal(settings(name="run"))


def test_settings_come_back_from_their_file_unchanged(settings, tmp_path):
    unusual = settings(base_lr=1e-5, val_fraction=0.1, batch_split=2, flip=False, seed=10**12)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(unusual))
    assert load_yaml(path) == to_dict(unusual)
    assert differences(load_yaml(path), unusual) == []
    with pytest.raises(MissingFileError):
        load_yaml(tmp_path / "nowhere.yaml")


# --- The lock -----------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from bit_paddle.config.saved import to_yaml
from bit_paddle.config.settings import Settings
from bit_paddle.system import files
from bit_paddle.runs import folder
settings = Settings(**eval(sys.argv[1]))
with folder.claim(settings) as start:
    files.write_text(start.folder / folder.CONFIG, to_yaml(settings))
    print(start.folder.name, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(settings):
    """Have another process hold the folder of ``settings``; yield it, and the folder's name."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, repr(to_dict(settings))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_a_run_has_its_folder_for_itself_while_it_lives(settings, tmp_path):
    named = settings(name="run")
    with held(named) as (process, name):
        assert name == "run"
        for asked in (named, settings(name="run", seed=1)):  # a name is refused in any case
            text = refusal(asked, force=True)
            assert f"process {process.pid} on {socket.gethostname()} since 20" in text
            assert "--name" in text
        assert claimed(named, dry=True).folder == tmp_path / "run"  # that only looks
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert (tmp_path / "run" / runs_folder.OWNER).exists()  # nobody was left to remove it
        with runs_folder.claim(named) as start:  # at once
            assert f"process {os.getpid()} " in (start.folder / runs_folder.OWNER).read_text()
            assert start.folder.name == "run" and "from the beginning" in " ".join(start.notes)
    assert not (tmp_path / "run" / runs_folder.OWNER).exists()


def test_a_living_run_without_a_name_is_not_begun_twice(settings):
    """Nor is a run of other settings held up by it."""
    with held(settings()) as (process, name):
        assert name == DEFAULT
        text = refusal(settings(workers=11))
        assert f"process {process.pid} on" in text and DEFAULT in text
        assert claimed(settings(seed=1)).folder.name == f"{DEFAULT}-2"
        process.communicate("")
    assert claimed(settings()).folder.name == DEFAULT


def test_of_many_at_once_each_gets_a_folder_of_its_own(settings):
    together = threading.Barrier(8, timeout=20)

    def take(seed):
        together.wait()
        with runs_folder.claim(settings(seed=seed)) as start:
            files.write_text(start.folder / runs_folder.CONFIG, to_yaml(settings(seed=seed)))
            together.wait()
            return start.folder.name

    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(take, range(8)))
    assert names == {DEFAULT, *(f"{DEFAULT}-{number}" for number in range(2, 9))}


def test_two_never_have_a_folder_at_once_though_each_removes_it(settings, tmp_path):
    """Whoever has it finds it there; the others are told that it is taken, and nothing else."""
    counts = SimpleNamespace(inside=0, had=0)
    faults = []

    def take(_):
        for _ in range(200):
            try:
                with runs_folder.claim(settings(name="run")) as start:
                    counts.inside += 1
                    counts.had += 1
                    if counts.inside != 1 or not (start.folder / runs_folder.LOCK).exists():
                        faults.append(f"{counts.inside} have it")
                    (start.folder / "x").touch()
                    (start.folder / "x").unlink()
                    counts.inside -= 1
            except ConfigError as error:
                if "is in use by" not in str(error):
                    faults.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take, range(4)))
    assert counts.had >= 4 and not faults, f"{len(faults)} faults, such as: {faults[0]}"
    assert list(tmp_path.iterdir()) == []


# --- The interval of checkpoints ----------------------------------------------------------------


@pytest.mark.parametrize(
    "word, expected",
    [
        ("500", (500, np.inf)),
        ("1", (1, np.inf)),
        ("10m", (np.inf, 600)),
        ("0.5m", (np.inf, 30)),
    ],
)
def test_intervals(word, expected):
    assert interval(word) == expected


@pytest.mark.parametrize(
    "word", ["0", "-5", "-1m", "0m", "m", "x", "10s", "1.5", "", "nan m", "nanm", "infm", "1e999m"]
)
def test_bad_intervals(word):
    with pytest.raises(BadValue, match="expected"):
        interval(word)
    with pytest.raises(ConfigError, match=r"--save_every: is "):
        parsing.parse(
            ["--model=R14x0.5", "--dataset=digits", "--from_scratch", f"--save_every={word}"],
            "train",
            registry.find,
        )


def test_repeats_and_a_single_run_do_not_share_a_folder(settings, tmp_path):
    leave(tmp_path / "run", settings(name="run"), [5])
    with pytest.raises(ConfigError, match="holds a run with --repeats 1"):
        claimed(settings(name="run", repeats=2), force=True)
    leave(tmp_path / "many", settings(name="many", repeats=3))
    with pytest.raises(ConfigError, match="holds a run with --repeats 3"):
        claimed(settings(name="many"))
    assert claimed(settings(name="many", repeats=5)).folder == tmp_path / "many"


def test_a_model_without_a_checkpoint_is_not_begun_again(settings, tmp_path):
    """As a version before there were checkpoints has left it."""
    named = settings(name="run")
    leave(tmp_path / "run", named)
    (tmp_path / "run/model.npz").touch()
    with pytest.raises(ConfigError, match="holds a trained model"):
        claimed(named)


def test_history_reads_the_plan_from_its_file_and_else_from_the_log(tmp_path):
    said = [
        "model         R14x1",
        "schedule      1,500 steps: warm-up 2",
        "bit_paddle 0.1.0, Paddle 3",
    ]
    assert history._plan(tmp_path, said) == ("\n".join(said[:2]), 1500)
    (tmp_path / history.PLAN).write_text('{"rows": [["model", "R50x1"]], "steps": 7}')
    assert history._plan(tmp_path, said) == ("model         R50x1", 7)
    for damaged in ('{"rows": 3}', "[" * 100_000):
        (tmp_path / history.PLAN).write_text(damaged)
        with pytest.raises(ConfigError, match="plan.json"):
            history._plan(tmp_path, said)
