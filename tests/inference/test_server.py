"""The service without a process of its own; tests/test_serve.py asks the real one."""

import asyncio
import socket
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

from headstart.core.errors import UserError
from headstart.inference.postprocess import Prediction
from headstart.inference.server import Limits, application, listening_socket
from headstart.targets.classes import Classes

LIMITS = Limits(body_bytes=10_000, images=2, seconds=0.1, threads=1)


class Slow:
    """A predictor that works until ``end`` is set."""

    bundle = SimpleNamespace(config=SimpleNamespace(architecture="slow", target=Classes(["cat"]), band_files=()))
    preprocessing = SimpleNamespace(bands=None)

    def __init__(self) -> None:
        self.end = Event()
        self.begun = 0

    def __call__(self, _content: bytes) -> Prediction:
        self.begun += 1
        assert self.end.wait(60)
        return Prediction(label="cat")


def test_a_request_that_waits_too_long_for_a_thread_gets_503_and_no_work(tmp_path: Path) -> None:
    predictor: Any = Slow()
    image = tmp_path / "image.png"
    Image.new("RGB", (4, 4)).save(image)
    content = image.read_bytes()
    answers: dict[str, httpx.Response] = {}

    async def ask() -> None:
        transport = httpx.ASGITransport(application(predictor, LIMITS))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:

            async def post(name: str) -> None:
                answers[name] = await client.post("/predict", content=content, headers={"Content-Type": "image/png"})

            async with anyio.create_task_group() as group:
                group.start_soon(post, "first")
                while not predictor.begun:
                    await anyio.sleep(0.001)
                await post("second")
                assert (await client.get("/health")).status_code == 200
                predictor.end.set()

    anyio.run(ask)
    assert answers["second"].status_code == 503
    assert answers["second"].json() == {"detail": "no answer within 0.1 s: too busy"}
    assert answers["second"].headers["Retry-After"] == "1"
    assert answers["first"].json()[0]["label"] == "cat"
    assert predictor.begun == 1


def test_answers_are_not_held_back() -> None:
    """With Nagle's algorithm on, the last packet of an answer waits for the client's next packet: 40 ms."""

    async def connection_is_prompt() -> bool:
        no_delay: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            of_client: socket.socket = writer.get_extra_info("socket")
            no_delay.set_result(bool(of_client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
            writer.close()

        with listening_socket("127.0.0.1", 0) as listening:
            server = await asyncio.start_server(answer, sock=listening)
            async with server:
                _, writer = await asyncio.open_connection(*listening.getsockname())
                prompt = await no_delay
                writer.close()
        return prompt

    assert asyncio.run(connection_is_prompt())


def test_an_address_that_is_taken_is_an_error() -> None:
    with listening_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=rf"can't listen on 127\.0\.0\.1, port {port}: .*; choose others"):
            listening_socket("127.0.0.1", port)
