"""The choice of a device. No GPU is at hand: what Paddle would say of one is made up here."""

import paddle
import pytest

from bit_paddle import parallel
from bit_paddle.errors import ConfigError


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
    assert parallel.select_device("auto") == "cpu"
    if not paddle.device.is_compiled_with_cuda():
        with pytest.raises(ConfigError, match="is the CPU build"):
            parallel.select_device("gpu")


def test_auto_takes_the_gpu(pretend):
    chosen = pretend(count=1)
    assert parallel.select_device("auto") == "gpu" and chosen == ["gpu"]
    assert parallel.select_device("cpu") == "cpu" and chosen == ["gpu", "cpu"]


def test_no_card(pretend):
    pretend(count=0)
    assert parallel.select_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="sees no GPU"):
        parallel.select_device("gpu")


def test_a_card_too_new_for_the_build(pretend):
    pretend(count=1, capability=(9, 0))
    with pytest.raises(ConfigError, match=r"compute capability 9\.0.*Paddle 3"):
        parallel.select_device("auto")
    pretend(count=1, capability=(9, 0), version="3.3.1")
    assert parallel.select_device("auto") == "gpu"
