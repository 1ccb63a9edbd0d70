"""The notebooks are clean and run; a run in a notebook shows a bar, and can be interrupted.

To edit a notebook as text: ``jupytext --to py:percent`` and ``jupytext --update --to ipynb``.
"""

import io
import re
import time
import tokenize

import jupytext
import nbformat
import pytest
from conftest import ROOT
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

FOLDER = ROOT / "docs/notebooks"
NAMES = ["first_steps", "own_images"]
ALL = [f"{name}{language}" for name in NAMES for language in ("", ".zh-CN")]
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def test_all_are_here():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(ALL)


@pytest.mark.parametrize("name", ALL)
def test_is_stored_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata == KERNEL and (notebook.nbformat, notebook.nbformat_minor) == (4, 4)
    for cell in notebook.cells:
        assert cell.metadata == {} and cell.source
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert nbformat.writes(notebook) + "\n" == text


@pytest.mark.parametrize("name", ALL)
def test_goes_through_jupytext(name):
    notebook = read(name)
    again = jupytext.reads(jupytext.writes(notebook, fmt="py:percent"), fmt="py:percent")
    again.metadata.pop("jupytext")
    assert again.metadata == notebook.metadata
    cells = [[(cell.cell_type, cell.source) for cell in one.cells] for one in (notebook, again)]
    assert cells[0] == cells[1] and not any(cell.metadata for cell in again.cells)


def code_of(cell):
    """Return the tokens of a cell, without comments; a line of the shell is a comment here."""
    text = re.sub(r"^( *)([!%].*)", r"\1pass; SHELL = \2", cell.source, flags=re.M)
    text = re.sub(r"(SHELL = )(.*)", lambda found: found[1] + repr(found[2]), text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token.string for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_code(name):
    ours, theirs = read(name).cells, read(f"{name}.zh-CN").cells
    assert [cell.cell_type for cell in ours] == [cell.cell_type for cell in theirs]
    for one, other in zip(ours, theirs):
        if one.cell_type == "code":
            assert code_of(one) == code_of(other)
        else:
            assert re.findall("^#+ ", one.source, re.M) == re.findall("^#+ ", other.source, re.M)
            assert "�" not in other.source


@pytest.mark.parametrize("name", ALL)
def test_links_lead_somewhere(name):
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and [link for link in links if not (FOLDER / link).exists()] == []


# --- In a kernel --------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder for a kernel, which imports this package and not an installed one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("FLOWERS", "IMAGES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name, pictures", [("first_steps", 6), ("own_images", 3)])
def test_runs(name, pictures, here):
    """The English one: the other has the same code."""
    notebook = read(name)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(here)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == pictures
    text = "".join(output.get("text", "") for output in outputs)
    assert "training: 100%" in text and "error:" not in text and "Warning" not in text
    results = [output.data["text/plain"] for output in outputs if "data" in output]
    if name == "first_steps":
        assert "True" in results  # the loaded model gives the same probabilities
        assert (here / "bit_logs/drawn_flowers/report.html").exists()
    else:
        assert "loaded back" in text and "schedule      500 steps" in text
        assert (here / "bit_logs/drawn_shapes/served").is_dir()


class Kernel:
    """A kernel in ``folder``; `run` executes a cell."""

    def __init__(self, folder):
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def run(self, code, interrupt_at=None, pauses=()):
        """Return the text, the value and the error (its name) of a cell.

        When its text has ``interrupt_at``, it is interrupted, and again after each of ``pauses``.
        """
        # The kernel drops a cell that comes at once after an error, unless it is told not to.
        cell = self.client.execute(code, stop_on_error=False)
        text, value, error = "", None, None
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != cell:
                continue
            if kind == "stream":
                text += content["text"]
            elif kind == "execute_result":
                value = content["data"]["text/plain"]
            elif kind == "error":
                error = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return text, value, error
            if interrupt_at and interrupt_at in text:
                interrupt_at = None
                for pause in (0, *pauses):
                    time.sleep(pause)
                    self.manager.interrupt_kernel()


@pytest.fixture
def kernel(here, image_folder):
    kernel = Kernel(here)
    settings = {"steps": 1000, "batch": 6, "precrop": 36, "crop": 32, "workers": 1}
    kernel.run(f"import bit_paddle as bit\nFOLDER, SETTINGS = {str(image_folder)!r}, {settings}")
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_a_cell_shows_bars_and_errors(kernel):
    call = "bit.fine_tune('BiT-Mini', FOLDER, **{**SETTINGS, 'steps': 2}"
    text, value, error = kernel.run(f"{call})")
    assert error is None and value.startswith("Run(") and "complete" in value
    assert "/2 [" in text and "/15 [" in text  # the bars of training and validation
    assert "Warning" not in text and "\x1b" not in text  # the cursor cannot move up in a cell
    for faults in (", stesp=3)", ", help=True)"):
        assert kernel.run(call + faults)[2] == "ConfigError"
    assert kernel.run("bit.load('BiT-M-R50x9')")[2] == "ConfigError"


@pytest.mark.slow
def test_the_stop_button_saves_and_returns(kernel, here):
    call = "run = bit.fine_tune('BiT-Mini', FOLDER, name='run', **SETTINGS)"
    text, value, error = kernel.run(f"{call}\nrun.complete, len(run.metrics)", "images/s")
    assert error is None and "SIGINT: ending after step" in text
    complete, steps = value.strip("()").split(", ")
    assert complete == "False" and 1 <= int(steps) < 1000
    assert list((here / "bit_logs/run/checkpoints").glob(f"step-*{steps}.npz"))
    text, _, error = kernel.run(call, "images/s")
    assert error is None and f"| {steps}/1000" in text  # it has resumed


SLOW_STEPS = """
import time
from bit_paddle.training import step

update = step.update
step.update = lambda *given, **named: time.sleep(5) or update(*given, **named)
"""


@pytest.mark.slow
def test_stopped_twice_a_cell_ends_at_once(kernel):
    assert kernel.run(SLOW_STEPS)[2] is None
    call = "bit.fine_tune('BiT-Mini', FOLDER, **SETTINGS)"
    assert kernel.run(call, "0/1000", pauses=[1])[2] == "KeyboardInterrupt"
    assert kernel.run("1 + 1")[1] == "2"
