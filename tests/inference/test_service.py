from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
from PIL import Image

from headstart.inference.postprocess import Prediction
from headstart.inference.server import Limits, application

LIMITS = Limits(body_bytes=10_000, images=2, pixels=10_000, seconds=0.1, threads=1)


class Slow:
    """A predictor that is at work until it is told to end."""

    bundle = SimpleNamespace(config=SimpleNamespace(architecture="slow", classes=["cat"]))

    def __init__(self) -> None:
        self.end = Event()
        self.begun = 0

    def __call__(self, _content: bytes) -> Prediction:
        self.begun += 1
        assert self.end.wait(60)
        return Prediction(label="cat")


def test_who_waits_too_long_for_a_thread_is_told_so_and_is_not_worked_for(tmp_path: Path) -> None:
    predictor: Any = Slow()
    image = tmp_path / "picture.png"
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
