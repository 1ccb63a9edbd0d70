"""Two hosts, as network namespaces: they compute as one process, and notice a pulled cable.

scripts/benchmarks/hosts.py breaks whole runs in many more ways.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, wait_until
from helpers import hosts

from bit_paddle.errors import PeerError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(hosts.available()), reason=hosts.available()),
]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def network():
    with hosts.Network(2) as network:
        yield network


def test_they_compute_as_one_process(network, image_folder, tmp_path):
    """Ten steps in float64, with MixUp; Paddle's launcher starts and joins them."""
    script = [ROOT / "tests/workers/training.py", tmp_path, image_folder, "[1]", "8 in 1"]
    launcher = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch"]
    launcher += ["--nnodes", 2, "--master", f"{network.hosts[0].address}:8090"]
    launcher += ["--nproc_per_node", 1, "--log_dir"]
    with open(tmp_path / "output.txt", "w", encoding="utf-8") as output:
        options = {"cwd": ROOT, "env": ENVIRONMENT, "stdout": output, "stderr": output}
        launched = [
            host.start(*launcher, tmp_path / host.name, *script, **options)
            for host in network.hosts
        ]
        subprocess.run([sys.executable, *script], env=ENVIRONMENT, stderr=output, check=True)
        statuses = [one.wait(timeout=300) for one in launched]
    assert statuses == [0, 0], (tmp_path / "output.txt").read_text(encoding="utf-8")
    sent, received = network.hosts[0].bytes()
    with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "2.npz") as two:
        assert one.files == two.files and len(one["8 in 1/loss"]) == 10
        worst = max(np.abs(one[key] - two[key]).max() / np.abs(one[key]).max() for key in one)
        volume = 10 * sum(one[key].nbytes for key in one.files)  # and the model, once
    assert worst < 1e-9
    assert min(sent, received) > volume


def test_a_pulled_cable_is_named_on_both_sides(network, tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from bit_paddle import errors
from bit_paddle.system import peers, processes
peers.SILENCE, peers.BEAT = 3.0, 0.2
def main(_):
    with peers.joined():
        peers.meet()
        while True:
            peers.meet()
            Path({str(tmp_path)!r}, str(processes.rank())).touch()
            time.sleep(0.05)
sys.exit(errors.run_command(main, []))
"""
    endpoints = ",".join(f"{host.address}:9000" for host in network.hosts)
    started = []
    for rank, host in enumerate(network.hosts):
        host.environment = {"PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": "2"}
        host.environment["PADDLE_TRAINER_ENDPOINTS"] = endpoints
        options = {"cwd": ROOT, "env": ENVIRONMENT, "stderr": subprocess.PIPE, "text": True}
        started.append(host.start(sys.executable, "-c", code, **options))
    wait_until(lambda: all((tmp_path / rank).exists() for rank in "01"))
    network.hosts[1].cut()
    for rank, process in enumerate(started):
        assert process.wait(timeout=60) == PeerError.exit_status
        other = f"host{2 - rank} (rank {1 - rank})"
        assert f"nothing was heard from {other} for 3 s" in process.stderr.read()
