"""The service: pictures come in by HTTP, answers go out as JSON; what a request may cost is bounded."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter, fail_after
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from headstart.assembly.judge import Prediction
from headstart.assembly.predictor import Predictor
from headstart.libraries.decoding import BadImageError, header_size

PICTURE = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "additionalProperties": {"type": "array", "items": PICTURE["schema"]}}}
BODY = {"content": {"image/*": PICTURE, "application/octet-stream": PICTURE, "multipart/form-data": FORM}}


@dataclass(frozen=True)
class Limits:
    """What one request may cost, and how many pictures are worked on at once.

    Attributes:
        body_bytes: of a request's body.
        pictures: in one request.
        pixels: of one picture.
        seconds: for the body to come, and again for the answer.
        threads: that decode and predict.
    """

    body_bytes: int
    pictures: int
    pixels: int
    seconds: float
    threads: int


@dataclass(frozen=True)
class Received:
    """A picture as it came: its file's name, empty where it had none, and its content."""

    name: str
    content: bytes


def application(predictor: Predictor, limits: Limits) -> FastAPI:
    """Make the application: ``POST /predict``, ``GET /health``, ``GET /openapi.json``.

    Pictures are decoded and predicted one by one in the framework's thread pool, so that a request of many takes its
    turn for each of them, and only as many are in memory, decoded, as there are threads.
    """
    app = FastAPI(title="headstart", docs_url=None, redoc_url=None)  # whose pages load scripts from elsewhere
    pool = CapacityLimiter(limits.threads)
    config = predictor.bundle.config

    @app.post("/predict", openapi_extra={"requestBody": BODY})
    async def predict(request: Request, response: Response) -> list[Prediction]:
        """Say what is on the pictures, in their order; 422 where none of them can be read."""
        pictures = await _received(request, limits)
        try:
            with fail_after(limits.seconds):
                found = [
                    await anyio.to_thread.run_sync(_predict, predictor, picture, limits.pixels, limiter=pool)
                    for picture in pictures
                ]
        except TimeoutError:
            raise HTTPException(503, f"no answer within {limits.seconds:g} s: too busy", {"Retry-After": "1"}) from None
        if all(each.error for each in found):
            response.status_code = 422
        return found

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say that the model is loaded, and which it is."""
        return {"status": "ok", "model": config.architecture, "classes": config.classes}

    return app


def _predict(predictor: Predictor, picture: Received, pixels: int) -> Prediction:
    try:
        width, height = header_size(picture.content)
        if width * height > pixels:
            raise BadImageError(f"{width} x {height} pixels are more than {pixels}")
        return replace(predictor(picture.content), picture=picture.name)
    except BadImageError as error:
        return Prediction(picture.name, error=str(error))
    except MemoryError:
        return Prediction(picture.name, error="there is not the memory to decode it")


async def _received(request: Request, limits: Limits) -> list[Received]:
    """Read a request's pictures: its body is one, or a form whose files are some.

    Raises:
        HTTPException: with the status that says why they can't be had.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    try:
        with fail_after(limits.seconds):
            if kind == "multipart/form-data":
                return await _files(request, limits)
            if kind.startswith("image/") or kind == "application/octet-stream":
                return [Received("", b"".join([chunk async for chunk in _bounded(request, limits)]))]
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {limits.seconds:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body did not come whole") from None  # which nobody reads
    raise HTTPException(415, "send a picture as image/*, or several as the files of multipart/form-data")


async def _files(request: Request, limits: Limits) -> list[Received]:
    parser = MultiPartParser(request.headers, _bounded(request, limits), max_files=limits.pictures, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None
    try:
        files = [each for _, each in form.multi_items() if isinstance(each, UploadFile)]
        if not files:
            raise HTTPException(400, "the form has no file")
        return [Received(file.filename or "", await file.read()) for file in files]
    finally:
        await form.close()


async def _bounded(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Give the body as it comes; one that is announced as too large is refused before any of it is taken."""
    refusal = HTTPException(413, f"the body has more than {limits.body_bytes} bytes")
    announced = request.headers.get("Content-Length", "0")
    if announced.isdecimal() and int(announced) > limits.body_bytes:
        raise refusal
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.body_bytes:
            raise refusal
        yield chunk
