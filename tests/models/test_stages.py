"""Feature maps of a network, as a backbone for other tasks."""

import numpy as np
import paddle
import pytest
from conftest import Golden

from bit_paddle import create_model
from bit_paddle.errors import ConfigError
from bit_paddle.models.stages import Stages


def images_of(height, width, dtype="float32"):
    values = np.random.default_rng(1).uniform(-1, 1, (2, 3, height, width))
    return paddle.to_tensor(values.astype(dtype))


def test_maps_of_timm(dtype, tmp_path):
    """Those of its ``features_only``, from the same weights."""
    golden = Golden("stages_r14x1")
    np.savez(tmp_path / "golden.npz", **golden.arrays)
    maps = create_model(tmp_path / "golden.npz", features_only=True)(
        paddle.to_tensor(golden.images(dtype))
    )
    bar = 1e-12 if dtype == "float64" else 1e-5
    for k, found in enumerate(one.numpy() for one in maps):
        assert found.shape == tuple(golden.values[f"shape_{k}"])
        places = np.linspace(0, found.size - 1, 128).astype(int)
        expected = golden.values[f"sample_{k}"]
        assert np.abs(found.ravel()[places] - expected).max() < bar * np.abs(expected).max()
        assert np.linalg.norm(found) == pytest.approx(golden[f"norm_{k}"], rel=bar)


def test_maps_have_their_channels_and_strides(small_checkpoint):
    stages = create_model(small_checkpoint, features_only=True)
    assert isinstance(stages, Stages) and "head.weight" not in stages.backbone.state_dict()
    assert stages.channels == (256, 512, 1024, 2048) and stages.strides == (4, 8, 16, 32)
    maps = stages(images_of(75, 96))
    assert [one.shape for one in maps] == [
        [2, channels, -(-75 // stride), -(-96 // stride)]
        for channels, stride in zip(stages.channels, stages.strides)
    ]
    raw = create_model(small_checkpoint, 0).forward_stages(images_of(75, 96))
    assert all(np.array_equal(one.numpy(), two.numpy()) for one, two in zip(maps, raw))


def test_activated_maps_are_those_that_the_next_layers_see(small_checkpoint):
    stages = create_model(small_checkpoint, features_only=True, activated=True)
    seen = []
    for block in ("block2", "block3", "block4"):
        layer = getattr(stages.backbone, block).unit01.a.conv
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].numpy()))
    maps = [one.numpy() for one in stages(images_of(64, 64))]
    assert all(np.array_equal(one, two) for one, two in zip(maps, seen))
    features = stages.backbone.forward_features(images_of(64, 64)).numpy()
    np.testing.assert_allclose(maps[3].mean(axis=(2, 3)), features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
@pytest.mark.parametrize("learn", ["block2", "block3", "block4", "head"])
@pytest.mark.parametrize("recompute, activated", [("off", True), ("unit", True), ("unit", False)])
def test_gradients_of_stages_when_parts_are_frozen(learn, recompute, activated, dtype):
    """What learns has the same gradients; what is frozen has none."""
    found = []
    for word in ("all", learn):
        stages = create_model("R14x0.5", features_only=True, activated=activated)
        stages.learn_only(word)
        stages.recompute = recompute
        total = sum((one * one.sin()).mean() for one in stages(images_of(48, 32, dtype)))
        if stages.learned():
            total.backward()
        found.append({name: one.grad for name, one in stages.named_parameters()})
        used = {k for k in stages.learned() if activated or "backbone.norm" not in k}
        assert used == {k for k, one in found[-1].items() if one is not None}
    every, some = found
    learned = {name: one.numpy() for name, one in some.items() if one is not None}
    assert (learn == "head") == (not learned)
    for name, gradient in learned.items():
        # The maps of frozen blocks no longer count, but they do not depend on what learns.
        np.testing.assert_allclose(gradient, every[name].numpy(), rtol=1e-9, atol=1e-12)


def test_inference_and_shared_kernels():
    """The wrapper standardizes its backbone's kernels in `eval`, and once for micro-batches."""
    stages = create_model("R14x0.5", features_only=True)
    images = images_of(32, 32)
    before = stages(images)[3].numpy()
    stages.eval()
    with paddle.no_grad():
        assert np.array_equal(stages(images)[3].numpy(), before)
    assert stages.backbone.root_block.conv.folded is not None
    stages.train()
    assert stages.backbone.root_block.conv.folded is None
    with stages.standardized_once() as last_pass:
        last_pass()
        stages(images)[3].sum().backward()
    assert all(one.grad is not None for one in stages.learned().values() if one.ndim == 4)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"features_only": True, "num_classes": 3}, "features_only leaves the head out"),
        ({"activated": True, "num_classes": 0}, "only with features_only=True"),
    ],
)
def test_options_that_contradict_each_other(options, words):
    with pytest.raises(ConfigError, match=words):
        create_model("R14x0.5", **options)
