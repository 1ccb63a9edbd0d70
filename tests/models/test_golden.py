"""The arithmetic against the reference implementation's, through the code that a run uses.

float64: 1e-10 of the largest value is the bar; Paddle gives about 5e-14. float32: sums of up to
4,608 products of rounding error 6e-8 through 50 layers give about 2e-5.
"""

import numpy as np
import paddle
import pytest
from conftest import Golden, golden_sample, in_checkpoint_layout, update

from bit_paddle.data.loader import MicroBatch
from bit_paddle.models.names import parameter_name
from bit_paddle.recipes import hyperrule
from bit_paddle.training.optimizer import Momentum


@pytest.mark.parametrize("name", ["forward_r50x1", "forward_r14x1_odd"])
def test_forward(name, dtype, tmp_path):
    golden = Golden(name)
    model = golden.model(tmp_path)
    images = paddle.to_tensor(golden.images(dtype))
    bar = {"float64": 1e-10, "float32": 1e-4}[dtype]
    with paddle.no_grad():
        plain = model(images).numpy()
        features = model.forward_features(images).numpy()
        with model.standardized_once():
            once = model(images).numpy()
    assert plain.dtype == dtype
    assert np.abs(features - golden["features"]).max() <= bar * np.abs(golden["features"]).max()
    assert np.abs(plain - golden["logits"]).max() <= bar * np.abs(golden["logits"]).max()
    assert np.array_equal(plain, once)


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_gradient(micro_batches, dtype, tmp_path):
    """Of every parameter; the same whether the batch is computed in one, two or four parts."""
    golden = Golden("gradient_r26x1")
    model = golden.model(tmp_path)
    images = golden.images(dtype)
    labels = np.random.default_rng(golden["label_seed"]).integers(0, golden["classes"], len(images))
    gradients = {}

    class Recorder:
        """Takes the optimizer's place at the end of `train.update`."""

        def reserve(self):
            pass

        def set_lr(self, lr):
            pass

        def step(self):
            gradients.update(
                {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
            )

        def clear_grad(self, set_to_zero):
            pass

    parts = np.split(np.arange(len(images)), micro_batches)
    batch = [MicroBatch(images[part], labels[part], part) for part in parts]
    loss = update(model, Recorder(), batch, lr=0.0)
    bar = {"float64": 1e-10, "float32": 1e-2}[dtype]
    assert loss == pytest.approx(golden["loss"], rel={"float64": 1e-13, "float32": 1e-5}[dtype])
    assert len(gradients) == len(golden.arrays)
    for key in golden.arrays:
        flat = in_checkpoint_layout(key, gradients[parameter_name(key)]).astype(np.float64)
        sample = golden[f"grad_sample/{key}"]
        assert np.abs(golden_sample(flat) - sample).max() <= bar * np.abs(sample).max(), key
        assert np.linalg.norm(flat) == pytest.approx(golden[f"grad_norm/{key}"], rel=bar), key


@pytest.mark.parametrize("name", ["training_r14x1", "training_r14x1_mixup"])
def test_trajectory(name, dtype, tmp_path):
    """Eight steps from the middle of a schedule: losses, learning rates, and every final weight."""
    golden = Golden(name)
    model = golden.model(tmp_path)
    for parameter in model.head.parameters():
        parameter.set_value(paddle.zeros_like(parameter))
    optimizer = Momentum(golden["base_lr"], hyperrule.MOMENTUM, model.parameters())
    schedule = hyperrule.schedule(golden["dataset_size"])
    random = np.random.default_rng(golden["data_seed"])
    micro = golden["batch"] // golden["split"]
    losses, lrs = [], []
    for step in range(golden["start_step"], golden["start_step"] + golden["steps"]):
        lam = random.beta(0.1, 0.1) if golden["mixup"] else 1.0
        batches = []
        for _ in range(golden["split"]):
            images = random.uniform(-1, 1, (micro, 3, golden["size"], golden["size"]))
            images = images.astype(np.float32).astype(dtype)
            labels = random.integers(0, golden["classes"], micro)
            partners = random.permutation(micro)
            batches.append(
                MicroBatch(images, labels, np.arange(micro), images[partners], labels[partners])
            )
        lrs.append(schedule.learning_rate(step, golden["base_lr"]))
        losses.append(update(model, optimizer, batches, lrs[-1], lam))
    assert lrs == golden["lrs"].tolist()
    bar = {"float64": 1e-8, "float32": 1e-3}[dtype]
    means = golden["losses"].reshape(golden["steps"], golden["split"]).mean(axis=1)
    np.testing.assert_allclose(losses, means, rtol=bar)
    parameters = dict(model.named_parameters())
    for key in golden.arrays:
        flat = in_checkpoint_layout(key, parameters[parameter_name(key)].numpy()).astype(np.float64)
        sample = golden[f"final_sample/{key}"]
        assert np.abs(golden_sample(flat) - sample).max() <= bar * np.abs(sample).max(), key
        assert np.linalg.norm(flat) == pytest.approx(golden[f"final_norm/{key}"], rel=bar), key
