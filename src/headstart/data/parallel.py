"""Work in parallel processes, in order, with bounded memory."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing.context import ForkServerContext
from threading import Event, Thread
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_function: Callable[[Any], Any] | None = None


def in_order(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    workers: int,
    preload: Sequence[str],
) -> Iterator[Result]:
    """Apply a function to tasks; give the results in the order of the tasks.

    Workers take seconds to start, most of them to import torch. They start beside the first tasks, which are done here,
    as is little work as a whole. Then at most two tasks a worker are under way or waiting to be taken (joblib's
    generator has no such bound: results pile up while the first one takes long). A worker ends when this process does.

    Args:
        function: picklable; sent to each worker once.
        tasks: taken only as fast as the results are.
        workers: processes; below 2 all is done in this one.
        preload: names of modules that a worker needs, imported once for all, who share their memory; not ``__main__``.
    """
    # Not fork: this process may have threads. Not spawn: each worker would import torch anew.
    context = multiprocessing.get_context("forkserver")
    first = list(islice(rest := iter(tasks), 2))
    ready = server_started(context, preload) if workers > 1 and len(first) > 1 else Event()
    for task in (rest := chain(first, rest)):
        yield function(task)
        if ready.is_set():
            break
    else:
        return
    pending: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, context, _prepare_worker, (function,)) as pool, _killed_on_failure():
        for task in rest:
            pending.append(pool.submit(_apply, task))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def server_started(context: ForkServerContext, preload: Sequence[str]) -> Event:
    """Start the server that workers are forked from; the event tells when it has imported what they need."""
    context.set_forkserver_preload(list(preload))
    ready = Event()

    def wait_for_a_process() -> None:
        process = context.Process(target=_nothing, daemon=True)
        process.start()
        process.join()
        ready.set()

    Thread(target=wait_for_a_process, daemon=True).start()
    return ready


def _nothing() -> None: ...


@contextmanager
def _killed_on_failure() -> Iterator[None]:
    """Kill the processes that are started here if anything fails, so that nobody waits for what is under way."""
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise


def _prepare_worker(function: Callable[[Any], Any]) -> None:
    """Keep the function in a worker, so that it is not sent with every task, and watch the process that started it."""
    global _function  # noqa: PLW0603  (a pool's initializer has no other place to leave something)
    _function = function
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _apply(task: Any) -> Any:
    assert _function is not None
    return _function(task)
