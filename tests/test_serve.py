"""The service as others meet it: a process of its own, asked by a client over the loopback."""

import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from headstart.inference.predictor import Predictor
from headstart.inference.writers import output_record
from helpers.bundles import CLASSES, copy_bundle
from helpers.command import headstart

MAX_BYTES = 100_000
# Nobody is waited for longer than a second, but for the answers themselves.
START = "import headstart.inference.server as c; c.PATIENCE = 1; from headstart.cli import main; main()"


def encoded(seed: int, size: tuple[int, int] = (50, 40)) -> bytes:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 120, (size[1], size[0], 3)) + generator.integers(0, 136, 3)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@contextmanager
def service(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start it on a free port; give its address. SIGTERM ends it, with 0 and no traceback."""
    command = [sys.executable, "-W", "error", "-c", START, "serve", str(folder), "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert said.startswith("listening on http://127.0.0.1:"), said
            yield said.split()[-1], process
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle(tmp_path_factory.mktemp("bundle") / "export")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    limits = ["--max-bytes", str(MAX_BYTES), "--max-pixels", "90000", "--max-pictures", "3", "--threads", "2"]
    with service(folder, *limits) as (url, _), httpx.Client(base_url=url, timeout=60, trust_env=False) as asking:
        yield asking


def post(client: httpx.Client, content: Any, kind: str = "image/png") -> httpx.Response:
    return client.post("/predict", content=content, headers={"Content-Type": kind})


def as_json(predictor: Predictor, content: bytes, name: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        json.dumps(output_record(predictor(content), predictor.bundle.config.target) | {"picture": name})
    )
    return found


def test_the_answers_are_the_predictors_one_by_one_and_several_at_once(client: httpx.Client, folder: Path) -> None:
    predictor = Predictor(folder, threads=1)
    images = {f"ä{i}.png": encoded(i) for i in range(3)}
    for image in images.values():
        answer = post(client, image)
        assert (answer.status_code, answer.json()) == (200, [as_json(predictor, image)])
    assert post(client, image, "application/octet-stream").json() == answer.json()
    several = client.post("/predict", files=[("file", pair) for pair in images.items()])
    assert several.status_code == 200
    assert several.json() == [as_json(predictor, image, name) for name, image in images.items()]


def test_what_it_says_of_itself(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok", "model": "test_resnet", "classes": CLASSES}
    assert set(client.get("/openapi.json").json()["paths"]) == {"/predict", "/health"}
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404  # they load scripts from a CDN
    assert client.get("/predict").status_code == 405


def test_a_forms_other_fields_are_ignored(client: httpx.Client, folder: Path) -> None:
    image = encoded(1)
    expected = [as_json(Predictor(folder, threads=1), image, "a.png")]
    fields = {"user": "me", "note": "x" * 50_000, "json": '{"a": 1}'}
    for files in ([("image", ("a.png", image))], [("other", ("", b"")), ("file", ("a.png", image))]):
        answer = client.post("/predict", data=fields, files=files)
        assert (answer.status_code, answer.json()) == (200, expected)


@pytest.mark.parametrize("disposition", ['name="file"', "name=\"file\"; filename*=utf-8''gr%C3%B6%C3%9Fe.png"])
def test_a_file_may_come_without_a_name_that_the_parser_knows(
    client: httpx.Client, folder: Path, disposition: str
) -> None:
    """As `curl -F 'file=<a.png'` sends it, and clients that encode names as RFC 5987 does."""
    image = encoded(1)
    body = f"--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + image + b"\r\n--b--\r\n"
    answer = post(client, body, "multipart/form-data; boundary=b")
    assert (answer.status_code, answer.json()) == (200, [as_json(Predictor(folder, threads=1), image)])


BROKEN = encoded(0)[:1000]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"no image", "not an image that Pillow can read"),
        (BROKEN, "damaged"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "start the service with --heic"),
        (encoded(0, (400, 300)), "400 x 300 pixels are more than 90000"),
    ],
)
def test_an_image_that_can_not_be_read(client: httpx.Client, content: bytes, said: str) -> None:
    answer = post(client, content[:MAX_BYTES] if len(content) > MAX_BYTES else content)
    assert answer.status_code == 422
    [found] = answer.json()
    assert found["label"] is None
    assert said in found["error"]


def test_an_image_that_can_not_be_read_is_no_matter_to_the_others(client: httpx.Client) -> None:
    files = [("file", ("broken.png", BROKEN)), ("file", ("good.png", encoded(1)))]
    answer = client.post("/predict", files=files)
    assert answer.status_code == 200
    assert [(each["picture"], bool(each["error"]), each["label"] in CLASSES) for each in answer.json()] == [
        ("broken.png", True, False),
        ("good.png", False, True),
    ]


def test_a_body_that_is_too_large_is_refused_announced_or_not(client: httpx.Client) -> None:
    too_large = bytes(MAX_BYTES + 1)
    for content in (too_large, iter([too_large, *[bytes(100_000)] * 50])):
        answer = post(client, content)
        assert answer.status_code == 413
        assert answer.json() == {"detail": f"the body has more than {MAX_BYTES} bytes"}
    assert client.post("/predict", files={"file": too_large}).status_code == 413
    assert post(client, encoded(1)).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"files": [("file", b"an image")] * 4}, 400, "Maximum number of files is 3"),
        ({"files": {"file": (None, b"no file but a field")}}, 400, "no file, only fields of text"),
        ({"content": b"--b--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "no file"),
        ({"content": b"??", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, ""),
        ({"content": b"??", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        (
            {"content": b"{}", "headers": {"Content-Type": "application/json"}},
            415,
            "application/json is not read: ",
        ),
        ({"data": {"image": "/9j/4AAQSkZJ"}}, 415, "application/x-www-form-urlencoded is not read: send"),
        ({"data": {f"f{i}": "x" for i in range(101)}, "files": {"file": b"x"}}, 400, "Maximum number of fields is 100"),
        ({"files": {"file": ("", b"")}, "data": {"a": "b"}}, 400, "no file, only fields of text"),
        ({"content": b"an image"}, 415, "multipart/form-data"),
    ],
)
def test_what_is_no_image_and_no_form_of_them(client: httpx.Client, sent: Any, status: int, said: str) -> None:
    answer = client.post("/predict", **sent)
    assert answer.status_code == status
    assert said in answer.json()["detail"]


def test_many_clients_get_their_own_answers(client: httpx.Client, folder: Path) -> None:
    predictor = Predictor(folder, threads=1)
    images = [encoded(i) for i in range(16)] * 4
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda image: post(client, image).json(), images))
    assert answers == [[as_json(predictor, image)] for image in images]


def request(body: bytes) -> tuple[bytes, bytes]:
    """Return the head of a request, which asks to be told when the body is waited for, and the body."""
    about = f"Host: test\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\nExpect: 100-continue"
    return f"POST /predict HTTP/1.1\r\n{about}\r\n\r\n".encode(), body


@contextmanager
def connection(url: str, sent: bytes) -> Iterator[socket.socket]:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), timeout=60) as connected:
        connected.sendall(sent)
        yield connected


def answer_to(connected: socket.socket) -> bytes:
    """Read an answer, or nothing where the service closes the connection; it is JSON, and ends as such."""
    read = b""
    while not read.endswith((b"}", b"]")) and (more := connected.recv(10_000)):
        read += more
    return read


def wait_until_asked(connected: socket.socket) -> None:
    assert connected.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_slow_clients_are_not_waited_for_and_hold_nobody_up(folder: Path) -> None:
    head, image = request(encoded(0))
    with (
        service(folder, "--timeout", "1") as (url, _),
        connection(url, head) as slow_body,
        connection(url, head[:30]) as slow_head,
        connection(url, b"") as nothing,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        wait_until_asked(slow_body)
        slow_body.sendall(image[:500])
        assert client.get("/health").status_code == 200
        said = answer_to(slow_body)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come within 1 s" in said
        assert answer_to(slow_head) == answer_to(nothing) == b""
        assert client.get("/health").status_code == 200


def test_more_clients_than_it_may_have_are_refused_and_what_is_due_is_answered_at_the_end(folder: Path) -> None:
    head, image = request(encoded(3))
    with service(folder, "--max-clients", "2") as (url, process), connection(url, head) as first:
        wait_until_asked(first)
        with connection(url, head) as second, httpx.Client(base_url=url, timeout=60, trust_env=False) as third:
            wait_until_asked(second)
            assert third.get("/health").status_code == 503
        process.send_signal(signal.SIGTERM)
        first.sendall(image)
        assert answer_to(first).startswith(b"HTTP/1.1 200 ")


def refusal(*arguments: str, code: int = 1) -> str:
    before = signal.getsignal(signal.SIGTERM)
    answer = headstart("serve", *arguments)
    signal.signal(signal.SIGTERM, before)
    assert (answer.exit_code, answer.stdout) == (code, "")
    return answer.stderr


def test_what_is_wrong_is_said_before_it_listens(folder: Path, tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "none"), "--port", "0").startswith(f"error: {tmp_path}/none ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"can't listen on 127.0.0.1, port {port}" in refusal(str(folder), "--port", port)
    assert "--host" in refusal(str(folder), "--host", "192.0.2.1")
    assert "has no conformal sets or intervals" in refusal(str(folder), "--port", "0", "--conformal", "0.5")
    for option, least in (("--max-bytes", 1), ("--max-clients", 2), ("--threads", 1), ("--top", 1)):
        assert f"x>={least}" in refusal(str(folder), option, str(least - 1), code=2)
