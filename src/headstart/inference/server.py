"""The HTTP service: images in, predictions as JSON out, with limits on what a request may cost."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

import anyio.to_thread
import h11
import uvicorn
from anyio import CapacityLimiter, fail_after
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import create_model
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message
from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.core.errors import UserError
from headstart.images.band_files import BandPatterns, FileGroup
from headstart.images.decode import BadImageError
from headstart.images.kinds import HEAD_BYTES, image_format
from headstart.inference.postprocess import Prediction
from headstart.inference.predictor import FileInput, Predictor
from headstart.inference.writers import output_names, output_record
from headstart.targets.target import Target

IMAGE = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "additionalProperties": {"type": "array", "items": IMAGE["schema"]}}}
HOW = (
    "send an image's bytes as the body with its Content-Type, image/* (curl -H 'Content-Type: image/jpeg' "
    "--data-binary @cat.jpg URL), or several as the files of multipart/form-data (curl -F file=@cat.jpg URL)"
)
_NAMED = ", only fields of text, which are ignored"
MAX_FIELDS = 100
"""Fields of text in a form, all of them ignored."""
KINDS = ("image/*", "application/octet-stream")
KINDS_OF_BANDS = (*KINDS, "application/dicom")
"""Of a body that is one image: of 8-bit RGB, and with bands."""


@dataclass(frozen=True)
class Limits:
    """Limits on a request's body and its images, and on the threads that decode and predict."""

    body_bytes: int
    images: int
    seconds: float  # for the body to come, and again for the answer
    threads: int


def application(predictor: Predictor, limits: Limits) -> FastAPI:
    """Build the application: ``POST /predict``, ``GET /health``, ``GET /openapi.json``.

    Images are decoded and predicted one by one in the framework's thread pool, so that a request of many takes its
    turn for each of them, and only as many are in memory, decoded, as there are threads.
    """
    app = FastAPI(title="headstart", docs_url=None, redoc_url=None)  # these pages load scripts from elsewhere
    pool = CapacityLimiter(limits.threads)
    config, target = predictor.bundle.config, predictor.bundle.config.target
    kinds = KINDS if predictor.preprocessing.bands is None else KINDS_OF_BANDS
    body = {"content": dict.fromkeys(kinds, IMAGE) | {"multipart/form-data": FORM}}
    patterns = BandPatterns(config.band_files)

    @app.post("/predict", openapi_extra={"requestBody": body}, response_model=list[_answer_model(target)])  # type: ignore[misc]
    async def predict(request: Request, response: Response) -> list[dict[str, Any]]:
        """Return a prediction for each image, in their order; 422 where none of them can be read."""
        files = await _uploaded(request, limits, kinds)
        images = patterns.group(name for name, _ in files)
        try:
            with fail_after(limits.seconds):
                predictions = [
                    await anyio.to_thread.run_sync(_predict_upload, predictor, image, files, limiter=pool)
                    for image in images
                ]
        except TimeoutError:
            raise HTTPException(503, f"no answer within {limits.seconds:g} s: too busy", {"Retry-After": "1"}) from None
        if all(each.error for each in predictions):
            response.status_code = 422
        return [output_record(each, target) for each in predictions]

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return the model's architecture and what it knows, such as its ``classes``: it is loaded."""
        return {"status": "ok", "model": config.architecture, target.nouns: [*target.names]}

    return app


def _answer_model(target: Target) -> Any:
    """Return the type of an image's answer, for the service's description."""
    hints, names = get_type_hints(Prediction), output_names(target)
    fields: dict[str, Any] = {name: (hints[field], ...) for field, name in names.items()}
    return create_model("Prediction", **fields)


def _predict_upload(predictor: Predictor, image: FileGroup, files: list[tuple[str, bytes]]) -> Prediction:
    contents: list[FileInput] = [files[number][1] for number in image.files]
    try:
        if image.problem:
            raise BadImageError(image.problem)
        return replace(predictor(contents[0] if len(contents) == 1 else contents), image=image.name)
    except BadImageError as error:
        return Prediction(image.name, error=str(error))


async def _uploaded(request: Request, limits: Limits, kinds: Sequence[str]) -> list[tuple[str, bytes]]:
    """Return each image's name (empty where it has none) and content: the body is one image, or a form with files.

    A form's fields of text are ignored, and so are its file fields that were left empty. A file that came without a
    name counts as one, such as of clients that write only ``filename*``, which the parser takes for a field.

    Raises HTTPException where the body is something else, beyond a limit, or does not come.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    try:
        with fail_after(limits.seconds):
            if kind == "multipart/form-data":
                bounded = _with_body_limit(request, limits.body_bytes)
                async with bounded.form(
                    max_files=limits.images, max_fields=MAX_FIELDS, max_part_size=limits.body_bytes
                ) as form:
                    parts = [await _file(part) for _, part in form.multi_items()]
                    files = [part for part in parts if part is not None]
                    if not files:
                        raise HTTPException(400, f"the form has no file{_NAMED if form else ''}: {HOW}")
                    if len(files) > limits.images:
                        raise HTTPException(400, f"Too many files. Maximum number of files is {limits.images}.")
                    return files
            if kind.startswith("image/") or kind in kinds:
                return [("", await _with_body_limit(request, limits.body_bytes).body())]
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {limits.seconds:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body did not come whole") from None  # nobody is left to read it
    raise HTTPException(415, f"{kind or 'a body without a Content-Type'} is not read: {HOW}")


async def _file(part: UploadFile | str) -> tuple[str, bytes] | None:
    """Return the name and content of a part of a form that is a file; None for text and for a field left empty."""
    if isinstance(part, UploadFile):
        content = await part.read()
        return (part.filename or "", content) if part.filename or content else None
    with contextlib.suppress(UnicodeEncodeError):
        content = part.encode("latin-1")  # in which the parser decodes what is not UTF-8
        return ("", content) if image_format(content[:HEAD_BYTES]) else None
    return None


def _with_body_limit(request: Request, max_bytes: int) -> Request:
    """Return the request with a body that raises HTTPException once more than ``max_bytes`` are announced or read."""
    refusal = HTTPException(413, f"the body has more than {max_bytes} bytes")
    announced = request.headers.get("Content-Length", "0")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise refusal
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise refusal
        return message

    return Request(request.scope, receive)


PATIENCE = 10
"""Seconds for the head of a request to come, and for the rest of a body that was refused."""


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on how long a client may take.

    uvicorn (0.54) has none but between requests, and a waiting connection counts as one in use. The rest of a refused
    body is thrown away for ``PATIENCE`` seconds, since closing at once, as hypercorn (0.18) does, would take the answer
    from a client that is still sending. hypercorn and granian (2.8) also have no limit on clients that answers 503.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the timer."""
        super().connection_made(transport)
        self._start_or_stop_timer()

    def data_received(self, data: bytes) -> None:
        """Handle the data, then start or stop the timer."""
        super().data_received(data)
        self._start_or_stop_timer()

    def _start_or_stop_timer(self) -> None:
        in_head = self.conn.their_state is h11.IDLE
        refused = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if not in_head and not refused:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            self._timer = self.loop.call_later(PATIENCE, self.timeout_keep_alive_handler)


def serve(app: FastAPI, listening: socket.socket, *, clients: int, seconds: int) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, finish the pending answers, and raise the signal again.

    One connection more than ``clients`` is answered 503; at the end ``seconds`` are left for the pending answers.
    """
    config = uvicorn.Config(
        app,
        http=TimeoutProtocol,
        ws="none",
        log_level="warning",
        server_header=False,
        limit_concurrency=clients + 1,  # uvicorn refuses at this number
        timeout_graceful_shutdown=seconds,
    )
    uvicorn.Server(config).run([listening])


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind a socket before the model is loaded, so that a wrong address is an error at once; port 0 takes a free one.

    Raises UserError where the address is taken, or not one of this machine.
    """
    six = ":" in host
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, dualstack_ipv6=six)
    except (OSError, ValueError) as error:
        problem = f"can't listen on {host}, port {port}: {error}; choose others with --host and --port"
        raise UserError(problem) from error
    # The protocol is stated since asyncio sets TCP_NODELAY on no other socket; without it an answer takes 40 ms more.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, bound.detach())
