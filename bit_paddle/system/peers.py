"""What the processes of one run tell each other beside Paddle: that they live, and why they end.

Rank 0 listens at its endpoint (PADDLE_TRAINER_ENDPOINTS, where Paddle itself does not listen), and
the others connect to it. Each side sends a line of JSON every `BEAT` seconds. A process that ends
closes its connection, and one that hangs or is cut off is silent. Rank 0 tells all others, so that
all end with the same message, which names the machine and the cause. Does not load Paddle.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from bit_paddle.errors import BitPaddleError, ConfigError, PeerError
from bit_paddle.system import processes
from bit_paddle.system.signals import held

BEAT, SILENCE = 2.0, 20.0  # seconds: between two lines; without one, until a process counts as lost
START = 300.0  # the same while processes start: a slow disk may take as long to load Paddle

_LONGEST = 1 << 20  # bytes of a line

_LOOK = 0.05  # seconds until a connection is looked at again; a process that ends waits as long

_team: Team | None = None  # None in a run of one process


@contextmanager
def joined() -> Iterator[None]:
    """Inside, this process and the others of its run know of each other.

    An error inside is told to the others. Each raises `PeerError` with its message, at the latest
    when it next needs them; one that still computes after a grace period is ended.
    """
    global _team
    if processes.world_size() == 1:
        yield
        return
    _team = team = Team(processes.rank(), processes.endpoints())
    try:
        yield
    except BaseException as error:
        team.leave(str(error) if isinstance(error, BitPaddleError) else repr(error))
        raise
    else:
        team.leave(None)
    finally:
        _team = None


def meet(facts: Mapping[str, Any] | None = None) -> None:
    """Wait until all processes have called this as often as this one; they may take any time.

    So a collective of gloo begins in all at once: it gives up after 30 s. ``facts`` must be equal
    in all. Raises `PeerError` if a process is lost, `ConfigError` in all if the facts differ.
    """
    if _team is not None:
        _team.meet(facts)


def lost(error: BaseException) -> PeerError | ConfigError:
    """Return what to raise for a collective that failed by ``error``; waits for the reason."""
    if _team is None:
        return PeerError("another process of this run has ended")
    reason = " ".join(str(error).split())[-200:]
    if "timeout" in reason.lower() or "timed out" in reason.lower():
        reason = "gloo gave up after 30 s; does the network lose or delay too much?"
    return _team.lost(reason)


class _Link:
    """A connection to another process, whose rank and machine are unknown until it tells them."""

    def __init__(self, connection: socket.socket, rank: int | None = None):
        self.socket, self.rank, self.host = connection, rank, ""
        self.heard, self._read = time.monotonic(), b""
        self._sending = threading.Lock()
        connection.settimeout(BEAT)
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, **message: Any) -> None:
        with self._sending, suppress(OSError):  # the other end has gone: reading tells it
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived. Raises `OSError` or ValueError at the end."""
        data = self.socket.recv(1 << 16)
        if not data or len(self._read) > _LONGEST:
            raise ConnectionError
        self.heard = time.monotonic()
        *lines, self._read = (self._read + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError(messages)
        return messages


class Team:
    """The process of ``rank``, and its connections: rank 0 has one to each other process."""

    def __init__(self, rank: int, endpoints: list[str]):
        self._rank, self._endpoints = rank, endpoints
        self._host = socket.gethostname()
        self._changed = threading.Condition()
        self._error: type[PeerError | ConfigError] = PeerError
        self._fault: str | None = None  # why the run ends
        self._met, self._calls = 0, 0  # meetings that all have come to, and this process
        self._came: dict[int, list[dict[str, str]]] = {}  # {rank: facts of meetings, of `_met` on}
        self._leaving = False
        self._deadline: float | None = None
        self._links: list[_Link] = []
        self._joined: set[int] = set()  # ranks that have ever told who they are
        self._left: set[int] = set()  # ranks that have ended in good order
        self._selector = selectors.DefaultSelector()
        self._began = time.monotonic()
        address, port = endpoints[0].rsplit(":", 1)
        if rank == 0:
            self._listener = socket.create_server(("", int(port)), backlog=len(endpoints))
            self._selector.register(self._listener, selectors.EVENT_READ)
        else:
            self._connect(address, int(port))
        self._thread = threading.Thread(target=self._run, daemon=True, name="peers")
        with held(signal.SIGTERM):  # for good in the thread: the main thread alone gets it
            self._thread.start()

    def _connect(self, address: str, port: int) -> None:
        while True:
            try:
                connection = socket.create_connection((address, port), timeout=BEAT)
                break
            except OSError as error:
                if time.monotonic() > self._began + START:
                    raise PeerError(
                        f"{self._name(0)} cannot be reached at {address}:{port} after "
                        f"{START:.0f} s: {error}"
                    ) from error
                time.sleep(0.1)
        self._add(_Link(connection, 0))
        self._links[0].send(hello=self._rank, host=self._host)

    def _add(self, link: _Link) -> None:
        self._links.append(link)
        self._selector.register(link.socket, selectors.EVENT_READ, link)

    # --- Called by the main thread --------------------------------------------------------------

    def meet(self, facts: Mapping[str, Any] | None) -> None:
        """See `meet`."""
        texts = {name: _short(value) for name, value in (facts or {}).items()}
        with self._changed:
            self._calls += 1
            if self._rank == 0:
                self._arrive(0, texts)
            for link in self._links if self._rank else ():
                link.send(meet=texts)
            self._changed.wait_for(lambda: self._fault is not None or self._met >= self._calls)
            if self._met < self._calls:
                raise self._raised()

    def lost(self, reason: str) -> PeerError | ConfigError:
        """See `lost`."""
        with self._changed:
            self._changed.wait_for(lambda: self._fault is not None, BEAT)
            if self._fault is not None:
                return self._raised()
        return PeerError(f"the exchange with the other processes has failed: {reason}")

    def leave(self, fault: str | None) -> None:
        """End the connections; tell the others the ``fault`` of this process, if it has one.

        After a fault rank 0 waits for those that have not joined yet, to tell them, too.
        """
        if fault is not None:
            self._end(f"{self._name(self._rank, self._host)} has failed: {fault}")
            if self._rank == 0 and not processes.started_by_us():
                with self._changed:
                    self._changed.wait_for(lambda: not self._missing(), SILENCE)
        with self._changed:
            self._leaving = True
        for link in list(self._links):
            link.send(left=True)
        self._thread.join(2 * BEAT)

    def _raised(self) -> PeerError | ConfigError:
        if processes.started_by_us() and self._error is PeerError:
            return PeerError("another process of this run has ended")  # the parent tells why
        return self._error(self._fault)

    # --- The thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        beat = 0.0
        while not self._leaving:
            for key, _ in self._selector.select(_LOOK):
                if key.data is None:
                    with suppress(OSError):
                        self._add(_Link(self._listener.accept()[0]))
                else:
                    self._receive(key.data)
            if time.monotonic() >= beat:
                beat = time.monotonic() + BEAT
                for link in self._links:
                    link.send()
                self._look()
        self._close()

    def _close(self) -> None:
        self._selector.close()
        for link in self._links:
            with suppress(OSError):  # not close: what was sent last must arrive
                link.socket.shutdown(socket.SHUT_WR)
        if self._rank == 0:
            self._listener.close()

    def _receive(self, link: _Link) -> None:
        try:
            for message in link.receive():
                self._take(link, message)
        except (OSError, ValueError, TypeError, KeyError, IndexError):
            self._selector.unregister(link.socket)
            self._links.remove(link)
            link.socket.close()
            if link.rank is not None and link.rank not in self._left:
                self._end(
                    f"{self._name(link.rank, link.host)} has ended without a message: killed?"
                )

    def _take(self, link: _Link, message: dict[str, Any]) -> None:
        if link.rank is None:
            rank = int(message["hello"])
            if not 0 < rank < len(self._endpoints) or rank in self._joined:
                raise ValueError(rank)
            link.rank, link.host = rank, str(message["host"])
            self._joined.add(rank)
            link.send(host=self._host)
            with self._changed:
                self._changed.notify_all()
            if self._fault is not None:
                link.send(fault=self._fault)
        elif "meet" in message:
            with self._changed:
                self._arrive(link.rank, dict(message["meet"]))
        elif "met" in message:
            with self._changed:
                self._met = int(message["met"])
                self._changed.notify_all()
        elif "fault" in message:
            error = ConfigError if message.get("differs") else PeerError
            self._end(str(message["fault"]), error)
        elif "left" in message:
            self._left.add(link.rank)
        elif "host" in message:
            link.host = str(message["host"])

    def _arrive(self, rank: int, facts: dict[str, str]) -> None:
        """Note, in rank 0, that ``rank`` has come to its next meeting; begin it if all have."""
        self._came.setdefault(rank, []).append(facts)
        while len(self._came) == len(self._endpoints) and all(self._came.values()):
            every = {rank: facts.pop(0) for rank, facts in self._came.items()}
            for other in sorted(every):
                if every[other] != every[0]:
                    self._end(self._difference(other, every[0], every[other]), ConfigError)
                    return
            self._met += 1
            for link in self._links:
                link.send(met=self._met)
            self._changed.notify_all()

    def _difference(self, other: int, first: dict[str, str], second: dict[str, str]) -> str:
        lines = "".join(
            f"\n  {key}: {first.get(key)} -> {second.get(key)}"
            for key in {**first, **second}
            if first.get(key) != second.get(key)
        )
        host = next(link.host for link in self._links if link.rank == other)
        return (
            f"{self._name(other, host)} differs from {self._name(0, self._host)}:{lines}\n"
            "All machines of a run need the same version, data and flags"
        )

    def _look(self) -> None:
        """Report silent processes; end this one if it has not ended in its time after a fault."""
        now = time.monotonic()
        limit = SILENCE if self._met > 1 else START
        if self._deadline is not None and processes.is_saving():
            self._deadline = now + processes.GRACE
        if self._deadline is not None and now > self._deadline:
            print(f"error: {self._fault}", file=sys.stderr, flush=True)
            os._exit(PeerError.exit_status)
        silent = [
            self._name(link.rank, link.host)
            for link in self._links
            if link.rank is not None and link.rank not in self._left and now > link.heard + limit
        ]
        if silent:
            others = len(self._endpoints) - 1
            own = f", or {self._host} is cut off" if len(silent) == others else ""
            self._end(
                f"nothing was heard from {', '.join(silent)} for {limit:.0f} s: it hangs or is cut "
                f"off{own}"
            )
        if self._rank == 0 and now > self._began + START and self._missing():
            names = ", ".join(map(self._name, self._missing()))
            self._end(f"{names}: no process has joined the run after {START:.0f} s")

    def _end(self, fault: str, error: type[PeerError | ConfigError] = PeerError) -> None:
        """Note why the run ends, and tell the others."""
        with self._changed:
            if self._fault is not None or self._leaving:
                return
            self._fault, self._error = fault, error
            self._deadline = time.monotonic() + processes.GRACE
            self._changed.notify_all()
        for link in list(self._links):
            link.send(fault=fault, differs=error is ConfigError)

    def _missing(self) -> list[int]:
        """Return the ranks that have not joined, in rank 0."""
        return [rank for rank in range(1, len(self._endpoints)) if rank not in self._joined]

    def _name(self, rank: int, host: str = "") -> str:
        return f"{host or self._endpoints[rank].rsplit(':', 1)[0]} (rank {rank})"


def _short(value: Any) -> str:
    text = str(value)
    if len(text) <= 200:
        return text
    return f"{text[:60]} … ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
