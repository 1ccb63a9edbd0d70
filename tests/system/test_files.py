"""Files are written whole, and errors end a command in one way."""

import json

import pytest

from bit_paddle import errors
from bit_paddle.system import files


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(b"old")
    path.chmod(0o600)
    files.write(path, lambda stream: stream.write(b"new"))
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o600


def test_json_has_no_nan():
    content = {"interval": (float("nan"), 1.0), "list": [float("inf")], "score": 0.5}
    expected = {"interval": [None, 1.0], "list": [None], "score": 0.5}
    assert json.loads(files.to_json(content), parse_constant=pytest.fail) == expected


def test_an_interrupted_import_is_no_defect(capsys):
    def command(words):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:  # as Paddle's core does while it is imported
            raise ImportError("initialization failed") from error

    assert errors.run_command(command, []) == 130
    assert capsys.readouterr().err == "interrupted\n"
