"""Work in parallel processes, in order, with bounded memory."""

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

# Starting workers takes some seconds, most of them to import torch: less work than that is done here.
SECONDS_BEFORE_WORKERS = 3.0

_function: Callable[[Any], Any] | None = None


def in_order(
    function: Callable[[Chunk], Result],
    chunks: Iterable[Chunk],
    *,
    workers: int,
    preload: Sequence[str],
) -> Iterator[Result]:
    """Apply a function to chunks of work; give the results in the order of the chunks.

    At most two chunks a worker are under way or waiting to be taken (joblib's generator has no such bound: results pile
    up while the first one takes long).

    Args:
        function: picklable; sent to each worker once.
        chunks: taken only as fast as the results are.
        workers: processes; below 2 all is done in this one.
        preload: names of modules that a worker needs, imported once for all, who share their memory; not ``__main__``.
    """
    rest, began = iter(chunks), time.monotonic()
    for chunk in rest:
        yield function(chunk)
        if workers > 1 and time.monotonic() - began > SECONDS_BEFORE_WORKERS:
            break
    else:
        return
    # Not fork: this process may have threads. Not spawn: each worker would import torch anew.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    pending: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, context, _keep, (function,)) as pool:
        for chunk in rest:
            pending.append(pool.submit(_apply, chunk))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _keep(function: Callable[[Any], Any]) -> None:
    """Keep the function in a worker, so that it is not sent with every chunk."""
    global _function  # noqa: PLW0603  (a pool's initializer has no other place to leave something)
    _function = function


def _apply(chunk: Any) -> Any:
    assert _function is not None
    return _function(chunk)
