"""Training over several machines, which are network namespaces here: `scaling.py --hosts`.

Each host is a namespace with its own address; `tc` limits its rate. Every host trains the same
network on its share of each batch, by the package's own step. The kernel counts the bytes, and a
model of the time of a step is fitted:

    exchange = bytes / (share of the rate) + collectives * hops * latency
    step = compute + exchange                                    without overlap
    step = compute + max(0, exchange - hidden * compute)         beside the backward pass

Needs Linux, root and iproute2. Nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from helpers.hosts import Network

from bit_paddle.models.architecture import Architecture
from bit_paddle.training import traffic

UNLIMITED = "unlimited"
MOST = 1.05  # of the rate: a fit above it tells of other work on the machine, not of the network
TIMED = ("alone", "float32", "bf16", "float32 late", "bf16 late")
COUNTED = (*TIMED, "float32 shard", "bf16 shard")  # where the rate is unlimited
CLASSES, PORT = 10, 6170


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several hosts")
    for name, kind, default, text in (
        ("network", str, "R26x1", "network to train on the hosts"),
        ("host_batch", int, 4, "images per step of all hosts"),
        ("host_steps", int, 5, "steps per row"),
        ("gpu_network", str, "R50x1", "network of the model of GPUs"),
        ("images_per_second", float, 300.0, "assumed speed of one GPU in training"),
        ("latency", float, 1e-5, "assumed seconds per hop of a collective between GPUs"),
    ):
        group.add_argument(f"--{name}", type=kind, default=default, help=f"{text} ({default})")
    group.add_argument("--hosts", type=int, nargs="+", help="numbers of hosts, such as 2 4")
    rates = [800, 400, 200]
    group.add_argument("--rates", type=int, nargs="+", default=rates, help="limits in Mbit/s")


def main(flags: argparse.Namespace) -> None:
    """Measure, compare with the plan, fit, and draw the model if ``flags.plot`` is given."""
    rows = []
    print("hosts  rate       exchange        s/step  sent MB  planned  worst")
    for count in flags.hosts:
        with tempfile.TemporaryDirectory() as folder, Network(count) as network:
            for rate in (UNLIMITED, *(f"{rate}mbit" for rate in flags.rates)):
                for host in network.hosts if rate != UNLIMITED else ():
                    host.limit(rate)
                kinds = COUNTED if rate == UNLIMITED else TIMED
                for found in run(network.hosts, folder, flags, kinds):
                    rows.append({"hosts": count, "rate": rate, **found})
                    print(row_of(rows[-1]), flush=True)
    model = fitted(rows)
    print(described(model, rows))
    if flags.json:
        flags.json.write_text(json.dumps({"rows": rows, "model": model}, indent=1))
    if model["share"] > MOST:
        raise SystemExit(
            "fitted is more than the whole rate: the hosts were busy; nothing is drawn"
        )
    if flags.plot:
        draw(model, flags)


def row_of(row: dict) -> str:
    """Return a line: the traffic of the busiest host, and the largest distance from the plan."""
    pairs = list(zip(row["bytes"], row["planned"]))
    worst = max([abs(b / a - 1) for one, two in pairs for b, a in zip(one, two) if a] or [0])
    sent, planned = (max(one[0] for one in row[key]) / 1e6 for key in ("bytes", "planned"))
    seconds = f"{row['seconds']:7.3f}" if row["kind"] != "start" else " " * 7
    start = f"{row['hosts']:5}  {row['rate']:9}  {row['kind']:13} {seconds}"
    return f"{start} {sent:8.2f} {planned:8.2f} {worst:6.1%}"


# --- Hosts --------------------------------------------------------------------------------------


def run(hosts: list, folder: str, flags: argparse.Namespace, kinds: Sequence[str]) -> list[dict]:
    """Run the worker on all hosts; return what was measured, by the median of the steps."""
    ends = [f"{host.address}:{PORT}" for host in hosts]
    words = [flags.network, flags.host_batch, flags.side, flags.host_steps]
    workers = []
    for rank, host in enumerate(hosts):
        own = {
            "PADDLE_TRAINERS_NUM": str(len(hosts)),
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINER_ENDPOINTS": ",".join(ends),
            "PADDLE_CURRENT_ENDPOINT": ends[rank],
            "PADDLE_MASTER": f"{hosts[0].address}:{PORT + 1}",
            "PADDLE_DISTRI_BACKEND": "gloo",
            "GLOO_SOCKET_IFNAME": "eth0",
            "GLOG_minloglevel": "2",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-W", "ignore", __file__, *words, f"{folder}/{rank}", *kinds]
        workers.append(host.start(*command, env={**os.environ, **own}))
    if max(worker.wait() for worker in workers):
        raise SystemExit("a host has failed")
    told = [json.loads(Path(folder, str(rank)).read_text()) for rank in range(len(hosts))]
    return [compared(kind, [one[kind] for one in told], flags) for kind in told[0]]


def compared(kind: str, told: list[dict], flags: argparse.Namespace) -> dict:
    """Return what the hosts told of one kind of step, beside what the plan says of it."""
    sizes, count = Architecture.parse(flags.network).learned_tensors(CLASSES, "all"), len(told)
    if kind == "start":
        planned = traffic.at_start(sum(sizes), count, gloo=True)
    elif kind == "alone":
        planned = [traffic.Traffic(0, 0)] * count
    else:
        dtype, shard = kind.split()[0], "shard" in kind
        planned = traffic.of_step(sizes, count, dtype, shard, gloo=True)
    slowest = [max(times) for times in zip(*(one["seconds"] for one in told))]
    return {
        "kind": kind,
        "seconds": statistics.median(slowest),
        "bytes": [np.mean(one["bytes"], axis=0).tolist() for one in told],
        "planned": planned,
        "collectives": len(sizes),
    }


# --- On each host -------------------------------------------------------------------------------


def counted() -> np.ndarray:
    """Return the bytes that this host has sent and received, as its kernel counts them."""
    folder = Path("/sys/class/net/eth0/statistics")
    return np.array([int((folder / f"{way}_bytes").read_text()) for way in ("tx", "rx")])


def work(network: str, batch: str, side: str, steps: str, path: str, *kinds: str) -> None:
    """Measure steps of all ``kinds`` on this host, in turn; write them to ``path``."""
    import paddle

    from bit_paddle.models.weights import create_model
    from bit_paddle.training import distributed
    from bit_paddle.training.selftest import numbers

    Sums = distributed.GradientSums

    class Alone(Sums):
        """Exchanges no gradient, to measure what a host computes."""

        @contextmanager
        def exchanged(self) -> Iterator[Callable[[], None]]:
            yield self.give_up

    def begin(kind: str) -> Callable[[], object]:
        model = create_model(network, CLASSES, seed=0)
        sums_of = {"alone": Alone, "late": numbers.LateSums}.get(kind.split()[-1], Sums)
        sums = sums_of(model.parameters(), "shard" in kind, None, kind.split()[0])
        return numbers.stepper(model, sums, images)

    def settled() -> np.ndarray:
        distributed.largest(0)
        time.sleep(0.1)
        return counted()

    def measure(kind: str, call: Callable[[], object]) -> None:
        before = settled()
        told[kind]["seconds"].append(numbers.seconds_of(call))
        told[kind]["bytes"].append((settled() - before).tolist())

    distributed.join()
    share = -(-int(batch) // int(os.environ["PADDLE_TRAINERS_NUM"]))
    images = paddle.randn([share, 3, int(side), int(side)])
    told = {kind: {"seconds": [], "bytes": []} for kind in ("start", *kinds)}
    calls = {kind: begin(kind) for kind in kinds}
    parameters = create_model(network, CLASSES, seed=0).parameters()
    measure("start", lambda: distributed.broadcast(parameters))
    for call in calls.values():
        call()
    for _ in range(int(steps)):
        for kind, call in calls.items():
            measure(kind, call)
    Path(path).write_text(json.dumps(told))


# --- The model ----------------------------------------------------------------------------------


def exchange(row: dict, share: float, latency: float) -> float:
    """Return the seconds of an exchange by the model: gloo's ring has 2 (hosts - 1) hops."""
    busiest = max(max(one) for one in row["planned"])
    hops = row["collectives"] * 2 * (row["hosts"] - 1)
    return 8 * busiest / (share * rate_of(row)) + hops * latency


def rate_of(row: dict) -> float:
    return float(row["rate"].removesuffix("mbit")) * 1e6


def fitted(rows: list[dict]) -> dict:
    """Fit the model to the limited rows, with the least squares of relative errors.

    ``compute`` is measured, by the hosts that exchange nothing. The rows without overlap give the
    share of the rate and the latency; those with overlap then give ``hidden``.
    """
    limited = [row for row in rows if row["rate"] != UNLIMITED]
    counts = sorted({row["hosts"] for row in rows})
    alone = [row for row in rows if row["kind"] == "alone"]
    compute = {
        n: statistics.median(row["seconds"] for row in alone if row["hosts"] == n) for n in counts
    }
    late = [row for row in limited if "late" in row["kind"]]
    seconds = np.array([row["seconds"] for row in late])
    extra = seconds - [compute[row["hosts"]] for row in late]
    matrix = np.array([[exchange(row, 1, 0), exchange(row, np.inf, 1)] for row in late])
    slope, latency = np.linalg.lstsq(matrix / seconds[:, None], extra / seconds, rcond=None)[0]
    model = {"share": float(1 / slope), "latency": float(latency), "compute": compute}
    beside = [row for row in limited if row["kind"] in ("float32", "bf16")]

    def error(hidden: float) -> float:
        tried = {**model, "hidden": hidden}
        return sum((predicted(row, tried) / row["seconds"] - 1) ** 2 for row in beside)

    return {**model, "hidden": min(np.linspace(0, 1, 101).tolist(), key=error)}


def predicted(row: dict, model: dict) -> float:
    """Return the seconds of a step of ``row`` by the model."""
    compute = model["compute"][row["hosts"]]
    hidden = 0 if "late" in row["kind"] else model["hidden"] * compute
    return compute + max(0, exchange(row, model["share"], model["latency"]) - hidden)


def described(model: dict, rows: list[dict]) -> str:
    """Return the fitted numbers, and how well the rows agree with them."""
    errors = [
        abs(predicted(row, model) / row["seconds"] - 1)
        for row in rows
        if row["rate"] != UNLIMITED and row["kind"] in TIMED[1:]
    ]
    compute = ", ".join(f"{n} hosts {one:.3f} s" for n, one in model["compute"].items())
    return (
        f"fitted: {model['share']:.0%} of the rate, {1000 * model['latency']:.2f} ms per hop; "
        f"compute {compute},\n{model['hidden']:.0%} of it hides an exchange; "
        f"errors of {len(errors)} rows: median {statistics.median(errors):.1%}, "
        f"largest {max(errors):.1%}"
    )


def speed_up(
    model: dict, flags: argparse.Namespace, gpus: int, gbit: float, batch: int, dtype: str
) -> float:
    """Return the speed-up by the model: what ``gpus`` GPUs do in the time that one needs for it.

    Assumed: NCCL's ring with the fitted share of the rate, ``flags.latency`` seconds per collective
    and hop of a tree, and the fitted share of the compute time that hides the exchange.
    """
    sizes = Architecture.parse(flags.gpu_network).learned_tensors(1000, "all")
    compute = batch / gpus / flags.images_per_second
    if gpus == 1:
        return 1.0
    seconds = traffic.of_step(sizes, gpus, dtype)[0].seconds(gbit * model["share"])
    seconds += len(sizes) * 2 * np.log2(gpus) * flags.latency
    step = compute + max(0, seconds - model["hidden"] * compute)
    return gpus * compute / step


def draw(model: dict, flags: argparse.Namespace) -> None:
    """Draw the speed-up at 8 to 256 GPUs, for the rule's batch and for 64 images per GPU."""
    from matplotlib.figure import Figure

    gpus = [8, 16, 32, 64, 128, 256]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = {"batch of 512, BiT-HyperRule": lambda n: 512, "64 images per GPU": lambda n: 64 * n}
    for axes, (title, batch) in zip(figure.subplots(1, 2), panels.items()):
        for (gbit, color), (dtype, style) in itertools.product(
            ((10, "C3"), (25, "C1"), (100, "C0")), (("float32", "-"), ("bf16", "--"))
        ):
            ups = [speed_up(model, flags, n, gbit, batch(n), dtype) for n in gpus]
            label = f"{gbit} Gbit/s, {dtype}"
            axes.plot(gpus, ups, style, color=color, marker="o", markersize=3, label=label)
            print(f"{title}, {label}: " + ", ".join(f"{n}: {up:.0f}" for n, up in zip(gpus, ups)))
        axes.plot(gpus, gpus, ":", color="gray", label="no traffic")
        axes.set(title=title, xlabel="GPUs, one network card each", xscale="log", yscale="log")
        axes.set_xticks(gpus, gpus)
        axes.minorticks_off()
    figure.axes[0].set_ylabel("speed-up over one GPU, by the model")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(
        f"Model, not measured on GPUs: {flags.gpu_network}, assumed {flags.images_per_second:g} "
        f"images/s per GPU, {flags.latency * 1e6:g} µs per hop; {model['share']:.0%} of the rate "
        f"and {model['hidden']:.0%} overlap fitted on CPU hosts",
        fontsize=9,
    )
    figure.savefig(flags.plot, dpi=120)


if __name__ == "__main__":
    work(*sys.argv[1:])
