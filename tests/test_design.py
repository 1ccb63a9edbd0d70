"""The architecture, where `lint-imports` cannot see it: circles, sizes, what loads Paddle.

Which room may import which is a contract in pyproject.toml.
"""

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import bit_paddle

NEED_PADDLE = {
    *(f"models.{name}" for name in ("layers", "network", "resnetv2", "stages", "weights")),
    *(f"models.detection.{name}" for name in ("faster_rcnn", "heads", "losses")),
    *(f"models.detection.{name}" for name in ("pyramid", "regions", "retinanet", "weights")),
    *(f"models.native.{name}" for name in ("plain", "compiled", "checks")),
    *(f"inference.{name}" for name in ("examine", "predictor")),
    *(
        f"training.{name}"
        for name in ("distributed", "memory", "optimizer", "run", "start", "step", "testing")
    ),
    *(f"training.{task}.task" for task in ("classification", "detection")),
    *(f"training.{task}.validation" for task in ("classification", "detection")),
    "training.classification.distillation",
    "training.selftest.numbers",
    "runs.snapshot",
    "system.device",
}
MODULES = {
    ".".join(path.relative_to(ROOT / "bit_paddle").with_suffix("").parts): path
    for path in (ROOT / "bit_paddle").rglob("*.py")
    if path.name != "__init__.py"
}
OLD_ADDRESSES = {"data.audit", "data.show", "native"}


def imports(path: Path, top_level: bool = False) -> set:
    """Every module that a file imports anywhere (or at its top), but for type checking alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_circles():
    found = {name: imports(path) for name, path in MODULES.items()}
    arrows = {
        name: {other for other in MODULES if f"bit_paddle.{other}" in found[name]} - {name}
        for name in MODULES
    }
    while arrows:
        ends = {name for name, others in arrows.items() if not others & set(arrows)}
        assert ends, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in ends}


LOOP = ("distributed", "memory", "optimizer", "plan", "run", "start", "step", "task", "testing")
OF_TASKS = (
    *("data", "inference", "models.losses", "models.detection"),
    *("training.classification", "training.detection", "config.settings"),
    "config.detection_settings",
)


@pytest.mark.parametrize("name", LOOP)
def test_the_loop_knows_no_task(name):
    found = imports(MODULES[f"training.{name}"])
    assert not {
        module
        for module in found
        for other in OF_TASKS
        if module == f"bit_paddle.{other}" or module.startswith(f"bit_paddle.{other}.")
    }


# --- Sizes --------------------------------------------------------------------------------------

PACKAGE = ROOT / "bit_paddle"
BESIDE_COMMANDS = {
    "__init__.py",
    "__main__.py",
    "api.py",
    "detection_api.py",
    "errors.py",
    "native.py",
    "py.typed",
}


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_the_package_folder_holds_its_commands_and_rooms():
    from bit_paddle.__main__ import COMMANDS

    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files - BESIDE_COMMANDS == {f"{name}.py" for name in COMMANDS}
    folders = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(folders) <= 11


def test_commands_are_short():
    from bit_paddle.__main__ import COMMANDS

    long = {name: lines_of(PACKAGE / f"{name}.py") for name in COMMANDS}
    assert {name: lines for name, lines in long.items() if lines > 220} == {}


def test_modules_are_short():
    long = {name: lines_of(path) for name, path in MODULES.items()}
    assert {name: lines for name, lines in long.items() if lines > 350} == {}


def test_functions_fit_a_screen():
    long = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: lines for name, lines in long.items() if lines > 80} == {}


# --- Paddle is loaded late ----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(MODULES) - NEED_PADDLE))
def test_paddle_is_loaded_late(name):
    """By the modules that compute alone; commands import those inside their functions."""
    top = imports(MODULES[name], top_level=True)
    assert not {module for module in top if module.split(".")[0] == "paddle"}
    assert not {f"bit_paddle.{other}" for other in NEED_PADDLE} & top


def test_the_rule_is_plain_python():
    assert imports(MODULES["recipes.hyperrule"]) == {
        "__future__",
        "__future__.annotations",
        "dataclasses",
        "dataclasses.dataclass",
    }


def test_importing_the_package_is_quick_and_lazy():
    code = (
        "import sys, bit_paddle; assert 'create_model' in dir(bit_paddle); "
        "assert not {'paddle', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules); "
        "from bit_paddle import create_model; assert 'paddle' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)


def test_the_package_names_its_commands():
    """Each there is, and no other module answers to ``python -m``."""
    from bit_paddle.__main__ import COMMANDS

    done = subprocess.run([sys.executable, "-m", "bit_paddle"], cwd=ROOT, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0 and re.findall(r"^  (\w+) ", done.stdout, re.M) == list(COMMANDS)
    modules = {
        name for name, path in MODULES.items() if '__name__ == "__main__"' in path.read_text()
    }
    assert modules - OLD_ADDRESSES == {*COMMANDS, "__main__"}
    done = subprocess.run([sys.executable, "-m", "bit_paddle", "trian"], cwd=ROOT, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 2 and "did you mean train" in done.stderr


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="create_modle"):
        bit_paddle.create_modle


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["--help"], 0, "--examples_per_class_seed"),
        (
            ["--model", "BiT-M-R50x1", "--dataset", "cifar01", "--from_scratch"],
            2,
            "did you mean cifar10",
        ),
        (
            ["--model", "nowhere/x.npz", "--dataset", "digits"],
            2,
            "nowhere/x.npz: no such checkpoint",
        ),
        (
            ["--model", "BiT-M-R50x1", "--dataset", "folder", "--datadir", "."],
            1,
            "cannot be reached",
        ),
        (["--modle", "BiT-M-R50x1", "--dataset", "digits"], 2, "did you mean --model"),
    ],
)
def test_answers_without_paddle(arguments, status, words, image_folder, tmp_path):
    """In under a second of the processor too: the quickest of three, as the machine may be busy."""
    code = (
        "import sys; from bit_paddle import errors, train; "
        "sys.argv[0] = 'train'\n"
        "try: status = errors.run_command(train.main, sys.argv[1:])\n"
        "except SystemExit as done: status = done.code\n"
        "assert 'paddle' not in sys.modules; sys.exit(status)"
    )
    seconds = []
    for _ in range(3):
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=image_folder,
            text=True,
            capture_output=True,
            env={
                "PYTHONPATH": str(ROOT),
                "PATH": "",
                "HOME": str(tmp_path),
                "BIT_PADDLE_BASE_URL": "http://127.0.0.1:9",
                "HF_ENDPOINT": "http://127.0.0.1:9",
                "NO_PROXY": "*",
            },
        )
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(end.ru_utime - start.ru_utime + end.ru_stime - start.ru_stime)
    assert done.returncode == status, done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert min(seconds) < 1
