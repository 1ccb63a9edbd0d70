"""The architecture: who may import whom, and what must not load Paddle."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import bit_paddle

ROOMS = (  # a room imports from those before it, and from itself without circles
    "errors",
    "recipes",
    "system",
    "data",
    "models",
    "config",
    "runs",
    "inference",
    "visual",
    "training",
    "doors",
)
NEED_PADDLE = {
    *(f"models.{name}" for name in ("resnetv2", "weights")),
    *(f"models.native.{name}" for name in ("plain", "compiled", "checks")),
    *(f"inference.{name}" for name in ("examine", "predictor")),
    *(f"training.{name}" for name in ("distributed", "memory", "optimizer", "start", "validation")),
    "runs.snapshot",
    "system.device",
}
MODULES = {
    ".".join(path.relative_to(ROOT / "bit_paddle").with_suffix("").parts): path
    for path in (ROOT / "bit_paddle").rglob("*.py")
    if path.name != "__init__.py"
}
OLD_ADDRESSES = {"data.show", "native.__main__"}


def room_of(name: str) -> str:
    """The room of a module; commands and the interface are doors."""
    room = name.split(".")[0]
    return room if name not in OLD_ADDRESSES and room in ROOMS else "doors"


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


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_come_from_rooms_below(name):
    own, found = room_of(name), imports(MODULES[name])
    for other in MODULES:
        if f"bit_paddle.{other}" in found and room_of(other) != own:
            assert ROOMS.index(room_of(other)) < ROOMS.index(own), f"{name} imports {other}"


def test_no_circles():
    arrows = {
        name: {other for other in MODULES if f"bit_paddle.{other}" in imports(path) - {name}}
        for name, path in MODULES.items()
    }
    while arrows:
        ends = {name for name, others in arrows.items() if not others & set(arrows)}
        assert ends, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in ends}


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
    assert done.returncode == 0 and done.stdout.count("python -m bit_paddle.") == len(COMMANDS)
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
                "NO_PROXY": "*",
            },
        )
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(end.ru_utime - start.ru_utime + end.ru_stime - start.ru_stime)
    assert done.returncode == status, done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert min(seconds) < 1
