"""Fetch an image from a web address that somebody else has chosen.

Such an address may lead into the network of the server. Therefore a name is resolved once, all its
addresses are checked, and the connection is made to one of those very addresses. Redirects are
checked in the same way. Proxies of the environment are not used: they would resolve the name again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from bit_paddle import __version__
from bit_paddle.errors import DataError
from bit_paddle.serving.bodies import TooLarge

PORTS = (80, 443)

_SCHEMES = {"http": 80, "https": 443}

_REDIRECTS, _MOST_REDIRECTS = (301, 302, 303, 307, 308), 3

_LONGEST = 2000  # characters of an address

_SILENCE = 5.0  # seconds for the next bytes

_GLOBAL6 = ipaddress.ip_network("2000::/3")  # all that is allocated for the internet

_SPECIAL = [
    ipaddress.ip_network(network)
    for network in (
        *("192.0.0.0/24", "192.88.99.0/24"),  # protocols; relays of 6to4
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # tunnels, examples
    )
]


class _Place(NamedTuple):
    """Where a web address leads. ``sockets`` are (family, address) pairs that were checked."""

    scheme: str
    host: str
    port: int
    target: str  # path and query
    sockets: list[tuple[int, Any]]


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the internet.

    Private, loopback, link-local, shared (carrier-grade NAT), multicast and reserved addresses do
    not, and neither do IPv6 addresses that contain one of IPv4.
    """
    ip = ipaddress.ip_address(address)
    if any(ip in network for network in _SPECIAL if network.version == ip.version):
        return False
    return ip in _GLOBAL6 if ip.version == 6 else ip.is_global and not ip.is_multicast


def fetch(url: str, most_bytes: int, seconds: float) -> bytes:
    """Return the content at ``url``, of at most ``most_bytes``, within ``seconds``.

    Raises `DataError` if the address is refused or gives no content, and `TooLarge`.
    """
    deadline, name = time.monotonic() + seconds, url[:100]
    for _ in range(_MOST_REDIRECTS + 1):
        connection = _Connection(_resolved(url, name), deadline)
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
        timer.daemon = True
        timer.start()
        try:
            answer = connection.ask()
            if answer.status in _REDIRECTS and (location := answer.headers.get("Location")):
                url = urljoin(url, location)
                continue
            if answer.status != 200:
                raise DataError(f"{name}: its server answers with status {answer.status}")
            return _content(answer, most_bytes, name)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{name}: cannot be fetched ({type(error).__name__})") from error
        finally:
            timer.cancel()
            connection.close()
    raise DataError(f"{name}: leads on more than {_MOST_REDIRECTS} times")


def _resolved(url: str, name: str) -> _Place:
    """Return where ``url`` leads. Raises `DataError` if it is malformed or not public."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError as error:  # UnicodeError, too
        raise DataError(f"{name}: is not a web address") from error
    if parts.scheme not in _SCHEMES or not host or len(url) > _LONGEST:
        raise DataError(f"{name}: is not an address that begins with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise DataError(f"{name}: has a user's name or password, which is refused")
    port = _SCHEMES[parts.scheme] if port is None else port
    if port not in PORTS:
        raise DataError(f"{name}: port {port} is refused; ports {PORTS[0]} and {PORTS[1]} are not")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        public = all(is_public(place[0]) for *_, place in found)
    except (OSError, ValueError):
        public, found = False, []
    if not found or not public:  # one sentence: it does not tell which names a network has
        raise DataError(f"{name}: its host is unknown, or is not on the internet")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    target += f"?{quote(parts.query, safe='/%:@!$&()*+,;=~?')}" if parts.query else ""
    return _Place(parts.scheme, host, port, target, [(family, at) for family, *_, at in found])


def _content(answer: http.client.HTTPResponse, most_bytes: int, name: str) -> bytes:
    announced = answer.length or 0  # None: the server does not tell it
    content = bytearray()
    while max(announced, len(content)) <= most_bytes and (piece := answer.read1(1 << 16)):
        content += piece
    if max(announced, len(content)) > most_bytes:
        raise TooLarge(f"{name}: has more than {most_bytes / 1e6:g} MB")
    if announced > len(content):
        raise DataError(f"{name}: its server has sent only a part")
    return bytes(content)


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked; it resolves nothing."""

    def __init__(self, place: _Place, deadline: float):
        super().__init__(place.host, place.port)
        self._place, self._deadline = place, deadline

    def connect(self) -> None:
        for number, (family, address) in enumerate(self._place.sockets, 1):
            self.sock = socket.socket(family, socket.SOCK_STREAM)
            self.sock.settimeout(max(0.01, min(_SILENCE, self._deadline - time.monotonic())))
            try:
                self.sock.connect(address)
                break
            except OSError:
                self.sock.close()
                if number == len(self._place.sockets):
                    raise
        if self._place.scheme == "https":
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(
                self.sock, server_hostname=self._place.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()

    def ask(self) -> http.client.HTTPResponse:
        """Return the answer to a GET request."""
        host = f"[{self._place.host}]" if ":" in self._place.host else self._place.host
        if self._place.port != _SCHEMES[self._place.scheme]:
            host = f"{host}:{self._place.port}"
        headers = {
            "Host": host,
            "User-Agent": f"bit_paddle/{__version__}",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        self.request("GET", self._place.target, headers=headers)
        return self.getresponse()

    def cut(self) -> None:
        """End the connection from another thread: a slow server may send a byte at a time."""
        with suppress(OSError, AttributeError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
