"""The word ``bit_paddle`` in a shell: its commands, their old names, and completion."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from bit_paddle import __main__ as word
from bit_paddle import __version__, catalog, errors

COMPLETE = """
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMPREPLY=()
COMP_POINT=${#COMP_LINE}
$(complete -p bit_paddle | grep -o '_shtab_[a-z_]*')
printf '%s\\n' "${COMPREPLY[@]}"
"""


def shell(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bit_paddle", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


def test_a_command_is_its_module(capsys):
    assert word.main(["catalog", "CIFAR10"]) == 0
    found = capsys.readouterr().out
    assert catalog.main(["CIFAR10"]) == 0
    assert capsys.readouterr().out == found and "BiT-M-R50x1-CIFAR10" in found


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(arguments, capsys):
    assert word.main(arguments) == 0
    assert re.findall(r"^  (\w+) ", capsys.readouterr().out, re.M) == list(word.COMMANDS)


def test_version(capsys):
    assert word.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bit_paddle {__version__}\n"


def test_an_unknown_word_suggests_the_nearest():
    done = shell("trian", "--model", "BiT-Mini")
    assert done.returncode == 2 and "did you mean train" in done.stderr
    assert "Traceback" not in done.stderr and "Traceback" in shell("trian", "--traceback").stderr


def test_a_fault_of_a_command_has_its_status():
    done = shell("train", "--modle", "BiT-Mini")
    assert done.returncode == 2 and "did you mean --model" in done.stderr


def test_without_paddle_a_command_tells_how_to_install_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['paddle'] = None\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = shell(
        *("plan", "--dataset", "digits", "--model", "BiT-Mini", "--gpu_memory", "16"),
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr  # what needs no Paddle works
    done = shell(
        *("predict", ROOT / "docs" / "profile.png", "--model", "BiT-Mini"),
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 2 and "paddle cannot be imported" in done.stderr
    done = shell(
        *("train", "--dataset", "digits", "--model", "BiT-Mini", "--logdir", tmp_path / "runs"),
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 2 and "PaddlePaddle is not installed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("old, new", word.OLD_NAMES.items())
def test_old_names_are_answered_with_the_new_one(old, new):
    done = shell(old, "--help")
    assert done.returncode == 0 and f"bit_paddle {new}" in done.stderr
    assert f"usage: python -m bit_paddle.{new}" in done.stdout


def test_the_console_script_leaves_with_the_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bit_paddle", "plan", "--model", "x"])
    with pytest.raises(SystemExit) as left:
        word.script()
    assert left.value.code == 2 and "x" in capsys.readouterr().err


def test_downloads_end_without_waiting_for_a_server(monkeypatch):
    """As ``python command.py`` does, by whatever name the command is called."""
    from bit_paddle import download

    class Left(BaseException):
        pass

    def leave(arguments):
        raise Left(arguments)

    monkeypatch.setattr(download, "script", leave)
    for name in ("download", "bulk"):
        monkeypatch.setattr(sys, "argv", ["bit_paddle", name, "--dry-run"])
        with pytest.raises(Left, match="--dry-run"):
            word.script()


def completion_script(name, folder):
    """Write the completion script of a shell that is here; return its path."""
    if not shutil.which(name):
        pytest.skip(f"no {name}")
    done = shell("--print-completion", name)
    assert done.returncode == 0, done.stderr
    (folder / "script").write_text(done.stdout)
    return folder / "script"


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    return completion_script("bash", tmp_path_factory.mktemp("completion"))


@pytest.mark.parametrize("name", word.SHELLS)
def test_completion_is_valid(name, tmp_path):
    path = completion_script(name, tmp_path)
    done = subprocess.run([name, "-n", path], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize(
    "words, expected",
    [
        ("tr", {"train"}),
        ("train --mod", {"--model"}),
        ("train --model BiT-Mi", {"BiT-Mini"}),
        ("train --model BiT-Mini --dataset dig", {"digits"}),
        ("pretrain --amp b", {"bf16"}),
        ("plan --gpu", {"--gpu_memory", "--gpus"}),
        ("plan --mod", {"--model"}),  # of train, whose flags it takes too
        ("show --image", {"--images"}),
        ("evaluate --model hubcon", {"hubconf.py"}),
        ("export --format on", {"onnx"}),
        ("report bit_l", {"bit_logs"}),
    ],
)
def test_completion_in_bash(bash_script, words, expected):
    command = ["bash", "-c", COMPLETE, "bash", bash_script, "bit_paddle", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == expected and not done.stderr, done.stderr


def test_completion_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(errors.ConfigError, match=r"needs shtab: pip install"):
        word.main(["--print-completion", "bash"])
    with pytest.raises(errors.ConfigError, match="choose from bash, zsh"):
        word.main(["--print-completion", "fish"])
