"""``--model hf:OWNER/NAME`` in every command, from a real server that plays the hub."""

import json

import numpy as np
import pytest
from helpers.commands import run_outside
from helpers.hub import Hub

import bit_paddle as bit
from bit_paddle.errors import ConfigError, DownloadError

pytest.importorskip("huggingface_hub")

PETS = "hf:me/pets"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of three colours, as `train` writes it, and its export for transformers."""
    folder = tmp_path_factory.mktemp("trained")
    model = bit.create_model("R14x0.5", num_classes=3, seed=1)
    random = np.random.default_rng(0)
    model.head.weight.set_value(random.normal(0, 1, (1024, 3)).astype(np.float32))
    notes = {"classes": ["amber", "blue", "coral"], "crop": 32}
    bit.save_npz(model, folder / "model.npz", notes=notes)
    bit.export(folder / "model.npz", "huggingface", folder / "pets")
    return folder


@pytest.fixture
def server(trained, monkeypatch, tmp_path):
    files = {path.name: path.read_bytes() for path in (trained / "pets").iterdir()}
    server = Hub({"me/pets": files})
    for name, value in {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "hf"),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


def test_in_python(server, trained, image_folder):
    model, original = bit.load(PETS, device="cpu"), bit.load(trained / "model.npz", device="cpu")
    assert model.classes == ["amber", "blue", "coral"]
    assert model.preprocessing == original.preprocessing
    paths = sorted((image_folder / "val").rglob("*.png"))
    assert np.array_equal(model.logits(paths), original.logits(paths))
    found, expected = (bit.evaluate(item, image_folder) for item in (PETS, original))
    assert found.top1 == expected.top1 and np.array_equal(found.confusion, expected.confusion)
    network = bit.create_model(PETS, num_classes=5)
    assert network.num_classes == 5
    assert np.array_equal(
        network.block1.unit01.a.conv.weight.numpy(),
        bit.create_model(trained / "model.npz").block1.unit01.a.conv.weight.numpy(),
    )


def test_fine_tuning(server, trained, image_folder, tmp_path):
    """A run from the hub is the run from the file, to the bit; its name tells its model."""
    flags = {"steps": 2, "precrop": 36, "crop": 32, "batch": 4, "logdir": str(tmp_path)}
    run = bit.fine_tune(PETS, image_folder, **flags)
    assert run.folder.name.startswith("hf-me-pets-")
    other = bit.fine_tune(trained / "model.npz", image_folder, **flags)
    with (
        np.load(run.folder / "model.npz") as found,
        np.load(other.folder / "model.npz") as expected,
    ):
        for key in expected.files:
            if not key.startswith("bit_paddle/"):
                assert np.array_equal(found[key], expected[key]), key


@pytest.mark.slow
def test_commands(server, image_folder, tmp_path):
    done = run_outside("plan", "--model", PETS, "--dataset", "folder", "--datadir", image_folder)
    assert done.returncode == 0 and "R14x0.5" in done.stdout, done.stderr
    server.requests.clear()
    photo = next((image_folder / "val").rglob("*.png"))
    done = run_outside("predict", photo, "--model", PETS, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert {found["class"] for found in json.loads(done.stdout)[0]["classes"]} == {
        "amber",
        "blue",
        "coral",
    }
    assert not [
        path for method, path, _ in server.requests if method == "GET" and "/resolve/" in path
    ]
    output = tmp_path / "pets.npz"
    done = run_outside("export", "--model", PETS, "--format", "npz", "--output", output)
    assert done.returncode == 0 and output.is_file(), done.stderr


def test_wrong_names(server, monkeypatch):
    with pytest.raises(ConfigError, match="me/cats"):
        bit.load("hf:me/cats")
    with pytest.raises(ConfigError, match="no repository of the Hugging Face hub"):
        bit.load("hf:pets")
    with pytest.raises(ConfigError, match="from_scratch"):
        bit.fine_tune(PETS, "digits", from_scratch=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="cannot be reached"):
        bit.load(PETS)


def test_a_repository_of_another_network(server):
    content = json.dumps({"model_type": "vit"}).encode()
    server.repositories["me/vit"] = {**server.repositories["me/pets"], "config.json": content}
    with pytest.raises(bit.errors.CheckpointError, match="'vit'; expected 'bit'"):
        bit.load("hf:me/vit")


def test_a_run_resumes_without_the_hub(server, image_folder, tmp_path, monkeypatch):
    flags = {"steps": 2, "precrop": 36, "crop": 32, "batch": 4, "logdir": str(tmp_path)}
    run = bit.fine_tune(PETS, image_folder, save_every=1, **flags)
    for name in ("result.json", "model.npz"):  # as if it had been stopped
        (run.folder / name).unlink()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "another"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    again = bit.fine_tune(PETS, image_folder, save_every=1, **flags)
    assert again.complete and again.folder == run.folder


def test_the_name_in_a_model_card_is_the_repository_s(server, tmp_path):
    bit.export(PETS, "huggingface", tmp_path / "out")
    assert "\n# me/pets\n" in (tmp_path / "out" / "README.md").read_text()


def test_another_network_under_a_published_name(server, monkeypatch, tmp_path):
    monkeypatch.setenv("BIT_PADDLE_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path))
    server.repositories["timm/resnetv2_50x1_bit.goog_in21k"] = server.repositories["me/pets"]
    for _ in range(2):  # the second time from the cache
        with pytest.raises(bit.errors.CheckpointError, match="not those of R50x1 with 21843"):
            bit.load("BiT-M-R50x1")


def test_requests_are_not_logged(server, capfd):
    import paddle  # noqa: F401  it turns all messages on

    bit.load(PETS)
    assert "HTTP Request" not in capfd.readouterr().err
