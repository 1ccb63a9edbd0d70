"""Mirrors of the published files: real servers on 127.0.0.1, some of which lie."""

import hashlib
import importlib.util
import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import urllib3
from conftest import ROOT, arrays_of
from servers import SILENCE, Server

from bit_paddle import download
from bit_paddle.data.preprocessing import Preprocessing
from bit_paddle.errors import ConfigError, DownloadError
from bit_paddle.inference import trained
from bit_paddle.models import mirrors, npz, published, vtab
from bit_paddle.models.architecture import Architecture
from bit_paddle.system import checksums, fetch

DEAD = "http://127.0.0.1:9"  # nobody answers there
ENTRY = published.Entry(
    "BiT-Test", Architecture.parse("R14x1"), 10, "folder/BiT-Test.npz", "cifar10", Preprocessing(32)
)  # fmt: skip
FILE = f"/{ENTRY.file}"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("mirrors") / "x.npz"
    npz.write(path, arrays_of(14, 1, 10, 0).items())
    return path.read_bytes()


@pytest.fixture
def serve(monkeypatch, content):
    """Starts a server of ``content`` or of other bytes; ``told`` False: without any hash."""
    started = []
    monkeypatch.setattr(fetch, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def start(body=content, told=True, file=FILE):
        server = Server({file: body})
        server.no_hashes = not told
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def use(monkeypatch, first, *others):
    addresses = [getattr(server, "address", server) for server in (first, *others)]
    monkeypatch.setenv("BIT_PADDLE_BASE_URL", addresses[0])
    monkeypatch.setenv("BIT_PADDLE_MIRRORS", ", ".join(addresses[1:]))


def know(monkeypatch, content, file=ENTRY.file):
    """The catalogue has the sums of ``content``."""
    sums = {"bytes": len(content), "md5": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(mirrors, "catalogue", lambda: {file: sums})


def other_weights(tmp_path):
    """A file of the same network and length, which no checksum of the archive betrays."""
    npz.write(tmp_path / "other.npz", arrays_of(14, 1, 10, 1).items())
    return (tmp_path / "other.npz").read_bytes()


def files_in(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


# --- Which servers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base, others, expected",
    [
        ("", "", [mirrors.BASE_URL]),
        ("", "http://a/x http://b/", [mirrors.BASE_URL, "http://a/x/", "http://b/"]),
        ("http://c", "http://a,\nhttps://b/y/ ,", ["http://c/", "http://a/", "https://b/y/"]),
        ("http://c", "http://c/", ["http://c/"]),
    ],
)
def test_addresses(base, others, expected, monkeypatch):
    use(monkeypatch, base, others)
    assert mirrors.addresses("vtab/x.npz") == [f"{address}vtab/x.npz" for address in expected]


@pytest.mark.parametrize("others", ["/home/aistudio/data", "a.example", "http://a file:///x"])
def test_what_is_no_address(others, monkeypatch):
    use(monkeypatch, "", others)
    with pytest.raises(ConfigError, match=r"BIT_PADDLE_MIRRORS: '.*' is no address"):
        mirrors.addresses("x.npz")


def test_the_order(serve, monkeypatch, tmp_path, capsys):
    first, second, third = serve(), serve(), serve()
    use(monkeypatch, first, second, third)
    published.obtain(ENTRY, tmp_path / "a")
    assert [len(server.requests) for server in (first, second, third)] == [1, 0, 0]
    assert not capsys.readouterr().err
    first.published.clear()
    published.obtain(ENTRY, tmp_path / "b")
    assert [len(server.requests) for server in (first, second, third)] == [2, 1, 0]
    assert f"{first.address}{FILE}: the server answered 404" in capsys.readouterr().err


# --- Servers that do not answer -------------------------------------------------------------------


def test_a_dead_server_is_left_at_once(serve, monkeypatch, tmp_path, content):
    know(monkeypatch, content)
    use(monkeypatch, DEAD, serve())
    monkeypatch.setattr(fetch, "time", SimpleNamespace(sleep=pytest.fail))
    assert published.obtain(ENTRY, tmp_path).read_bytes() == content


@pytest.fixture
def full_server(monkeypatch):
    """The address of a server whose connections never come about, and the attempts to connect."""
    attempts, connect = [], urllib3.util.connection.create_connection

    def counted(address, *arguments, **options):
        attempts.append(address[1])
        return connect(address, *arguments, **options)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", counted)
    monkeypatch.setattr(fetch, "CONNECT_TIMEOUT", 0.4)
    with socket.socket() as full, socket.socket() as one, socket.socket() as two:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # takes one connection, and lets the others wait
        for waiting in (one, two):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        yield f"http://127.0.0.1:{port}", lambda: attempts.count(port)


@pytest.mark.parametrize("known", [True, False])
def test_a_server_without_a_connection(known, full_server, serve, monkeypatch, tmp_path, content):
    """It is left after one timeout, whether or not it had to be asked for a checksum."""
    if known:
        know(monkeypatch, content)
    address, attempts = full_server
    use(monkeypatch, address, serve())
    assert published.obtain(ENTRY, tmp_path).read_bytes() == content
    assert attempts() == 1


def test_the_only_server_without_a_connection(full_server, serve, monkeypatch, tmp_path):
    """It is left after two timeouts, so that the user is told, or the hub is asked."""
    address, attempts = full_server
    use(monkeypatch, address)
    with pytest.raises(fetch.Unreachable, match="HTTPS_PROXY.*A file downloaded elsewhere goes to"):
        published.obtain(ENTRY, tmp_path)
    assert attempts() == 2


def test_a_server_that_falls_silent(serve, monkeypatch, tmp_path, content, capsys):
    """Within its timeout."""
    know(monkeypatch, content)
    monkeypatch.setattr(fetch, "READ_TIMEOUT", 0.3)
    slow, mirror = serve(), serve()
    slow.faults = ["silent"]
    use(monkeypatch, slow, mirror)
    start = time.monotonic()
    assert published.obtain(ENTRY, tmp_path).read_bytes() == content
    assert time.monotonic() - start < SILENCE / 2
    assert "another server is asked" in capsys.readouterr().err
    assert len(slow.requests) == len(mirror.requests) == 1


def test_servers_that_recover(serve, monkeypatch, tmp_path, content):
    know(monkeypatch, content)
    first, second = serve(), serve()
    first.faults, second.faults = [503, 503], ["drop", 500]
    use(monkeypatch, first, second)
    assert published.obtain(ENTRY, tmp_path).read_bytes() == content
    assert len(first.requests) == 3 and len(second.requests) == 2
    rest = int(first.requests[-1][1][len("bytes=") : -1])  # the second server has sent a part
    assert rest > len(content) // 4


def test_no_server_at_all(serve, monkeypatch, tmp_path):
    empty = serve(file="/nothing")
    use(monkeypatch, DEAD, empty)
    with pytest.raises(DownloadError) as caught:
        published.obtain(ENTRY, tmp_path)
    assert f"{empty.address}{FILE}: the server answered 404" in str(caught.value)
    with pytest.raises(DownloadError, match="cannot be reached"):
        published.check_reachable(ENTRY)
    use(monkeypatch, DEAD, serve())
    published.check_reachable(ENTRY)


# --- Servers that lie -----------------------------------------------------------------------------


@pytest.mark.parametrize("lies", ["other weights", "a flipped bit", "a page", "too long"])
def test_wrong_bytes(lies, serve, monkeypatch, tmp_path, content, capsys):
    """Refused, removed, the next mirror tried, and said: although its own hash is right."""
    wrong = bytearray(content)
    wrong[len(wrong) // 2] ^= 1
    wrong = {"other weights": other_weights(tmp_path), "a flipped bit": bytes(wrong),
             "a page": b"<html>", "too long": content + b"x"}[lies]  # fmt: skip
    know(monkeypatch, content)
    liar, honest = serve(wrong), serve()
    use(monkeypatch, DEAD, liar, honest)
    path = published.obtain(ENTRY, tmp_path / "new")
    assert path.read_bytes() == content and files_in(path.parent) == [path.name]
    error = capsys.readouterr().err
    assert f"{liar.address}{FILE}: " in error and "expected" in error
    assert "another server is asked" in error and "had to be trusted" not in error


def test_only_liars(serve, monkeypatch, tmp_path, content):
    know(monkeypatch, content)
    use(monkeypatch, serve(content[::-1]), serve(content[::-1]))
    with pytest.raises(DownloadError, match="none of 2 servers sent the file"):
        published.obtain(ENTRY, tmp_path)
    assert files_in(tmp_path) == []


def test_a_part_of_a_liar_is_not_kept(serve, monkeypatch, tmp_path, content):
    """The honest mirror resumes what the liar began, finds it wrong, and starts again."""
    know(monkeypatch, content)
    liar, honest = serve(bytes(len(content)), told=False), serve()
    liar.faults = ["drop"]
    use(monkeypatch, DEAD, liar, honest)
    assert published.obtain(ENTRY, tmp_path).read_bytes() == content


def test_the_first_server_vouches_for_its_mirrors(serve, monkeypatch, tmp_path, content, capsys):
    """Without a sum in the catalogue: it tells the hash, although it sends no files."""
    first, liar, honest = serve(), serve(other_weights(tmp_path)), serve()
    first.faults = [403]
    use(monkeypatch, first, liar, honest)
    assert published.obtain(ENTRY, tmp_path / "new").read_bytes() == content
    error = capsys.readouterr().err
    assert f"{liar.address}{FILE}: what arrived is not what was published, its crc32c" in error
    assert "had to be trusted" not in error


@pytest.mark.parametrize("told", [True, False])
def test_a_mirror_that_had_to_be_trusted(told, serve, monkeypatch, tmp_path, content, capsys):
    """No sum is known and the first server is dead: damage is found, and a warning is printed."""
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    npz.write(tmp_path / "wide.npz", arrays_of(14, 1, 11, 0).items())
    broken, other = serve(bytes(damaged), told), serve((tmp_path / "wide.npz").read_bytes(), told)
    page, mirror = serve(b"<html>Please log in</html>", told), serve(told=told)
    use(monkeypatch, DEAD, broken, other, page, mirror)
    path = published.obtain(ENTRY, tmp_path / "new")
    assert path.read_bytes() == content
    error = capsys.readouterr().err
    assert error.count("the server sent something else") == 3 and "is damaged" in error
    assert f"warning: {mirror.address}{FILE}: no checksum of this file is known" in error


# --- Commands -------------------------------------------------------------------------------------


def test_class_names_from_a_mirror(serve, monkeypatch, tmp_path, capsys):
    names = "\n".join(f"class_{k}" for k in range(1000)).encode()
    file = published.LEMMAS["ilsvrc2012"]
    know(monkeypatch, names, file)
    monkeypatch.setenv("BIT_PADDLE_HOME", str(tmp_path))
    wrong, right = serve(names[::-1], file=f"/{file}"), serve(names, file=f"/{file}")
    use(monkeypatch, DEAD, wrong)
    assert trained._lemmas(file, 1000) is None
    assert "warning: classes are shown as numbers" in capsys.readouterr().err
    use(monkeypatch, DEAD, wrong, right)
    assert trained._lemmas(file, 1000)[:2] == ["class 0", "class 1"]


def test_many_files_from_mirrors(serve, monkeypatch, tmp_path, capsys):
    """And --verify compares with the catalogue's sums while no server answers."""
    entries = vtab.select(["R50x1"], [0, 1], ["svhn", "dtd"])
    files = {entry.file: f"content of {entry.name}".encode() * 1000 for entry in entries}
    sums = {
        file: {"bytes": len(data), "md5": hashlib.md5(data).hexdigest()}
        for file, data in files.items()
    }
    monkeypatch.setattr(mirrors, "catalogue", lambda: sums)
    liar, honest = serve(), serve()
    honest.published = {f"/{file}": data for file, data in files.items()}
    liar.published = {**honest.published, f"/{entries[0].file}": b"x" * 1000}
    use(monkeypatch, DEAD, liar, honest)
    words = ["--bit_pretrained_dir", str(tmp_path), "--models", "R50x1", "--runs", "0", "1",
             "--tasks", "svhn", "dtd"]  # fmt: skip
    assert download.main([*words, "--dry-run"]) == 0
    assert "4 of 4 files to download: 0.00 GB" in capsys.readouterr().out
    assert download.main(words) == 0
    assert {f"vtab/{name}" for name in files_in(tmp_path)} == set(files)
    for file, data in files.items():
        assert (tmp_path / Path(file).name).read_bytes() == data
    monkeypatch.setattr(published.Entry, "fault_of", lambda entry, path: None)
    assert download.main([*words, "--verify"]) == 0
    (tmp_path / Path(entries[1].file).name).write_bytes(b"other")
    assert download.main([*words, "--verify"]) == 1
    assert "its length is 5, expected" in capsys.readouterr().out


# --- The catalogue's sums -------------------------------------------------------------------------


def test_the_sums_are_those_of_published_files():
    files = {entry.file for entry in published.CATALOG.values()} | {*published.LEMMAS.values()}
    lengths = {"md5": 32, "sha256": 64, "crc32c": 8}
    for file, sums in json.loads(mirrors.SUMS.read_text(encoding="utf-8")).items():
        assert file in files and isinstance(sums.pop("bytes"), int) and sums
        assert {kind: len(bytes.fromhex(value)) * 2 for kind, value in sums.items()} == {
            kind: lengths[kind] for kind in sums
        }


def test_collecting_the_sums(serve, monkeypatch, tmp_path, content):
    spec = importlib.util.spec_from_file_location("sums", ROOT / "scripts" / "collect_sums.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = tmp_path / "sums.json"
    path.write_text('{"BiT-M-R50x3.npz": {"bytes": 1, "md5": "00"}}')
    lemmas = published.LEMMAS["ilsvrc2012"]
    server = serve(file="/BiT-M-R50x1.npz")
    server.published[f"/{lemmas}"] = b"a\nb\n"
    use(monkeypatch, server)
    faults = script.collect(path)
    assert len(faults) == len(published.CATALOG) - 1 and "answered 404" in faults[0]
    found = json.loads(path.read_text())
    assert set(found) == {"BiT-M-R50x3.npz", "BiT-M-R50x1.npz", lemmas}
    (tmp_path / "x").write_bytes(content)
    assert checksums.wrong_sum(tmp_path / "x", found["BiT-M-R50x1.npz"]) is None
    assert found["BiT-M-R50x1.npz"]["md5"] == hashlib.md5(content).hexdigest()
    assert not server.requests  # only HEAD


@pytest.mark.parametrize("kind", ["bytes", "md5", "sha256", "crc32c"])
def test_each_sum_is_compared(kind, tmp_path):
    (tmp_path / "x").write_bytes(b"123456789")
    right = {
        "bytes": 9,
        "md5": "25f9e794323b453885f5181f1b624d0b",
        "sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
        "crc32c": "e3069283",  # the check value of RFC 3720
    }
    assert checksums.wrong_sum(tmp_path / "x", right) is None
    wrong = {**right, kind: 8 if kind == "bytes" else right[kind][::-1]}
    assert "expected" in checksums.wrong_sum(tmp_path / "x", wrong)


@pytest.mark.parametrize("known", [True, False])
def test_a_mirror_that_never_ends(known, serve, content, monkeypatch, tmp_path):
    """The length is the catalogue's, or that of the first server's answer to HEAD."""
    first, mirror = serve(), serve()
    first.faults, mirror.faults = [404], ["endless"]
    use(monkeypatch, first, mirror)
    if known:
        know(monkeypatch, content)
    with pytest.raises(DownloadError, match=f"sends more than {len(content):,} bytes"):
        published.obtain(ENTRY, tmp_path)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("told", ["md5=A", "crc32c=A===", "md5=====", ""])
def test_a_hash_that_is_none_tells_nothing(told):
    right = "md5=" + "A" * 22 + "=="
    assert checksums.told_by({"x-goog-hash": told}) == {}
    assert checksums.told_by({"x-goog-hash": f"{told},{right}"}).keys() == {"md5"}


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-1", ""])
def test_a_length_that_is_none(length):
    assert fetch._total_length({"Content-Length": length}, 0, 200) is None
