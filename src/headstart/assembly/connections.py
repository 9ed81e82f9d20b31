"""How the service listens: a bound socket, and connections that don't stay open for a client that never asks."""

import asyncio
import socket

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.ground.errors import UserError

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
