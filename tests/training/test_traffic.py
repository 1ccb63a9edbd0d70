"""The bytes between processes: the formulas, what `plan` prints of them, and the kernel's count."""

import argparse
import itertools
import sys

import numpy as np
import pytest
from conftest import ROOT
from helpers.hosts import Network, available

from bit_paddle import create_model, errors, plan
from bit_paddle.models.architecture import LEARN, Architecture
from bit_paddle.training import traffic
from bit_paddle.training.traffic import Traffic

SIZES = [1000, 4_000_000, 64, 300_000]


@pytest.mark.parametrize("learn", LEARN)
@pytest.mark.parametrize("head", ["linear", "max+mean", "local"])
def test_learned_tensors_are_those_of_the_network(head, learn):
    model = create_model("R14x0.5", 7, head=head)
    model.learn_only(learn)
    found = Architecture.parse("R14x0.5")
    sizes = Architecture(found.units, found.width, head).learned_tensors(7, learn)
    assert sorted(sizes) == sorted(one.size for one in model.learned().values())


def test_a_ring_sends_each_gradient_almost_twice():
    for gloo in (False, True):
        for count in (2, 4, 256):
            expected = 2 * (count - 1) / count * 4 * sum(SIZES)
            assert traffic.of_step(SIZES, count, gloo=gloo) == [(expected, expected)] * count
    (one, _) = traffic.of_step(SIZES, 2, "bf16")
    assert one.sent == 2 * sum(SIZES)
    (one, _) = traffic.of_step(SIZES, 2, "bf16", shard=True)
    assert one.sent == (2 + 4) / 2 * sum(SIZES)  # the weights come back in float32


# Of 16 MB, as the kernel counted on a bridge: {processes: {root: [(sent, received) per rank]}}.
REDUCED = {
    2: {0: [(0.871, 1.403), (1.403, 0.871)], 1: [(1.395, 0.919), (0.919, 1.395)]},
    4: {0: [(0.871, 1.609), (1.133, 0.870), (1.133, 0.919), (1.133, 0.870)]},
}


def test_gloo_reduces_as_the_kernel_counted():
    for count, roots in REDUCED.items():
        for root, expected in roots.items():
            found = np.array(traffic._gloo_reduce(4_000_000, 4, count, root)) / 16e6
            assert np.abs(found / expected - 1).max() < 0.01
    assert traffic._gloo_reduce(3, 2, 4, 1)  # fewer numbers than processes


def test_gloo_starts_in_a_tree_and_nccl_in_a_chain():
    assert traffic.at_start(10, 4, gloo=True) == [(80, 0), (40, 40), (0, 40), (0, 40)]
    assert traffic.at_start(10, 3, gloo=True) == [(80, 0), (0, 40), (0, 40)]
    assert traffic.at_start(10, 3) == [(40, 0), (40, 40), (0, 40)]


def test_seconds_are_those_of_the_busier_direction():
    assert Traffic(125e6, 250e6).seconds(10) == pytest.approx(0.2)


# --- What the plan prints -----------------------------------------------------------------------

WORDS = "--model BiT-M-R50x1 --dataset cifar10"


@pytest.mark.parametrize(
    "more, sent, start",
    [
        ("--gpus 4", "141.1", "94.1"),
        ("--gpus 4 --reduce_dtype bf16", "70.6", "94.1"),
        ("--gpus 4 --reduce_dtype bf16 --shard --amp bf16", "105.8", "94.1"),
        ("--nproc 4", "141.1", "188.2"),
        ("--gpus 8 --learn block4", "104.9", "94.1"),
    ],
)
def test_the_plan_states_the_traffic(more, sent, start, capsys):
    """R50x1 with 10 outputs has 23.5 million parameters: 94.1 MB."""
    assert plan.main([*WORDS.split(), *more.split()]) == 0
    text = capsys.readouterr().out
    assert f"sends up to {sent} MB per step" in text
    assert f"rank 0 sends its weights: {start} MB" in text
    assert ("With --reduce_dtype bf16 a step" in text) == ("bf16" not in more)
    (speeds,) = (line.split()[1:] for line in text.splitlines() if "Gbit/s" in line)
    (times,) = (line.split()[2::2] for line in text.splitlines() if line[14:].startswith("a step"))
    assert speeds == ["1", "10", "25", "100"]
    expected = [8 * float(sent) / int(gbit) for gbit in speeds]  # in ms
    found = [float(time.replace(",", "")) for time in times]
    assert found == pytest.approx(expected, rel=0.01) or ("nproc" in more and found > expected)


def test_one_process_exchanges_nothing(capsys):
    assert plan.main(WORDS.split()) == 0
    assert "traffic" not in capsys.readouterr().out
    assert errors.run_command(plan.main, [*WORDS.split(), "--reduce_dtype", "fp8"]) == 2


@pytest.fixture
def speedup(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts/benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import speedup

    yield speedup
    sys.modules.pop("speedup")


# --- The kernel's count -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(bool(available()), reason=available())
def test_the_kernel_counts_what_the_plan_states(tmp_path, speedup):
    """Of two hosts, each of which makes a step of every kind, within 5 %."""
    flags = argparse.Namespace(network="R14x1", host_batch=2, side=32, host_steps=1)
    kinds = ("float32", "bf16", "float32 shard", "bf16 shard")
    with Network(2) as two:
        rows = speedup.run(two.hosts, str(tmp_path), flags, kinds)
    assert [row["kind"] for row in rows] == ["start", *kinds]
    for row in rows:
        print(speedup.row_of({"hosts": 2, "rate": "unlimited", **row}))
        for counted, planned in zip(row["bytes"], row["planned"]):
            assert [one for one in planned if one] and len(counted) == 2
            for one, other in zip(counted, planned):
                assert one == pytest.approx(other, rel=0.05, abs=2e5)


# --- The model of speed-up ----------------------------------------------------------------------


def test_the_fit_finds_the_numbers_of_its_model(speedup):
    made = {"share": 0.9, "latency": 0.002, "compute": {2: 0.5, 4: 0.8}, "hidden": 0.4}
    rows = []
    for count, rate, kind in itertools.product((2, 4), (800, 200, 50), speedup.TIMED):
        dtype = "bf16" if "bf16" in kind else "float32"
        planned = traffic.of_step(SIZES, count, dtype, gloo=True)
        row = {"hosts": count, "rate": f"{rate}mbit", "kind": kind, "planned": planned}
        rows.append({**row, "collectives": len(SIZES)})
        alone = kind == "alone"
        rows[-1]["seconds"] = (
            0.5 + 0.15 * (count - 2) if alone else speedup.predicted(rows[-1], made)
        )
    found = speedup.fitted(rows)
    assert found["compute"] == pytest.approx(made["compute"])
    assert found["share"] == pytest.approx(0.9) and found["latency"] == pytest.approx(0.002)
    assert found["hidden"] == pytest.approx(0.4)
    assert "largest 0.0%" in speedup.described(found, rows)


def test_the_model_has_its_limits(speedup):
    """No traffic gives n; without a network's limits only the latency is left."""
    model = {"share": 1.0, "latency": 0.0, "compute": {}, "hidden": 0.5}
    flags = argparse.Namespace(gpu_network="R50x1", images_per_second=300, latency=0.0)
    assert speedup.speed_up(model, flags, 1, 10, 512, "float32") == 1
    assert speedup.speed_up(model, flags, 8, 1e9, 512, "float32") == pytest.approx(8)
    slow, half, fast = (
        speedup.speed_up(model, flags, 256, gbit, 512, dtype)
        for gbit, dtype in ((10, "float32"), (10, "bf16"), (100, "float32"))
    )
    assert 1 < slow < half < fast < 256
    flags.latency = 1e-4
    assert speedup.speed_up(model, flags, 256, 1e9, 512, "float32") < 100
