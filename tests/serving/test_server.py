"""`bit_paddle serve` as users start it: real processes, real requests, on 127.0.0.1."""

import base64
import io
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from helpers.commands import run_here, wait_until
from helpers.places import ROOT
from helpers.serving import JPEG, answers, encoded, picture, running
from PIL import Image

import bit_paddle
from bit_paddle import errors

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")
pytest.importorskip("prometheus_client")

KEY = "a key with ünïcode"


@pytest.fixture(scope="module")
def server():
    with running("--batch", 4, "--batch_wait_ms", 50) as one:
        yield one
        assert 'status="500"' not in one.get("/metrics").text
        assert "Traceback" not in one.log.read_text()


@pytest.fixture(scope="module")
def model():
    return bit_paddle.load("BiT-Mini")


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif.tobytes())


FILES = {
    "a photo": ("image/jpeg", encoded(picture())),
    "a turned photo": ("image/jpeg", turned(picture(seed=1), 6)),
    "transparent": ("image/png", encoded(picture(seed=2).convert("RGBA"), "PNG")),
    "a cut photo": ("image/jpeg", encoded(picture((400, 300), seed=3), quality=95)[:-300]),
    "grey, 16 bits": (
        "application/octet-stream",
        encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"),
    ),
}


def expected(model, content, tmp_path, **options):
    """What Python gives for the same file."""
    path = tmp_path / "file"
    path.write_bytes(content)
    return model(str(path), **options)


def classes_of(prediction):
    return [(one["name"], one["probability"]) for one in prediction["classes"]]


@pytest.mark.parametrize("name", FILES)
def test_one_image_has_the_very_numbers_of_python(name, server, model, tmp_path):
    kind, content = FILES[name]
    answer = server.post("/predict", data=content, headers={"Content-Type": kind})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    (prediction,) = answer.json()["predictions"]
    assert prediction["name"] == "image" and prediction["unknown"] is False
    assert classes_of(prediction) == expected(model, content, tmp_path)


def near(prediction, wanted):
    """In a batch the last digits may differ."""
    found = classes_of(prediction)
    assert [name for name, _ in found] == [name for name, _ in wanted]
    values = [[value for _, value in row] for row in (found, wanted)]
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-7)


def test_many_images_keep_their_order_in_multipart_and_json(server, model, tmp_path):
    contents = [content for _, content in FILES.values()]
    parts = [("images", (f"{k}-é.jpg", content)) for k, content in enumerate(contents)]
    words = [base64.b64encode(content).decode() for content in contents]
    words[1] = f"data:image/jpeg;base64,{words[1]}"
    wanted = [expected(model, content, tmp_path, top=2) for content in contents]
    answers = [
        server.post("/predict?top=2", files=parts),
        server.post("/predict?top=2", json={"images": words}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        for prediction, one in zip(answer.json()["predictions"], wanted):
            near(prediction, one)
    names = [[one["name"] for one in answer.json()["predictions"]] for answer in answers]
    assert names == [[f"{k}-é.jpg" for k in range(5)], [f"images[{k}]" for k in range(5)]]


def test_a_bad_image_does_not_spoil_the_others(server, model, tmp_path):
    good = FILES["a photo"][1]
    parts = [("images", ("good.jpg", good)), ("images", ("bad.jpg", b"no image"))]
    answer = server.post("/predict", files=parts)
    assert answer.status_code == 200
    fine, broken = answer.json()["predictions"]
    near(fine, expected(model, good, tmp_path))
    assert broken == {"name": "bad.jpg", "error": "bad.jpg: is not an image that can be read"}
    answer = server.post("/features", files=parts)
    assert answer.status_code == 200 and answer.json()["features"][1] is None
    assert list(answer.json()["errors"]) == ["1"]
    raw = {"Accept": "application/octet-stream"}
    assert server.post("/features", files=parts, headers=raw).status_code == 400
    answer = server.post("/predict", files=parts[1:])
    assert answer.status_code == 400 and "bad.jpg" in answer.json()["error"]


def test_features(server, model, tmp_path):
    contents = [content for _, content in FILES.values()]
    parts = [("images", ("x", content)) for content in contents]
    answer = server.post("/features", files=parts)
    raw = server.post("/features", files=parts, headers={"Accept": "application/octet-stream"})
    assert raw.headers["X-Shape"] == f"5,{model.file.features}"
    values = np.frombuffer(raw.content, "<f4").reshape(5, -1)
    np.testing.assert_allclose(answer.json()["features"], values, rtol=1e-4, atol=1e-5)
    wanted = model.features([Image.open(io.BytesIO(content)) for content in contents[:1]])
    np.testing.assert_allclose(values[:1], wanted, rtol=1e-4, atol=1e-5)
    one = server.post("/features", data=contents[0], headers=JPEG).json()
    assert np.array_equal(np.float32(one["features"]), wanted)  # alone: the very numbers


@pytest.mark.parametrize("kind", ["overlay", "heat"])
@pytest.mark.parametrize("label", [None, 3])
def test_the_map_is_that_of_python(kind, label, server, model, tmp_path):
    content = FILES["a turned photo"][1]
    name = None if label is None else model.classes[label]
    params = {"kind": kind, **({"label": name} if name else {})}
    answer = server.post("/explain", params=params, data=content, headers=JPEG)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    path = tmp_path / "file.jpg"
    path.write_bytes(content)
    wanted = model.explain(str(path), name)
    found = Image.open(io.BytesIO(answer.content))
    assert np.array_equal(np.asarray(found), np.asarray(getattr(wanted, kind)()))
    assert requests.utils.unquote(answer.headers["X-Class"]) == wanted.label
    assert float(answer.headers["X-Probability"]) == pytest.approx(wanted.probability, abs=1e-6)


PHOTO = FILES["a photo"][1]


@pytest.mark.parametrize(
    "path, options, status, words",
    [
        ("/predict", {"data": PHOTO}, 415, "Content-Type"),
        ("/predict", {"data": b"", "headers": JPEG}, 400, "not an image"),
        ("/predict", {"json": {"images": []}}, 400, "no image"),
        ("/predict", {"json": {"images": ["?"]}}, 400, "base64"),
        ("/predict", {"json": {"images": [3]}}, 400, "list of texts"),
        ("/predict", {"json": {"urls": ["http://a/"]}}, 400, "fetches no web addresses"),
        ("/predict", {"json": [1]}, 400, '{"images"'),
        ("/predict", {"files": {"pictures": PHOTO}}, 400, "named images"),
        ("/predict?top=0", {"data": PHOTO, "headers": JPEG}, 422, "top"),
        ("/predict?calibrated=1", {"data": PHOTO, "headers": JPEG}, 400, "no calibration"),
        ("/predict?unknown=2", {"data": PHOTO, "headers": JPEG}, 400, "unknown"),
        ("/explain?label=nothing", {"data": PHOTO, "headers": JPEG}, 400, "no class"),
        ("/explain?kind=heap", {"data": PHOTO, "headers": JPEG}, 422, "heat"),
        ("/explain", {"files": [("images", PHOTO)] * 2}, 400, "expected one"),
        ("/predict", {"files": [("images", PHOTO)] * 65}, 413, "64 images"),
        ("/predict", {"data": bytes(16_000_001), "headers": JPEG}, 413, "16 MB"),
        ("/predict", {"data": PHOTO, "headers": {**JPEG, "Content-Encoding": "br"}}, 415, "comp"),
        ("/nothing", {}, 404, "Not Found"),
        ("/model", {}, 405, "Not Allowed"),
    ],
)
def test_errors_are_sentences(path, options, status, words, server):
    answer = server.post(path, **options)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_what_it_tells_about_itself(server, model):
    about = server.get("/model").json()
    assert about["name"] == "BiT-Mini" and about["classes"] == model.classes
    assert (about["outputs"], about["features"]) == (model.file.outputs, model.file.features)
    assert about["crop"] == model.file.preprocessing.crop and about["maps"] is True
    assert about["limits"] == {"body_mb": 32, "image_mb": 16, "megapixels": 50, "images": 64}
    assert server.get("/healthz").status_code == server.get("/readyz").status_code == 200
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/predict", "/features", "/explain", "/model", "/metrics"} <= set(paths)
    page = server.get("/docs")
    assert "POST /predict" in page.text and "script" not in page.text
    for path in ("/docs", "/model", "/nothing"):
        headers = server.get(path).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "access-control-allow-origin" not in headers and "server" not in headers


def test_the_page_is_served(server):
    answer = server.get("/")
    assert answer.status_code == 200 and "text/html" in answer.headers["content-type"]
    assert server.get("/page/page.js").status_code == 200
    assert server.get("/page/../app.py").status_code == 404
    assert server.get("/page/%2e%2e/app.py").status_code == 404


def test_the_example_of_the_page_runs(server, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/server.md").read_text(encoding="utf-8")
    (code,) = (
        code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "requests" in code
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(PHOTO)
    names: dict = {}
    exec(code.replace("http://127.0.0.1:8000", server.address), names)
    assert "images[0]" in capsys.readouterr().out and names["features"].shape[0] == 1


def test_a_foreign_name_is_refused(server):
    """As that of a web page whose name leads to this machine: it must not read answers."""
    assert server.get("/model", headers={"Host": "evil.example"}).status_code == 403
    assert server.get("/model", headers={"Host": "localhost:1"}).status_code == 200


def test_images_share_a_batch():
    with running("--batch", 4, "--batch_wait_ms", 60_000) as server, ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: server.post("/predict", data=PHOTO, headers=JPEG), range(4)))
        assert [answer.status_code for answer in done] == [200] * 4
        assert server.counter("images_total") == 4
        assert server.counter("batch_images_count") == 1


# --- Limits -------------------------------------------------------------------------------------


def test_the_queue_is_bounded_and_a_key_is_needed():
    flags = ("--queue", 3, "--images", 3, "--batch", 4, "--batch_wait_ms", 4000)
    with running(*flags, BIT_PADDLE_API_KEY=KEY) as server, ThreadPoolExecutor(8) as pool:
        right = {"Authorization": f"Bearer {KEY}".encode(), **JPEG}

        def post(headers):
            return server.post("/predict", data=PHOTO, headers=headers)

        for key in ({}, {"Authorization": "Bearer no"}, {"Authorization": KEY.encode()}):
            answer = post({**JPEG, **key})
            assert answer.status_code == 401 and "key" in answer.json()["error"]
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/", "/healthz", "/readyz", "/page/page.js"):
            assert server.get(path).status_code == 200, path
        for path in ("/model", "/metrics", "/docs", "/openapi.json", "/nothing"):
            assert server.get(path).status_code == 401, path
        assert server.get("/model", headers=right).status_code == 200
        # all eight arrive within the batch wait of the first
        done = list(pool.map(lambda _: post(right), range(8)))
        assert sorted(answer.status_code for answer in done) == [200] * 3 + [429] * 5
        refused = next(answer for answer in done if answer.status_code == 429)
        assert refused.headers["Retry-After"] == "1" and refused.json()["error"]
        assert post(right).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up():
    with running("--answer_seconds", 0.2, "--batch", 4, "--batch_wait_ms", 5000) as server:
        assert server.post("/predict", data=PHOTO, headers=JPEG).status_code == 504
        assert server.counter("queue_images") == 0


# --- The end, and several processes -------------------------------------------------------------


class Client(threading.Thread):
    """Sends one request after the other on connections that stay open; notes what comes back."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.records, self.leave = server, [], False
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PHOTO)}\r\n"
        self.request = f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + PHOTO

    def run(self):
        while not self.leave:
            try:
                with self.server.connect() as connection:
                    for record in self.conversation(connection):
                        self.records.append(record)
            except ConnectionRefusedError:
                return

    def conversation(self, connection):
        """Yield (when it was sent, status or None) until the connection ends."""
        stream = answers(connection)
        while not self.leave:
            try:
                connection.sendall(self.request)
                sent = time.monotonic()
            except OSError:
                return
            try:
                status = next(stream, (None, b""))[0]
            except OSError:
                status = None
            yield sent, status
            if status is None:
                return


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_answers_what_was_accepted(workers):
    with running("--batch_wait_ms", 20, workers=workers) as server:
        clients = [Client(server) for _ in range(8)]
        for client in clients:
            client.start()
        wait_until(lambda: all(len(client.records) > 4 for client in clients))
        time.sleep(1.5)
        asked = time.monotonic()
        status = server.stop()
        for client in clients:
            client.join(30)
        records = [record for client in clients for record in client.records]
        # A request on its way when the signal comes may be accepted, or refused with an answer; one
        # that is sent later may also meet a closed connection.
        accepted = {status for sent, status in records if sent < asked - 1}
        on_their_way = {status for sent, status in records if asked - 1 <= sent < asked}
        after = {status for sent, status in records if sent >= asked}
        assert accepted == {200}
        assert on_their_way <= {200, 503}
        assert after <= {200, 503, None}
        assert status == 0
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        assert "Traceback" not in server.log.read_text()


def test_several_processes_count_together_and_are_replaced():
    with running(workers=2) as server:
        for _ in range(12):  # on connections of their own: any process may answer
            assert server.post("/predict", data=PHOTO, headers=JPEG).status_code == 200
        assert server.counter("images_total") == 12
        children = open(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read()
        os.kill(int(children.split()[0]), signal.SIGKILL)
        wait_until(lambda: "another starts" in server.log.read_text())
        for _ in range(12):
            assert server.post("/predict", data=PHOTO, headers=JPEG).status_code == 200
        assert server.counter("images_total") == 24
        assert server.stop() == 0


# --- The command, and Python --------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give one model"),
        (["BiT-Mini", "--model", "BiT-Mini"], "give one model"),
        (["BiT-Mini", "--port", "70000"], "at most 65535"),
        (["BiT-Mini", "--images", "300"], "raise queue"),
        (["BiT-Mini", "--image_mb", "64"], "raise body_mb"),
        (["nowhere.npz"], "no such checkpoint"),
        (["BiT-Mini", "--host", "192.0.2.1"], "cannot listen there"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(words, message):
    done = run_here("serve", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_small_pieces_are_sent_at_once():
    """Else an answer waits 40 ms for its client: asyncio heeds the protocol of the socket."""
    from bit_paddle.serving import processes
    from bit_paddle.serving.settings import ServerSettings

    with processes._bound(ServerSettings(port=0)) as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_python_tells_mistakes():
    with pytest.raises(errors.ConfigError, match="did you mean port"):
        bit_paddle.serve("BiT-Mini", prot=1)
    told = pytest.raises(errors.ConfigError, match="cannot listen there")
    with socket.create_server(("127.0.0.1", 0)) as taken, told:
        bit_paddle.serve("BiT-Mini", port=taken.getsockname()[1])


def test_python_serves_a_loaded_model(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"port": port, "batch_wait_ms": 0}
    threading.Thread(target=bit_paddle.serve, args=(model,), kwargs=options, daemon=True).start()
    address = f"http://127.0.0.1:{port}"

    def ready():
        try:
            return requests.get(f"{address}/readyz", timeout=10).status_code == 200
        except requests.ConnectionError:
            return False

    wait_until(ready)
    answer = requests.post(f"{address}/predict", data=PHOTO, headers=JPEG, timeout=30).json()
    assert classes_of(answer["predictions"][0]) == expected(model, PHOTO, tmp_path)
