"""Devices, faults that all processes hear of, and who of them owns what.

No GPU is at hand: what Paddle would say of one is made up here.
"""

import numpy as np
import paddle
import pytest

from bit_paddle.errors import ConfigError, OutOfMemoryError
from bit_paddle.models.architecture import UNITS, Architecture
from bit_paddle.models.resnetv2 import ResNetV2
from bit_paddle.system import device
from bit_paddle.system.signals import Interrupted
from bit_paddle.training import distributed


@pytest.fixture
def pretend(monkeypatch):
    """Make Paddle a GPU build that sees ``count`` cards of a compute capability."""

    def pretend(count, capability=(7, 0), version="2.6.2"):
        monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
        monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: count)
        monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(paddle, "__version__", version)
        chosen = []
        monkeypatch.setattr(paddle.device, "set_device", chosen.append)
        return chosen

    return pretend


def test_cpu_build():
    assert device.select_device("auto") == "cpu"
    if not paddle.device.is_compiled_with_cuda():
        with pytest.raises(ConfigError, match="is the CPU build"):
            device.select_device("gpu")


def test_auto_takes_the_gpu(pretend):
    chosen = pretend(count=1)
    assert device.select_device("auto") == "gpu" and chosen == ["gpu"]
    assert device.select_device("cpu") == "cpu" and chosen == ["gpu", "cpu"]


def test_no_card(pretend):
    pretend(count=0)
    assert device.select_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="sees no GPU"):
        device.select_device("gpu")


def test_a_card_too_new_for_the_build(pretend):
    pretend(count=1, capability=(9, 0))
    with pytest.raises(ConfigError, match=r"compute capability 9\.0.*Paddle 3"):
        device.select_device("auto")
    pretend(count=1, capability=(9, 0), version="3.3.1")
    assert device.select_device("auto") == "gpu"


# --- Half precision -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "capability, amp",
    [
        ((3, 7), "off"),
        ((6, 1), "off"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((8, 6), "bf16"),
        ((9, 0), "bf16"),
        ((10, 0), "bf16"),
    ],
)
def test_half_precision_is_what_the_tensor_cores_multiply(capability, amp, pretend):
    pretend(count=1, capability=capability)
    assert device.amp_for("gpu") == device.amp_for("gpu", "auto") == amp
    assert device.amp_for("gpu", "off") == "off" and device.amp_for("gpu", "fp16") == "fp16"


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (7, 5)])
def test_bf16_needs_a_gpu_that_has_it(capability, pretend):
    pretend(count=1, capability=capability)
    version = ".".join(map(str, capability))
    with pytest.raises(ConfigError, match=rf"--amp bf16: .* {version}, .*; use --amp fp16"):
        device.amp_for("gpu", "bf16")
    pretend(count=1, capability=(8, 0))
    assert device.amp_for("gpu", "bf16") == "bf16"


def test_a_cpu_trains_in_half_precision_only_if_asked():
    assert device.amp_for("cpu") == "off"
    for amp in ("off", "bf16", "fp16"):
        assert device.amp_for("cpu", amp) == amp


# --- One process, which agrees with itself ------------------------------------------------------


@pytest.mark.parametrize("value", [7, 1 / 3, -(2.0**53)])
def test_the_largest_value_is_a_number_in_full_precision(value):
    found = distributed.largest(value)
    assert type(found) is float and found == value


@pytest.mark.parametrize(
    "fault, error", [(Interrupted, Interrupted), (MemoryError, OutOfMemoryError)]
)
def test_a_fault_is_raised_instead_of_sums(fault, error):
    assert distributed.agree([1 / 3, 2**53]) == [1 / 3, 2**53] and distributed.agree([]) == []
    with pytest.raises(error):
        distributed.agree([1.0], fault)


# --- Shares of the parameters -------------------------------------------------------------------


def loads_of(sizes, count):
    """Return what each of ``count`` processes owns, by `owners`: of each parameter one."""
    owners = distributed.owners(sizes, count)
    assert len(owners) == len(sizes) and set(owners) <= set(range(count))
    return np.bincount(np.array(owners, int), weights=sizes, minlength=count)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_nobody_owns_more_than_the_mean_and_one_parameter(count):
    random = np.random.default_rng(count)
    for number in (0, 1, 2, 7, 50, 300):
        sizes = (1 + random.pareto(1, number) * 1000).astype(int).tolist()
        loads = loads_of(sizes, count)
        assert loads.sum() == sum(sizes)
        assert loads.max() <= loads.mean() + max(sizes, default=0)


@pytest.mark.parametrize("layers", [26, 50])
def test_shares_of_a_network_are_as_good_as_equal(layers):
    """To 3 parts in 100,000. A single kernel of R14 is larger than a quarter of it all."""
    model = ResNetV2(Architecture(UNITS[layers], 0.5), 10)
    loads = loads_of([one.size for one in model.parameters()], 4)
    assert loads.max() < 1.001 * loads.mean()


def test_all_processes_find_the_same_owners():
    sizes = [3, 3, 3, 1, 1, 5, 0, 3]
    assert distributed.owners(sizes, 3) == distributed.owners(np.asarray(sizes), 3)
    assert distributed.owners([2, 2, 2, 2], 2) == [0, 1, 0, 1]  # equal ones in turn
    assert distributed.owners([1, 2, 4], 2) == [1, 1, 0]
