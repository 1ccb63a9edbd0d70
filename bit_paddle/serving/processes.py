"""The processes of a server: one that answers, or a parent with several that share its socket."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client import multiprocess
from uvicorn.protocols.http.h11_impl import H11Protocol

from bit_paddle.errors import ConfigError, tell
from bit_paddle.inference.model import TrainedModel
from bit_paddle.runs.folder import model_name
from bit_paddle.serving.app import create_app
from bit_paddle.serving.measures import FOLDER
from bit_paddle.serving.settings import SOCKET, ServerSettings
from bit_paddle.system import processes
from bit_paddle.system.signals import Interrupt

_LAST_CALLS = 0.5  # seconds, in which a stopping server still accepts connections, to refuse them

_BACKLOG = 2048

_PAUSE = 0.1  # seconds between two looks at the processes


def _bound(settings: ServerSettings) -> socket.socket:
    """Return a socket with its address; it listens later, when the model is loaded.

    Raises `ConfigError` if the address cannot be used.
    """
    if SOCKET in os.environ:  # that of the parent, see `supervise`
        return socket.socket(fileno=int(os.environ[SOCKET]))
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends small pieces at once (TCP_NODELAY) only if the socket names its protocol
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
        return bound
    except OSError as error:
        raise ConfigError(
            f"--host {settings.host} --port {settings.port}: cannot listen there "
            f"({error.strerror or error}); choose another --port, or an address of this machine"
        ) from error


def _address_of(bound: socket.socket) -> str:
    """Return the web address of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# --- One process --------------------------------------------------------------------------------


class _TimedProtocol(H11Protocol):
    """HTTP with time limits where uvicorn has none, each as long as its limit between two requests.

    They are on the headers, on what follows an early answer, and on a client that does not read.
    """

    _reading: asyncio.TimerHandle | None = None

    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self._cut_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing = _cancelled(self._writing)

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # to close it would wait for a client that does not read

    def connection_lost(self, error: Exception | None) -> None:
        self._reading, self._writing = _cancelled(self._reading), _cancelled(self._writing)
        super().connection_lost(error)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # the gate watches these
            self._reading = _cancelled(self._reading)
        elif self._reading is None:
            self._reading = self._cut_later()

    def _cut_later(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.timeout_keep_alive, self.transport.abort)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _grace(settings: ServerSettings) -> int:
    """Return the seconds within which every accepted request is answered."""
    return math.ceil(settings.receive_seconds + settings.answer_seconds)


class _Server(uvicorn.Server):
    """Ends gracefully: it answers what it has accepted, and refuses the rest with status 503."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.stopping = True
        await asyncio.sleep(_LAST_CALLS)
        await super().shutdown(sockets)


def serve(model: TrainedModel, settings: ServerSettings) -> None:
    """Answer requests until a signal comes. Prints the address when the first can be answered.

    Errors: those of `create_app`, and `ConfigError` for an address that cannot be used.
    """
    from bit_paddle.inference import predictor  # noqa: F401  Paddle sets handlers of signals

    processes.end_with_parent()
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a line per damaged body
    warnings.filterwarnings("ignore", module="PIL")  # the same of damaged images
    bound, app = _bound(settings), create_app(model, settings)
    server = _Server(
        uvicorn.Config(
            app,
            http=_TimedProtocol,
            ws="none",
            lifespan="on",
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=math.ceil(settings.receive_seconds),
            timeout_graceful_shutdown=_grace(settings),
        )
    )
    warmed, address = app.state.engine.warmed, _address_of(bound)

    def tell_state(_: object) -> None:
        if warmed.exception() is not None:
            server.should_exit = True
            return
        number = f" (process {os.getpid()})" if SOCKET in os.environ else ""
        tell(f"serving {model_name(model.file.path)} at {address}{number}; Ctrl-C ends the server")

    warmed.add_done_callback(tell_state)
    server.run([bound])
    if warmed.done():
        warmed.result()  # raises its error


# --- Several processes --------------------------------------------------------------------------


def supervise(arguments: Sequence[str], count: int, settings: ServerSettings) -> int:
    """Run ``bit_paddle serve`` with ``arguments`` in ``count`` processes; return an exit status.

    They share a socket and the processors. A process that a signal has ended is replaced; one that
    reports an error ends the server. Raises `ConfigError` for an address that cannot be used.
    """
    bound = _bound(settings)
    with tempfile.TemporaryDirectory() as folder, Interrupt() as stop:
        environment = {
            **processes.child_environment(count),
            "PADDLE_LOCAL_SIZE": str(count),
            SOCKET: str(bound.fileno()),
            FOLDER: folder,
        }

        def start() -> subprocess.Popen:
            return subprocess.Popen(
                [sys.executable, "-m", "bit_paddle.serve", *arguments],
                env=environment,
                pass_fds=[bound.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal reaches this process only
            )

        children = [start() for _ in range(count)]
        try:
            while not stop.signal:
                for place, child in enumerate(children):
                    status = child.poll()
                    if status is not None and status > 0:
                        return status
                    if status is not None:
                        ended = f"process {child.pid} has ended ({status})"
                        print(f"warning: {ended}; another starts", file=sys.stderr)
                        multiprocess.mark_process_dead(child.pid, folder)
                        children[place] = start()
                time.sleep(_PAUSE)
            bound.close()
            for child in children:
                child.terminate()
            deadline = time.monotonic() + _grace(settings) + _LAST_CALLS + 10
            for child in children:
                child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print("warning: a process did not end in time", file=sys.stderr)
        finally:
            for child in children:
                child.kill()
                child.wait()
    return 0
