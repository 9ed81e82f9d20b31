"""The service: images come in by HTTP, answers go out as JSON; what a request may cost is bounded."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import anyio.to_thread
import h11
import uvicorn
from anyio import CapacityLimiter, fail_after
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.core.errors import UserError
from headstart.images.decode import BadImageError, header_size
from headstart.inference.postprocess import Prediction
from headstart.inference.predictor import Predictor

IMAGE = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "additionalProperties": {"type": "array", "items": IMAGE["schema"]}}}
BODY = {"content": {"image/*": IMAGE, "application/octet-stream": IMAGE, "multipart/form-data": FORM}}


@dataclass(frozen=True)
class Limits:
    """What one request may cost, and how many images are worked on at once.

    Attributes:
        body_bytes: of a request's body.
        images: in one request.
        pixels: of one image.
        seconds: for the body to come, and again for the answer.
        threads: that decode and predict.
    """

    body_bytes: int
    images: int
    pixels: int
    seconds: float
    threads: int


@dataclass(frozen=True)
class Received:
    """An image as it came: its file's name, empty where it had none, and its content."""

    name: str
    content: bytes


def application(predictor: Predictor, limits: Limits) -> FastAPI:
    """Make the application: ``POST /predict``, ``GET /health``, ``GET /openapi.json``.

    Images are decoded and predicted one by one in the framework's thread pool, so that a request of many takes its
    turn for each of them, and only as many are in memory, decoded, as there are threads.
    """
    app = FastAPI(title="headstart", docs_url=None, redoc_url=None)  # whose pages load scripts from elsewhere
    pool = CapacityLimiter(limits.threads)
    config = predictor.bundle.config

    @app.post("/predict", openapi_extra={"requestBody": BODY})
    async def predict(request: Request, response: Response) -> list[Prediction]:
        """Say what is on the images, in their order; 422 where none of them can be read."""
        pictures = await _received(request, limits)
        try:
            with fail_after(limits.seconds):
                found = [
                    await anyio.to_thread.run_sync(_predict, predictor, image, limits.pixels, limiter=pool)
                    for image in pictures
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


def _predict(predictor: Predictor, image: Received, pixels: int) -> Prediction:
    try:
        width, height = header_size(image.content)
        if width * height > pixels:
            raise BadImageError(f"{width} x {height} pixels are more than {pixels}")
        return replace(predictor(image.content), image=image.name)
    except BadImageError as error:
        return Prediction(image.name, error=str(error))
    except MemoryError:
        return Prediction(image.name, error="there is not the memory to decode it")


async def _received(request: Request, limits: Limits) -> list[Received]:
    """Read a request's images: its body is one, or a form whose files are some.

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
    raise HTTPException(415, "send an image as image/*, or several as the files of multipart/form-data")


async def _files(request: Request, limits: Limits) -> list[Received]:
    parser = MultiPartParser(request.headers, _bounded(request, limits), max_files=limits.images, max_fields=0)
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
    """Return the body as it comes; one that is announced as too large is refused before any of it is taken."""
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


PATIENCE = 10
"""Seconds in which the head of a request comes, and in which what is left of a refused body may still come.

uvicorn itself waits for ever, and counts the connection as one in use. What is left of a refused body is thrown away,
since closing at once would take the answer from a client that is still sending.
"""


class PromptProtocol(H11Protocol):
    """HTTP/1.1 that does not wait for a client for ever."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the clock."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on, and stop or start the clock."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        answered = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if not answered and self.conn.their_state is not h11.IDLE:
            if self._late is not None:
                self._late.cancel()
                self._late = None
        elif self._late is None:
            self._late = self.loop.call_later(PATIENCE, self.timeout_keep_alive_handler)


def serve(app: FastAPI, listening: socket.socket, *, clients: int, seconds: int) -> None:
    """Answer at a bound socket until SIGTERM or SIGINT, then end the answers that are due; the signal is raised again.

    Args:
        app: what answers.
        listening: ``listening_socket``'s.
        clients: connections at once; one more is answered 503.
        seconds: for the answers that are due at the end.
    """
    config = uvicorn.Config(
        app,
        http=PromptProtocol,
        ws="none",
        log_level="warning",
        server_header=False,
        limit_concurrency=clients + 1,  # at which uvicorn refuses
        timeout_graceful_shutdown=seconds,
    )
    uvicorn.Server(config).run([listening])


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind a socket, so that what is wrong with the address shows at once; port 0 is a free one.

    Raises:
        UserError: the address is taken, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Its protocol said, since asyncio turns Nagle's algorithm off for nothing else: 40 ms an answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
        return listening
    except (OSError, OverflowError) as error:
        listening.close()
        raise UserError(
            f"can't listen on {host}, port {port}: {error}; choose others with --host and --port"
        ) from error
