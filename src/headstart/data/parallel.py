"""Run a function over many tasks in worker processes: results in order, memory bounded.

Why not a library: joblib's generator starts a new task for each one that ends, not for each result that is taken, so
results pile up behind a slow consumer (181 of 200 in a trial with ``pre_dispatch=4``). A DataLoader, which is bounded,
waits up to 5 s for each worker after a failure, and its workers notice the death of their parent only between tasks.
"""

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import chain, islice
from multiprocessing.context import ForkServerContext
from threading import Event, Thread
from typing import Any, TypeVar

from headstart.core.errors import UserError

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
TaskResult = TypeVar("TaskResult")

_function: Callable[[Any], Any] | None = None  # a worker's copy of the function that it applies


def map_in_order(
    function: Callable[[Task], TaskResult], tasks: Iterable[Task], *, workers: int, preload: Sequence[str]
) -> Iterator[TaskResult]:
    """Apply a function to tasks in worker processes, and yield the results in the order of the tasks.

    Workers need seconds to start, mostly to import torch. Until they are ready the tasks run in this process, and
    therefore small amounts of work never leave it. At most two tasks per worker are running or waiting to be yielded.
    After an exception, and when this process dies, even by SIGKILL, the workers end at once.

    Below 2 ``workers``, or without semaphores, everything runs in this process. The function is sent to each one once.
    ``preload`` names the modules that they need, not ``__main__``: imported once, and their memory is shared.

    Raises:
        UserError: a worker was killed, as the kernel does when memory runs out.
    """
    # fork is unsafe in a process that may have threads; with spawn each worker would import torch again.
    context = multiprocessing.get_context("forkserver")
    first = list(islice(rest := iter(tasks), 2))
    if workers < 2 or len(first) < 2 or not has_semaphores():
        yield from map(function, chain(first, rest))
        return
    ready = start_server(context, preload)
    for task in (rest := chain(first, rest)):
        yield function(task)
        if ready.is_set():
            break
    else:
        return
    pending: deque[Future[TaskResult]] = deque()
    with ProcessPoolExecutor(workers, context, _start_worker, (function,)) as pool, _kill_workers_on_failure():
        for task in rest:
            pending.append(pool.submit(_apply, task))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def has_semaphores() -> bool:
    """Return whether processes can wait for each other, for which Linux needs a /dev/shm that can be written."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        logger.warning(
            "run.workers: all runs in one process, since /dev/shm is not there to write (%s)", error.strerror
        )
        return False
    return True


def start_server(context: ForkServerContext, preload: Sequence[str]) -> Event:
    """Start the server that workers are forked from; the event is set once it has imported the modules."""
    context.set_forkserver_preload(list(preload))
    ready = Event()

    def wait_for_first_process() -> None:
        with suppress(OSError, EOFError):  # the server was killed, or has no room for its socket: it is done without
            process = context.Process(target=bool, daemon=True)  # does nothing
            process.start()
            process.join()
            ready.set()

    Thread(target=wait_for_first_process, daemon=True).start()
    return ready


@contextmanager
def _kill_workers_on_failure() -> Iterator[None]:
    """Kill the processes started inside if anything fails: the pool would wait for their running tasks."""
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "run.workers: a worker process was killed, most likely because memory ran out: use fewer, then start "
                "again; what is packed already is kept"
            ) from error
        raise


def _start_worker(function: Callable[[Any], Any]) -> None:
    """Keep the function, so that it is not sent with every task, and watch the parent process."""
    global _function  # noqa: PLW0603  (a pool's initializer can leave its result nowhere else)
    _function = function
    Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _apply(task: Any) -> Any:
    assert _function is not None
    return _function(task)
