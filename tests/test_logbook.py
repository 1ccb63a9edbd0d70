"""Folders of runs."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from bit_paddle import logbook
from bit_paddle.errors import ConfigError


def test_of_many_at_once_each_gets_a_folder(tmp_path):
    for _ in range(20):
        logdir = tmp_path / str(_)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(logbook.create_folder, str(logdir), None, "run") for _ in range(8)]
        folders = {future.result().name for future in asked}
        assert folders == {"run", *(f"run-{number}" for number in range(2, 9))}


def test_next_folder_is_the_one_that_is_made(tmp_path):
    for _ in range(3):
        expected = logbook.next_folder(str(tmp_path), None, "run")
        assert logbook.create_folder(str(tmp_path), None, "run") == expected
    for ask in (logbook.next_folder, logbook.create_folder):
        with pytest.raises(ConfigError, match="already holds a run"):
            ask(str(tmp_path), "run-2", "run")


def test_a_folder_with_something_else_in_it_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="already holds"):
        logbook.create_folder(str(tmp_path), "run", "run")
    (tmp_path / "empty").mkdir()
    assert logbook.create_folder(str(tmp_path), "empty", "run") == tmp_path / "empty"
