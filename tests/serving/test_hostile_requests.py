"""Hostile requests: no answer with status 500, nobody is let in, and the server keeps answering."""

import os
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from conftest import ROOT
from helpers.commands import wait_until
from helpers.serving import JPEG, answers, encoded, picture, running

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")
pytest.importorskip("prometheus_client")

from bit_paddle.errors import DataError
from bit_paddle.serving import addresses
from bit_paddle.serving.addresses import is_public
from bit_paddle.serving.bodies import TooLarge

sys.path.insert(0, str(ROOT / "scripts/benchmarks"))
import hostile

sys.path.pop(0)

MUTATIONS = int(os.environ.get("BIT_PADDLE_MUTATIONS", 300))

PHOTO = encoded(picture())


@pytest.fixture(scope="module")
def server():
    with running("--allow-urls", "--receive_seconds", 2, "--batch_wait_ms", 0) as one:
        yield one
        text = one.get("/metrics").text
        assert 'status="500"' not in text and "bit_paddle_queue_images 0.0" in text
        assert "Traceback" not in one.log.read_text()


def is_well(server) -> bool:
    return server.post("/predict", data=PHOTO, headers=JPEG).status_code == 200


def test_damaged_requests(server):
    for name, path, headers, body in hostile.mutations(MUTATIONS, seed=1):
        answer = server.post(path, data=body, headers=headers)
        assert answer.status_code in (200, 400, 413, 415), (name, answer.status_code, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"], name
    assert is_well(server)


def test_bombs(server):
    for (name, path, headers, body), statuses in hostile.bombs():
        before = memory(server)
        answer = server.post(path, data=body, headers=headers)
        assert answer.status_code in statuses, (name, answer.text)
        assert memory(server) - before < 600e6, name
    assert is_well(server)


def memory(server) -> int:
    lines = open(f"/proc/{server.process.pid}/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


# --- Connections --------------------------------------------------------------------------------

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"


def is_cut(connection) -> bool:
    """Whether the server closes a connection without an answer."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"POST /pre", HEAD], ids=["nothing", "a line", "headers"])
def test_a_slow_sender_of_headers_is_cut(sent, server):
    with server.connect() as connection:
        connection.sendall(sent)
        assert is_cut(connection)
    assert is_well(server)


def test_a_trickle_of_headers_is_cut(server):
    with server.connect() as connection:
        connection.sendall(HEAD)
        with pytest.raises(OSError):
            for k in range(200):  # 20 seconds
                connection.sendall(b"X-%d: 1\r\n" % k)
                time.sleep(0.1)


def test_a_slow_body_is_refused(server):
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + PHOTO[:10])
        assert is_well(server)  # meanwhile
        status, body = next(answers(connection))
        assert status == 408 and b"took longer" in body
        assert is_cut(connection)


def test_the_size_of_a_body_is_counted_while_it_arrives(server):
    """A sender that does not tell the size is refused after 16 MB, however much it would send."""
    with server.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        stop, sent = threading.Event(), []

        def send() -> None:
            piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
            while not stop.is_set():
                try:
                    connection.sendall(piece)
                    sent.append(piece)
                except OSError:
                    return

        thread = threading.Thread(target=send)
        thread.start()
        status, body = next(answers(connection))
        assert status == 413 and b"16 MB" in body
        thread.join(30)  # what follows the answer is cut, too
        assert not thread.is_alive()
        stop.set()
    assert is_well(server)


def test_a_size_that_is_too_large_is_refused_before_the_body(server):
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 16000001\r\n\r\n")
        assert next(answers(connection))[0] == 413


def test_who_does_not_read_is_cut(server):
    """Ten answers of a megabyte each, which nobody reads."""
    headers, body = hostile.multipart([PHOTO] * 64)
    head = f"POST /features HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: {headers['Content-Type']}\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.place)
        threading.Thread(target=send_all, args=(connection, 10 * (head.encode() + body))).start()
        wait_until(lambda: holds(server, connection))
        wait_until(lambda: not holds(server, connection))
    assert is_well(server)


def holds(server, client) -> bool:
    """Return whether the server has its end of a connection open: proc_net(5) shows its file."""
    ours, port = client.getsockname()[1], server.place[1]
    rows = [line.split() for line in open("/proc/net/tcp").read().splitlines()[1:]]
    ends = {(int(row[1][-4:], 16), int(row[2][-4:], 16)): row[9] for row in rows}
    return ends.get((port, ours), "0") != "0"


def send_all(connection, content) -> None:
    with suppress(OSError):
        connection.sendall(content)


def test_cut_connections(server):
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(PHOTO) + PHOTO
    for size in range(1, len(whole) + 1, len(whole) // 40):
        with server.connect() as connection:
            connection.sendall(whole[:size])
    wait_until(lambda: server.counter("queue_images") == 0)
    assert is_well(server)


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 30,  # TLS
        b"GET / HTTP/1.1\r\n\r\n",  # without Host
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request(request_, server):
    with server.connect() as connection:
        try:
            connection.sendall(request_)
            status = next(answers(connection), (None, b""))[0]
        except ConnectionError:
            status = None
        assert status in (None, 400, 403, 501)
    assert is_well(server)


# --- Web addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.jpg",
        "http://localhost/a.jpg",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fe80::1%25lo]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://user:word@93.184.215.14/",
        "http://93.184.215.14:22/",
        "ftp://93.184.215.14/",
        "file:///etc/passwd",
        "http://",
        "http://[/",
        "http://a\r\nHost: b/",
        "http://" + "a" * 3000,
        "//93.184.215.14/",
        "",
    ],
)
def test_addresses_that_are_refused(url, server):
    answer = server.post("/predict", json={"urls": [url]})
    assert answer.status_code == 400, answer.text
    assert "status" not in answer.json()["error"]  # nothing was asked


@pytest.mark.parametrize(
    "address, public",
    [
        *((one, True) for one in ("93.184.215.14", "8.8.8.8", "2606:4700::1", "2001:4860::8")),
        *((one, False) for one in ("0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1")),
        *((one, False) for one in ("100.64.0.1", "100.127.255.255", "127.8.8.8", "169.254.1.1")),
        *((one, False) for one in ("192.0.0.8", "192.0.2.1", "198.18.0.1", "203.0.113.9")),
        *((one, False) for one in ("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255")),
        *((one, False) for one in ("::", "::1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::808:808")),
        *((one, False) for one in ("fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1")),
        *((one, False) for one in ("2002:a00:1::", "2001::1", "2001:db8::1", "3fff::1")),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) is public


class Web(threading.Thread):
    """A web server at an address of this machine: it notes whom it served, and sends ``answer``."""

    def __init__(self, host: str, answer: bytes, pause: float = 0.0):
        super().__init__(daemon=True)
        self.listening = socket.create_server((host, 0))
        self.port, self.answer, self.pause = self.listening.getsockname()[1], answer, pause
        self.requests: list[bytes] = []
        self.start()

    def run(self):
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536))
                try:
                    for k in range(0, len(self.answer), 1 if self.pause else 65536):
                        connection.sendall(self.answer[k : k + (1 if self.pause else 65536)])
                        time.sleep(self.pause)
                except OSError:
                    pass


@contextmanager
def web(host: str, answer: bytes, pause: float = 0.0):
    one = Web(host, answer, pause)
    try:
        yield one
    finally:
        one.listening.close()


def ok(content: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + more + b"Content-Length: %d\r\n\r\n" % len(content) + content


@pytest.fixture
def outside(monkeypatch):
    """127.0.0.2 stands for the internet, and 127.0.0.1 for a private network."""
    real = is_public
    monkeypatch.setattr(addresses, "is_public", lambda ip: ip == "127.0.0.2" or real(ip))
    monkeypatch.setattr(addresses, "PORTS", range(1, 65536))


def names(monkeypatch, *found: str) -> list[str]:
    """Let the name ``host.example`` have the next address of ``found`` at each question."""
    asked: list[str] = []
    left = list(found)

    def getaddrinfo(host, port, *_, **options):
        if host != "host.example":
            return real(host, port, *_, **options)
        asked.append(host)
        address = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_an_image_is_fetched(outside):
    with web("127.0.0.2", ok(PHOTO)) as one:
        assert addresses.fetch(f"http://127.0.0.2:{one.port}/a%20b.jpg?c=d e", 10**6, 10) == PHOTO
        assert one.requests[0].startswith(b"GET /a%20b.jpg?c=d%20e HTTP/1.1\r\n")
        assert f"Host: 127.0.0.2:{one.port}\r\n".encode() in one.requests[0]


def test_a_name_that_changes_between_check_and_use_lets_nobody_in(outside, monkeypatch):
    """The first answer is public, all further ones are private."""
    with web("127.0.0.2", ok(PHOTO)) as public, web("127.0.0.1", ok(b"secret")) as private:
        names(monkeypatch, "127.0.0.2", "127.0.0.1")
        # the same port at both: only the address tells them apart
        with socket.create_server(("127.0.0.1", public.port)) as trap:
            trap.settimeout(0.5)
            url = f"http://host.example:{public.port}/"
            assert addresses.fetch(url, 10**6, 10) == PHOTO
            with pytest.raises(socket.timeout):
                trap.accept()
            with pytest.raises(DataError, match="not on the internet"):  # it is private by now
                addresses.fetch(url, 10**6, 10)
            with pytest.raises(socket.timeout):
                trap.accept()
        assert private.requests == []


def test_a_name_with_one_private_address_is_refused(outside, monkeypatch):
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in ("127.0.0.2", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(DataError, match="not on the internet"):
        addresses.fetch("http://host.example/", 10**6, 10)


def test_redirects_are_checked(outside):
    with web("127.0.0.1", ok(b"secret")) as private:
        target = f"http://127.0.0.1:{private.port}/"
        moved = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
        told = pytest.raises(DataError, match="not on the internet")
        with web("127.0.0.2", moved) as public, told:
            addresses.fetch(f"http://127.0.0.2:{public.port}/", 10**6, 10)
        assert private.requests == []
    around = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"
    with web("127.0.0.2", around) as public:
        with pytest.raises(DataError, match="more than 3 times"):
            addresses.fetch(f"http://127.0.0.2:{public.port}/", 10**6, 10)
        assert len(public.requests) == 4


def test_proxies_are_not_used(outside, monkeypatch):
    """A proxy would resolve the name again."""
    with web("127.0.0.2", ok(PHOTO)) as public, web("127.0.0.1", ok(b"secret")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert addresses.fetch(f"http://127.0.0.2:{public.port}/", 10**6, 10) == PHOTO
        assert proxy.requests == [] and len(public.requests) == 1


@pytest.mark.parametrize(
    "answer, error, words",
    [
        (ok(PHOTO), TooLarge, "MB"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + PHOTO, TooLarge, "MB"),  # without a size
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", DataError, "status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n12345", DataError, "only a part"),
        (b"nonsense\r\n", DataError, "cannot be fetched"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n", DataError, "cannot be fetched"),
        (b"", DataError, "cannot be fetched"),
    ],
)
def test_bad_answers(answer, error, words, outside):
    with web("127.0.0.2", answer) as one, pytest.raises(error, match=words):
        addresses.fetch(f"http://127.0.0.2:{one.port}/", 600, 10)


@pytest.mark.parametrize("part", ["headers", "content"])
def test_a_slow_web_server_is_cut(part, outside):
    """It sends a byte every tenth of a second, for minutes."""
    slow = b"X: 1\r\n" * 500 if part == "headers" else b""
    with web("127.0.0.2", ok(bytes(3000), slow), pause=0.1) as one:
        start = time.monotonic()
        with pytest.raises(DataError):
            addresses.fetch(f"http://127.0.0.2:{one.port}/", 10**6, 1.0)
        assert time.monotonic() - start < 30
