"""The service under load: `python -m benchmarks.serving BUNDLE FOLDER [--threads N ...]`, on the loopback alone.

Starts `headstart serve BUNDLE` (with the further arguments) in a process of its own; 1, 8 and 64 clients post the
images of FOLDER, one a request, each its next as soon as its last is answered. Each round is measured twice: alone,
and with three hostile clients more: one whose images are broken, one whose bodies are too large, one that
sends a byte every half second. Prints requests a second and latencies of the good clients, the CPU that the service
took for each of their requests, and what the others got.
"""

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil

SECONDS, REQUESTS = 8.0, 4000
"""Of a round, at most."""
HUGE = bytes(20 * 2**20)


class Round:
    """When the round began, the latencies of good answers in seconds, and the number of each other answer."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.latencies: list[float] = []
        self.others: Counter[str] = Counter()

    def is_running(self) -> bool:
        """Return whether time and requests are left."""
        return time.perf_counter() < self.began + SECONDS and len(self.latencies) < REQUESTS


async def good(client: httpx.AsyncClient, images: list[bytes], first: int, this: Round) -> None:
    """Post one image after the other."""
    for image in itertools.cycle(images[first % len(images) :] + images[: first % len(images)]):
        if not this.is_running():
            return
        began = time.perf_counter()
        status = await post(client, image)
        if status == "200":
            this.latencies.append(time.perf_counter() - began)
        else:
            this.others[status] += 1


async def post(client: httpx.AsyncClient, body: bytes) -> str:
    """Post a body as an image; return the status, or the error's name."""
    try:
        answer = await client.post("/predict", content=body, headers={"Content-Type": "image/jpeg"})
    except httpx.HTTPError as error:
        return type(error).__name__
    return str(answer.status_code)


async def bad(client: httpx.AsyncClient, body: bytes, name: str, this: Round) -> None:
    """Post the same body ten times a second, whatever comes of it."""
    while this.is_running():
        this.others[f"{name} {await post(client, body)}"] += 1
        await asyncio.sleep(0.1)


async def slow(port: int, this: Round) -> None:
    """Announce an image and send a byte of it every half second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /predict HTTP/1.1\r\nHost: slow\r\nContent-Type: image/jpeg\r\nContent-Length: 100000\r\n\r\n")
    while this.is_running() and not writer.is_closing():
        writer.write(b"?")
        await asyncio.sleep(0.5)
    this.others["slow, cut off" if reader.at_eof() else "slow, still at it"] += 1
    writer.close()


async def measured(port: int, clients: int, images: list[bytes], *, hostile: bool) -> Round:
    """Run all clients for a round, each over a connection of its own that is open already."""
    async with contextlib.AsyncExitStack() as stack:
        url = f"http://127.0.0.1:{port}"
        asking = [httpx.AsyncClient(base_url=url, timeout=60, verify=False) for _ in range(clients + 2)]  # noqa: S501
        for client in asking:
            await stack.enter_async_context(client)
            await client.get("/health")
        this = Round()
        work = [good(client, images, i, this) for i, client in enumerate(asking[:clients])]
        if hostile:
            work += [bad(asking[-1], b"\xff\xd8 no image", "broken", this), bad(asking[-2], HUGE, "huge", this)]
            work += [slow(port, this)]
        await asyncio.gather(*work)
        return this


def shown(clients: int, this: Round, cpu: float, *, hostile: bool) -> str:
    """Return a row of the table; ``cpu`` is the seconds that the service took."""
    seconds = time.perf_counter() - this.began
    p50, p99 = (1e3 * float(np.quantile(this.latencies, q)) for q in (0.5, 0.99))
    others = ", ".join(f"{name}: {count}" for name, count in sorted(this.others.items()))
    rate = len(this.latencies) / seconds
    figures = f"{rate:>10.1f}  {p50:>8.1f}  {p99:>8.1f}  {1e3 * cpu / len(this.latencies):>8.1f}"
    return f"{clients:>7}  {'yes' if hostile else 'no':>7}  {figures}  {others}"


def cpu_seconds(process: int) -> float:
    """Return the CPU time that a process has taken."""
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Start the service, measure, stop it."""
    bundle, folder, *arguments = sys.argv[1:]
    images = [path.read_bytes() for path in sorted(Path(folder).rglob("*.*"))[:200] if path.is_file()]
    command = [sys.executable, "-m", "headstart", "serve", bundle, "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2])
        try:
            print("clients  hostile  requests/s  p50 (ms)  p99 (ms)  CPU (ms)  other answers")
            asyncio.run(measured(port, 2, images, hostile=False))  # warm
            for clients in (1, 8, 64):
                for hostile in (False, True):
                    before = cpu_seconds(server.pid)
                    this = asyncio.run(measured(port, clients, images, hostile=hostile))
                    cpu = cpu_seconds(server.pid) - before
                    print(shown(clients, this, cpu, hostile=hostile), flush=True)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
