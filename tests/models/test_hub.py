"""The Hugging Face hub: the real huggingface_hub against a real server that plays the hub."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, arrays_of
from helpers.hub import TOKEN, Hub

from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import (
    CheckpointError,
    ConfigError,
    DownloadError,
    WriteError,
    install_hint,
)
from bit_paddle.models import hub, npz, published
from bit_paddle.models.architecture import Architecture
from bit_paddle.models.checkpoint import CheckpointFile
from bit_paddle.system import fetch, hub_errors
from bit_paddle.system import hub as system_hub
from bit_paddle.system.hub import Repository

pytest.importorskip("huggingface_hub")

WEIGHTS = os.urandom(3_000_000)
FILES = {
    "README.md": b"# A network\n",
    "config.json": b'{"architecture": "resnetv2_50x1_bit"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same again",
    "onnx/model.onnx": b"of no use",
}
NET = Repository("timm", "net")
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Hub({"timm/net": dict(FILES)})
    monkeypatch.setattr(hub_errors, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(fetch, "FIRST_PAUSE", 0.01)
    for name, value in {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "hf"),
        "BIT_PADDLE_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.close()


def large_files(tmp_path):
    """Files of the hub's cache that hold bytes of the weights."""
    files = (path for path in (tmp_path / "hf").rglob("*") if path.is_file())
    return [path for path in files if path.stat().st_size > 100_000]


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("hf:timm/resnetv2_50x1_bit.goog_in21k", ("timm", "resnetv2_50x1_bit.goog_in21k", "main")),
        ("google/bit-50@v1.0", ("google", "bit-50", "v1.0")),
        ("hf:a/b@refs/pr/1", ("a", "b", "refs/pr/1")),
    ],
)
def test_names_of_repositories(text, expected):
    repository = Repository.parse(text)
    assert repository == expected and Repository.parse(str(repository)) == repository


@pytest.mark.parametrize(
    "text",
    [
        *("", "hf:", "hf:bit-50", "hf:/bit-50", "hf:google/", "hf:a/b/c", "hf:a b/c", "hf:a/b\n"),
        *("hf:../b", "hf:a/..", "hf:a--b/c", "hf:a/-b", "hf:a/b\\c", "hf:a/ü", "hf:a/b@c@d"),
        *("hf:a/b@", "hf:a/b@../c", "hf:a/b@/c", "hf:a/b@c//d", "https://huggingface.co/a/b"),
    ],
)
def test_what_is_no_repository(text):
    with pytest.raises(ConfigError, match="expected hf:OWNER/NAME"):
        Repository.parse(text)


# --- Downloads ------------------------------------------------------------------------------------


def test_what_a_model_needs_and_nothing_else(server, tmp_path):
    assert hub.locate(NET) is None
    folder = hub.download(NET)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.locate(NET) == folder and folder.is_relative_to(tmp_path / "hf" / "hub")
    assert hub.weights_in(folder) == folder / "model.safetensors"
    server.requests.clear()
    assert hub.download(NET) == folder
    assert server.asked("GET") == ["/api/models/timm/net/revision/main"]


def test_a_commit_in_the_cache_is_not_asked_for(server):
    folder = hub.download(NET._replace(revision=server.commit("timm/net")))
    server.requests.clear()
    assert hub.download(NET._replace(revision=folder.name)) == folder and not server.requests


def test_the_newest_commit_of_a_branch(server):
    first = hub.download(NET)
    server.repositories["timm/net"]["model.safetensors"] = WEIGHTS[::-1]
    second = hub.download(NET)
    assert second != first == hub.locate(NET._replace(revision=first.name))
    assert hub.locate(NET) == second
    assert (second / "model.safetensors").read_bytes() == WEIGHTS[::-1]


@pytest.mark.parametrize(
    "names, chosen",
    [
        (["model.safetensors", "model.safetensors.index.json", "x.npz"], ["model.safetensors"]),
        (
            ["model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors",
             "model-3.safetensors", "pytorch_model.bin"],
            ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"],
        ),
        (["pytorch_model.bin", "pytorch_model.bin.index.json"], ["pytorch_model.bin"]),
        (["x.npz", "flax_model.msgpack"], ["x.npz"]),
        (["x.npz", "preprocessor_config.json"], ["preprocessor_config.json", "x.npz"]),
    ],
)  # fmt: skip
def test_which_weights(names, chosen, server):
    server.repositories["timm/net"] = {
        name: INDEX.encode() if name.endswith("index.json") else name.encode() for name in names
    }
    folder = hub.download(NET)
    assert sorted(path.name for path in folder.iterdir()) == chosen
    assert hub.locate(NET) == folder


@pytest.mark.parametrize("names", [["README.md"], ["x.npz", "y.npz"], ["sub/model.safetensors"]])
def test_no_weights(names, server):
    server.repositories["timm/net"] = dict.fromkeys(names, b"x")
    with pytest.raises(ConfigError, match="expected model.safetensors"):
        hub.download(NET)
    assert not server.asked("HEAD")


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/passwd", "nowhere.safetensors"])
def test_hostile_index(shard, server, tmp_path):
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    server.repositories["timm/net"] = {"model.safetensors.index.json": index}
    with pytest.raises(CheckpointError):
        hub.download(NET)
    assert hub.locate(NET) is None


@pytest.mark.parametrize(
    "faults, cdn_faults",
    [
        ([], ["drop"]),
        ([], ["drop", "drop"]),
        ([], [503]),
        ([], [(429, {"Retry-After": 1})]),
        ([], ["html"]),
        ([], ["wrong bytes"]),
        ([503, (429, {"Retry-After": 1}), 500], []),
        ([None, None, None, 503], []),
    ],
)
def test_faults_that_pass(faults, cdn_faults, server):
    server.faults, server.cdn_faults = list(faults), list(cdn_faults)
    folder = hub.download(NET)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS and hub.locate(NET) == folder


def test_only_the_rest_is_asked_for(server):
    """Of a file that is longer than the 10 MiB that huggingface_hub asks for at once.

    Newer versions keep whole pieces of 10 MiB, older ones all that came.
    """
    content = os.urandom(25_000_000)
    server.repositories["timm/net"]["model.safetensors"] = content
    server.cdn_faults = ["drop"]
    assert (hub.download(NET) / "model.safetensors").read_bytes() == content
    (wanted,) = (wanted for verb, path, wanted in server.requests if verb == "GET" and wanted)
    assert wanted in (f"bytes={10 << 20}-", f"bytes={len(content) // 2}-")


def test_wrong_bytes_under_the_right_name(server, tmp_path):
    server.cdn_faults = ["wrong bytes"] * 2
    with pytest.raises(DownloadError, match=r"model.safetensors does not have the sha256"):
        hub.download(NET)
    assert hub.locate(NET) is None and not large_files(tmp_path)
    assert (hub.download(NET) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_of_the_cache_that_has_changed(server):
    """One bit, so that the length is right: it is not taken from the cache, and is replaced."""
    folder = hub.download(NET)
    blob = (folder / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[1000] ^= 1
    blob.write_bytes(content)
    assert hub.locate(NET) is None
    assert (hub.download(NET) / "model.safetensors").read_bytes() == WEIGHTS


def test_verified_once(server, monkeypatch, tmp_path):
    """But again if the notes of the verifications are lost."""
    folder, read = hub.download(NET), []
    monkeypatch.setattr(system_hub, "wrong_sum", lambda path, expected: read.append(path))
    assert hub.locate(NET) == hub.download(NET) == folder and not read
    shutil.rmtree(tmp_path / "home")
    assert hub.locate(NET) == folder and len(read) == 1


@pytest.mark.parametrize(
    "access, name, error, words",
    [
        (None, "timm/nothing", ConfigError, "timm/nothing: the hub has no such repository"),
        (None, "timm/net@v7", ConfigError, "timm/net@v7: the repository has no such revision"),
        ("private", "timm/net", ConfigError, "or it is private and HF_TOKEN"),
        ("gated", "timm/net", DownloadError, "is gated: accept its conditions .* HF_TOKEN"),
    ],
)
def test_refused(access, name, error, words, server, monkeypatch, tmp_path):
    server.access["timm/net"] = access
    for token in (None, "hf_wrong"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(error, match=words):
            hub.download(Repository.parse(name))
    assert len(server.requests) <= 3  # of which one may be of huggingface_hub itself: at once
    if access:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert hub.download(NET)


@pytest.mark.parametrize(
    "faults, words",
    [
        ([503] * 9, "the hub answered 503"),
        ([(429, {"Retry-After": "3000"})], "asks to wait for 3000 s"),
        (["html"], "the answer is not that of a hub"),
        ([403], r"the hub refuses it \(403\); HF_TOKEN"),
    ],
)
def test_faults_that_stay(faults, words, server):
    server.faults = list(faults)
    with pytest.raises(DownloadError, match=words):
        hub.download(NET)
    assert hub.locate(NET) is None


@pytest.mark.parametrize(
    "answer",
    [
        *([], {}, 3, {"id": "x"}, {"id": "x", "sha": "../../.."}, {"id": "x", "siblings": 3}),
        {"id": "x", "sha": "0" * 40, "siblings": [{"size": 3}]},
        {"id": "x", "sha": "0" * 40, "siblings": [{"rfilename": 3}]},
        {"id": "x", "sha": "0" * 40, "siblings": [{"rfilename": "config.json", "size": "x"}]},
        {"id": "x", "sha": "0" * 40, "siblings": [{"rfilename": "x.npz", "lfs": {"size": 3}}]},
        {
            "id": "x",
            "sha": "0" * 40,
            "siblings": [{"rfilename": "x.npz", "lfs": dict.fromkeys(("sha256", "size"), "x")}],
        },
    ],
)
def test_malformed_listing(answer, server):
    server.faults = [json.dumps(answer).encode()]
    with pytest.raises(DownloadError, match="the answer is not that of a hub"):
        hub.download(NET)
    assert hub.locate(NET) is None


def test_names_that_leave_the_folder(server, tmp_path):
    """Of a repository's files none but plain names is taken."""
    names = ["../x.npz", "/tmp/x.npz", "a/../../x.npz", "\\x.npz", "\0x.npz", ".npz"]
    server.repositories["timm/net"] = dict.fromkeys(names, b"x")
    with pytest.raises(ConfigError, match="found no files"):
        hub.download(NET)


def test_nobody_answers(server, monkeypatch, capsys):
    """Variables count at each call, as in a notebook that sets a mirror after a failure."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(fetch.Unreachable, match="cannot be reached .*HF_ENDPOINT names a mirror"):
        hub.download(NET)
    assert time.monotonic() - start < 10  # the hub's own timeout
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    folder = hub.download(NET)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    capsys.readouterr()
    assert hub.download(NET) == folder
    assert "the copy in the cache is used" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.example")
    with pytest.raises(ConfigError, match="HF_ENDPOINT: 'hf-mirror.example' is no address"):
        hub.download(NET)


def test_offline(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids"):
        hub.download(NET)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    folder = hub.download(NET)
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.download(NET) == folder and not server.requests


def test_places_without_room(server, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage(1, 1, 1_000_000))
        with pytest.raises(
            DownloadError, match="too little space: model.safetensors needs 0.00 GB"
        ):
            hub.download(NET)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadError, match="cannot be written"):
        hub.download(NET)


def test_without_the_package(server, monkeypatch):
    monkeypatch.setattr(system_hub, "is_installed", lambda: False)
    with pytest.raises(ConfigError) as caught:
        hub.download(NET)
    assert install_hint("hub") in str(caught.value)


@pytest.mark.slow
def test_killed_in_the_middle(server):
    """What is half there is not taken for whole."""
    server.cdn_faults = ["slow"]
    code = "from bit_paddle.models import hub; hub.download(hub.Repository('timm', 'net'))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.cdn_faults:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and hub.locate(NET) is None
    assert (hub.download(NET) / "model.safetensors").read_bytes() == WEIGHTS


# --- Uploads --------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Pets\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS[:100_000])
    return folder


def test_upload(exported, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with monkeypatch.context() as patch:  # older versions have read it before the test
        patch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        for content in (b"old", WEIGHTS[:100_000]):  # the second time the repository exists
            (exported / "model.safetensors").write_bytes(content)
            assert hub.upload(exported, "me/pets", private=True) == f"{server.address}/me/pets"
    assert server.access["me/pets"] == "private"
    assert server.repositories["me/pets"] == {
        path.name: path.read_bytes() for path in exported.iterdir()
    }
    folder = hub.download(Repository("me", "pets"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS[:100_000]


def test_upload_that_is_refused(exported, server, monkeypatch):
    with pytest.raises(WriteError, match=r"hf:me/pets: cannot be written: .*401.*HF_TOKEN"):
        hub.upload(exported, "me/pets")
    with pytest.raises(ConfigError, match="expected hf:OWNER/NAME"):
        hub.upload(exported, "pets")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WriteError, match="cannot be reached"):
        hub.upload(exported, "me/pets")


# --- In the place of published files --------------------------------------------------------------

ENTRY = published.Entry(
    "BiT-Test", Architecture.parse("R14x1"), 10, "BiT-Test.npz", "cifar10", Preprocessing(32),
    aliases=("resnetv2_14x1_bit.goog_test",),
)  # fmt: skip
ARRAYS = arrays_of(14, 1, 10, 0)


@pytest.fixture
def dead_server(server, monkeypatch, tmp_path):
    """No server of published files answers, but the hub has the same weights in timm's names."""
    from bit_paddle import create_model
    from bit_paddle.inference import formats

    monkeypatch.setenv("BIT_PADDLE_BASE_URL", "http://127.0.0.1:9")
    npz.write(tmp_path / "x.npz", ARRAYS.items())
    formats.write_timm(create_model(tmp_path / "x.npz"), None, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    server.repositories[f"timm/{ENTRY.aliases[0]}"] = {"model.safetensors": content}
    return server


def test_the_hub_in_the_place_of_a_dead_server(dead_server, capsys):
    published.check_reachable(ENTRY)
    path = published.obtain(ENTRY)
    error = capsys.readouterr().err
    assert "cannot be reached" in error and error.rstrip().endswith(f"now asking hf:{ENTRY.hub}")
    assert path.name == "model.safetensors" and ENTRY.fault_of(path) is None
    with CheckpointFile(path) as file:
        for key, array in ARRAYS.items():
            assert np.array_equal(file.array(key), array)
    dead_server.requests.clear()
    assert published.locate(ENTRY) == published.obtain(ENTRY) == path
    assert not dead_server.requests and not capsys.readouterr().err


def test_a_file_of_the_server_comes_before_the_hub(dead_server, tmp_path):
    shutil.copy(tmp_path / "x.npz", tmp_path / ENTRY.file)
    assert published.obtain(ENTRY, tmp_path) == Path(tmp_path, ENTRY.file)
    assert not dead_server.requests


def test_neither_server_nor_hub(dead_server, monkeypatch):
    monkeypatch.setattr(system_hub, "is_installed", lambda: False)
    for call in (published.obtain, published.check_reachable):
        with pytest.raises(DownloadError) as caught:
            call(ENTRY)
        assert "127.0.0.1:9/BiT-Test.npz: cannot be reached" in str(caught.value)
        assert f"hf:{ENTRY.hub} has the same weights: " in str(caught.value)
        assert install_hint("hub") in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setenv("BIT_PADDLE_BASE_URL", "http://127.0.0.1:9")
    for call in (published.obtain, published.check_reachable):
        with pytest.raises(DownloadError, match="BiT-Test.npz: cannot be.*\n.*hub cannot be reach"):
            call(ENTRY)


@pytest.mark.slow
def test_commands_take_a_published_model_from_the_hub(server, monkeypatch, tmp_path, image_folder):
    """A classifier of 102 MB: class names are numbers, as their server is dead too."""
    from bit_paddle import create_model
    from bit_paddle.inference import formats

    monkeypatch.setenv("BIT_PADDLE_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("BIT_PADDLE_NATIVE", "0")
    npz.write(tmp_path / "x.npz", arrays_of(50, 1, 1000, 0).items())
    formats.write_timm(create_model(tmp_path / "x.npz"), None, tmp_path / "x.safetensors")
    entry = published.find("BiT-M-R50x1-ILSVRC2012")
    content = (tmp_path / "x.safetensors").read_bytes()
    server.repositories[entry.hub] = {"model.safetensors": content, "config.json": b"{}"}
    words = ["predict", image_folder / "val" / "blue", "--model", entry.name, "--crop", 32]
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert f"now asking hf:{entry.hub}" in done.stderr
    assert "warning: classes are shown as numbers" in done.stderr
    server.close()
    words = ["train", *words[2:4], "--dataset", "folder", "--datadir", image_folder, "--dry-run"]
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert str(hub.locate(Repository.parse(entry.hub)) / "model.safetensors") in done.stdout


def run(words):
    return subprocess.run(
        [sys.executable, "-m", "bit_paddle", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_which_published_models_are_on_the_hub():
    """Those that timm has: 12 of BiT-M, 3 of the distillation paper."""
    on_hub = {name: entry.hub for name, entry in published.CATALOG.items() if entry.hub}
    assert len(on_hub) == 15 and all(map(Repository.parse, on_hub.values()))
    assert on_hub["BiT-M-R152x4"] == "timm/resnetv2_152x4_bit.goog_in21k"
    assert on_hub["R152x2_T_384"] == "timm/resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384"
    assert published.find("BiT-S-R50x1").hub is None and published.find("R50x1_160").hub is None
