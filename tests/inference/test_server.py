import asyncio
import socket

import pytest

from headstart.core.errors import UserError
from headstart.inference.server import listening_socket


def test_answers_are_not_held_back() -> None:
    """With Nagle's algorithm on, the last packet of an answer waits for the client's next word: 40 ms."""

    async def connection_is_prompt() -> bool:
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            of_client: socket.socket = writer.get_extra_info("socket")
            told.set_result(bool(of_client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
            writer.close()

        with listening_socket("127.0.0.1", 0) as listening:
            server = await asyncio.start_server(answer, sock=listening)
            async with server:
                _, writer = await asyncio.open_connection(*listening.getsockname())
                prompt = await told
                writer.close()
        return prompt

    assert asyncio.run(connection_is_prompt())


def test_an_address_that_is_taken_is_told() -> None:
    with listening_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=rf"can't listen on 127\.0\.0\.1, port {port}: .*; choose others"):
            listening_socket("127.0.0.1", port)
