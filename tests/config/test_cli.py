"""Settings from files and flags; every fault in one message."""

import pytest

from bit_paddle import evaluate
from bit_paddle.config import parsing
from bit_paddle.config.saved import to_yaml
from bit_paddle.config.settings import Settings
from bit_paddle.data.readers import registry
from bit_paddle.errors import ConfigError, MissingFileError

BASE = ["--model", "R50x1", "--from_scratch", "--dataset", "digits"]


def parse(*arguments):
    return parsing.parse([str(word) for word in arguments], "train", registry.find)[0]


def test_model_and_dataset_are_enough():
    settings = parse(*BASE)
    assert (settings.batch, settings.base_lr, settings.rule, settings.save) == (
        512,
        0.003,
        "code",
        True,
    )


def test_every_flag_of_the_reference_code(tmp_path):
    words = (
        "--model R50x1 --from_scratch --dataset cifar10 --name n --logdir l --bit_pretrained_dir p "
        f"--datadir {tmp_path} --examples_per_class 3 --examples_per_class_seed 4 --batch 64 "
        "--batch_split 2 "
        "--base_lr 1e-2 --eval_every 5 --workers 0 --no-save"
    )
    assert parse(*words.split()) == Settings(
        "R50x1",
        "cifar10",
        from_scratch=True,
        name="n",
        logdir="l",
        bit_pretrained_dir="p",
        datadir=str(tmp_path),
        examples_per_class=3,
        examples_per_class_seed=4,
        batch=64,
        batch_split=2,
        base_lr=0.01,
        eval_every=5,
        workers=0,
        save=False,
    )


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: R50x1\nfrom_scratch: true\ndataset: digits\nbatch: 64\nbase_lr: 1e-3\nsave: false\n"
    )
    settings = parse("--config", file, "--batch", 32)
    assert (settings.batch, settings.base_lr, settings.save) == (32, 0.001, False)


def test_written_settings_come_back(tmp_path):
    settings = parse(
        *BASE, "--batch", 96, "--batch_split", 3, "--steps", 7, "--name", "123", "--no-save"
    )
    file = tmp_path / "c.yaml"
    file.write_text("# a comment\n" + to_yaml(settings))
    assert parse("--config", file) == settings


def test_all_faults_at_once(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("bacth: 3\nworkers: -1\nbase_lr: [1]\n")
    with pytest.raises(ConfigError) as caught:
        parse(
            "--config",
            file,
            "--modle",
            "x",
            "--dataset",
            "cifar-10",
            "--batch",
            "10",
            "--batch_split",
            "4",
            "--rule",
            "papr",
            "--steps",
            "0",
            "--base_lr",
            "nan",
            "--crop",
            "64",
            "--seed",
            "one",
        )
    message = str(caught.value)
    for words in (
        "--modle: no such flag; did you mean --model",
        "'bacth' is no setting; did you mean batch",
        "workers: is -1, expected at least 0",
        "base_lr is [1], expected one value",
        "did you mean cifar10",
        "--batch_split: is 4, which does not divide --batch 10; 2 or 5",
        "--rule: is 'papr': did you mean paper",
        "--steps: is 0, expected at least 1",
        "--base_lr: is nan, expected a positive number",
        "--precrop and --crop: only one",
        "--seed: is 'one', expected a whole number",
        "--model: is required",
        "12 faults",
    ):
        assert words in message, words


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--batch"], "expected one argument"),
        (["--precrop", 32, "--crop", 64], "smaller than --crop 64"),
        (["--name", "a/b"], "expected a folder's name"),
        (["--name", ""], "is empty"),
        (["stray"], "does not belong to a flag"),
        (["--model", "R50x1.3"], "do not divide into the 32 groups"),
        (["--model", "R51x1"], "unknown model"),
        (["--model", "x.npz"], "no such checkpoint file"),
        (["--device", "tpu"], "is 'tpu'"),
        (["--nproc", 3, "--batch", 2], "--nproc: is 3, more than --batch 2"),
        (["--precrop", 40, "--crop", "x"], "^--crop: is 'x', expected a whole number$"),
        (["--batch", "x", "--batch_split", 3, "--nproc", 600], "^--batch: is 'x', expected .*$"),
        (["--lr", 0.1], "^--lr: no such flag; did you mean .*--base_lr.*$"),
        (["--zzz"], "^--zzz: no such flag; choose from -h, --help, --config, --model, .*"),
    ],
)
def test_faults(arguments, words):
    with pytest.raises(ConfigError, match=words):
        parse(*BASE, *arguments)


def test_architectures_have_no_weights():
    with pytest.raises(ConfigError, match=r"BiT-S-R50x1.*--from_scratch"):
        parse("--model", "R50x1", "--dataset", "digits")


def test_a_checkpoint_is_not_scratch(small_checkpoint):
    with pytest.raises(ConfigError, match="--from_scratch would not read"):
        parse("--model", small_checkpoint, "--dataset", "digits", "--from_scratch")


@pytest.mark.parametrize(
    "content",
    ["- a\n- b", "just words", "a: [", "\x00", "a: {b: c}\nb: !!python/object:os.system {}"],
)
def test_files_that_are_no_settings(content, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match="c.yaml"):
        parse("--config", file, *BASE)


def test_missing_config(tmp_path):
    with pytest.raises(MissingFileError, match="nothing.yaml"):
        parse("--config", tmp_path / "nothing.yaml")


def test_flags_win_over_the_file_both_ways(tmp_path):
    """A switch can be turned back, and an optional value taken back."""
    file = tmp_path / "c.yaml"
    file.write_text("model: R50x1\nfrom_scratch: true\ndataset: digits\nsave: false\nsteps: 5\n")
    settings = parse("--config", file, "--save", "--steps", "none")
    assert settings.save and settings.steps is None and settings.from_scratch
    with pytest.raises(ConfigError, match="without weights"):
        parse("--config", file, "--no-from_scratch")


def test_divisors_of_a_huge_batch_are_found_at_once():
    with pytest.raises(ConfigError, match="5 or 8 would"):
        parse(*BASE, "--batch", 10**12, "--batch_split", 7)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dataset", "folder"], "is required by --dataset folder"),
        (["--datadir", "x"], "comes with scikit-learn"),
    ],
)
def test_data_folders_belong_to_data_sets(arguments, words):
    with pytest.raises(ConfigError, match=words):
        parse(*BASE, *arguments)


def test_a_misspelt_required_flag_gets_a_suggestion():
    with pytest.raises(ConfigError) as caught:
        evaluate.parser().parse_args(["--model", "x", "--datasett", "digits"])
    assert str(caught.value).startswith("--datasett: no such flag; did you mean --dataset")
    assert "required: --dataset;" in str(caught.value)
    with pytest.raises(ConfigError, match="^the following arguments are required: --dataset;"):
        evaluate.parser().parse_args(["--model", "x"])
