"""Several machines on one: network namespaces that a bridge joins, each with its own address.

Needs Linux, root and iproute2 (`available` tells what is missing). Nothing leaves the machine.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_WIRE = Path(__file__).with_name("wire.py")

_numbers = itertools.count()


def available() -> str:
    """Return why there can be no hosts here, or "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not all(map(shutil.which, ("ip", "tc", "unshare"))):
        return "iproute2 is not installed"
    probe = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True)
    return "" if probe.returncode == 0 else "the kernel refuses network namespaces"


def _run(*words: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{shlex.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


class Host:
    """A machine: a network namespace with the address and the name that the others know it by.

    Its processes see ``mounts`` {folder or file: what is there on this host}, which exist, and the
    variables of ``environment``.
    """

    def __init__(self, network: Network, number: int):
        self.name, self.address = f"host{number}", f"10.77.{network.number}.{number}"
        self.namespace = f"{network.name}h{number}"
        self.mounts: dict[Path, Path] = {}
        self.environment: dict[str, str] = {}
        self.processes: list[subprocess.Popen] = []
        self.wire: subprocess.Popen | None = None
        self._cable = f"{network.name}c{number}"  # its end at the bridge

    def command(self, *words: object) -> list[str]:
        """Return the command that runs ``words`` on this host."""
        lines = [f"hostname {self.name}"]
        lines += [shlex.join(["mount", "--bind", str(b), str(a)]) for a, b in self.mounts.items()]
        lines += [f"export {shlex.quote(f'{k}={v}')}" for k, v in self.environment.items()]
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount"]
        script = " && ".join([*lines, 'exec "$@"'])
        return [*enter, "sh", "-c", script, "sh", *map(str, words)]

    def start(self, *words: object, **options: object) -> subprocess.Popen:
        """Start a process on this host; `Network.close` ends it."""
        options = {"start_new_session": True, **options}
        self.processes.append(subprocess.Popen(self.command(*words), **options))
        return self.processes[-1]

    def run(self, *words: object) -> str:
        """Run a process on this host to its end; return what it has printed."""
        return _run(*self.command(*words))

    # --- Faults ---------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """Return all processes of this host."""
        return list(map(int, _run("ip", "netns", "pids", self.namespace).split()))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all processes of this host, as `kill` or a frozen machine does."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def cut(self) -> None:
        """Pull the cable."""
        _run("ip", "link", "set", self._cable, "down")

    def mend(self) -> None:
        """Plug the cable in."""
        _run("ip", "link", "set", self._cable, "up")

    def bad_cable(self, loss: float, delay: float) -> None:
        """Lose a share of the frames, and delay each by ``delay`` seconds, in both directions."""
        self.wire.stdin.write(f"{loss} {delay}\n")
        self.wire.stdin.flush()

    def limit(self, rate: str) -> None:
        """Limit what this host sends and receives to a rate such as ``200mbit``."""
        bucket = ["tbf", "rate", rate, "burst", "128k", "latency", "50ms"]
        _run("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", "root", *bucket)
        _run("tc", "qdisc", "replace", "dev", self._cable, "root", *bucket)

    def bytes(self) -> tuple[int, int]:
        """Return the bytes that this host has sent and received, as its kernel counts them."""
        folder = "/sys/class/net/eth0/statistics"
        text = self.run(
            "sh", "-c", f"mount -t sysfs s /sys; cat {folder}/tx_bytes {folder}/rx_bytes"
        )
        sent, received = map(int, text.split())
        return sent, received


class Network:
    """``with Network(2) as network``: hosts, a bridge between them, and no trace of them after.

    Frames go through a process only with ``bad_cables``, for `Host.bad_cable`: that costs time.
    """

    def __init__(self, count: int, bad_cables: bool = False):
        self.number = 1 + (os.getpid() + next(_numbers)) % 254
        self.name = f"bp{os.getpid() % 100000}n{self.number}"[:11]
        self._bad_cables = bad_cables
        self.hosts = [Host(self, number) for number in range(1, count + 1)]

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _build(self) -> None:
        _run("ip", "link", "add", self.name, "type", "bridge")
        _run("ip", "link", "set", self.name, "up")
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        for host in self.hosts:
            folder = Path("/etc/netns", host.namespace)  # `ip netns exec` mounts its files
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}", encoding="utf-8")
            _run("ip", "netns", "add", host.namespace)
            if self._bad_cables:
                host.wire = subprocess.Popen(
                    [sys.executable, str(_WIRE), host._cable, host.namespace],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                host.wire.stdout.readline()
            else:
                peer = ["peer", "name", "eth0", "netns", host.namespace]
                _run("ip", "link", "add", host._cable, "type", "veth", *peer)
            _run("ip", "link", "set", host._cable, "master", self.name, "up")
            inside = ["ip", "-n", host.namespace]
            _run(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
            _run(*inside, "link", "set", "eth0", "up")
            _run(*inside, "link", "set", "lo", "up")

    def ssh(self, folder: Path) -> None:
        """Write a stand-in for ssh into ``folder``: it enters the host of that name."""
        cases = "".join(
            f'{host.name}) exec {shlex.join(host.command("sh", "-c"))} "$*" ;;\n'
            for host in self.hosts
        )
        text = (
            f'while [ "$1" = -o ]; do shift 2; done\nhost=$1\nshift\ncase $host in\n{cases}esac\n'
        )
        (folder / "ssh").write_text(f"#!/bin/sh\n{text}exit 255\n", encoding="utf-8")
        (folder / "ssh").chmod(0o755)

    def close(self) -> None:
        """End all processes of all hosts and remove the hosts."""
        for host in self.hosts:
            with suppress(OSError):
                deadline = time.monotonic() + 5
                while host.pids() and time.monotonic() < deadline:
                    host.send(signal.SIGKILL)
                    time.sleep(0.02)
            for process in host.processes:
                process.wait(timeout=10)
            if host.wire is not None:
                host.wire.communicate()
            for words in (["netns", "del", host.namespace], ["link", "del", host._cable]):
                with suppress(OSError):
                    _run("ip", *words)
            shutil.rmtree(Path("/etc/netns", host.namespace), ignore_errors=True)
        with suppress(OSError):
            _run("ip", "link", "del", self.name)
