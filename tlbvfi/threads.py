"""Stages that overlap: an iterator run ahead in a thread, and a sink fed through a queue.

Both hold a bounded number of items, so memory stays constant however fast one side is. Threads
rather than processes: PyAV, OpenCV and torch release the GIL, and ComfyUI loads this package under
a name a child process could not import.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1
"""How often a waiting thread checks whether the other side has stopped."""


class _End:
    """Marks the end of a stream; carries what ended it early, if anything."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetch(items: Iterable[T], depth: int) -> Generator[T]:
    """Yield `items`, which a thread takes from their iterator at most `depth` items ahead.

    An exception of the iterator is raised here, after the items before it. Closing this generator
    stops the thread and closes the iterator in it.
    """
    queue: Queue[T | _End] = Queue(depth)
    stop = threading.Event()

    def run() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not _put(queue, item, stop):
                    return
            _put(queue, _End(), stop)
        except BaseException as error:  # noqa: BLE001 - handed over to the consuming thread
            _put(queue, _End(error), stop)
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    thread = threading.Thread(target=run, name="tlbvfi-prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := _get(queue), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join()


@contextmanager
def background(consume: Callable[[Iterator[T]], None], depth: int) -> Iterator[Callable[[T], None]]:
    """Run `consume` over an iterator in a thread; yield the function that feeds that iterator.

    At most `depth` items wait. Leaving the block normally ends the iterator, waits for `consume`
    and raises what it raised; leaving it by an exception makes the iterator raise `Abandoned`, so
    that `consume` cleans up. An error of `consume` is raised by the next call that feeds it.
    """
    queue: Queue[T | _End] = Queue(depth)
    stop = threading.Event()  # set once the queue is no longer read
    failure: list[BaseException] = []

    def items() -> Iterator[T]:
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    def run() -> None:
        try:
            consume(items())
        except BaseException as error:  # noqa: BLE001 - handed over to the feeding thread
            failure.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=run, name="tlbvfi-background", daemon=True)

    def feed(item: T) -> None:
        if not _put(queue, item, stop):
            raise failure[0] if failure else RuntimeError("the background stage has ended early")

    thread.start()
    try:
        yield feed
    except BaseException:
        _drain(queue)
        _put(queue, _End(Abandoned()), stop)
        thread.join()
        raise
    _put(queue, _End(), stop)
    thread.join()
    if failure:
        raise failure[0]


class Abandoned(Exception):  # noqa: N818 - not an error: the other side left, clean up
    """Raised inside a background stage whose feeding side was left by an exception."""


def _put(queue: Queue[T], item: T, stop: threading.Event) -> bool:
    """Put `item`, waiting for room; False once `stop` is set."""
    while not stop.is_set():
        try:
            with _interruptible():
                queue.put(item, timeout=POLL_SECONDS)
        except Full:
            continue
        return True
    return False


def _get(queue: Queue[T]) -> T:
    with _interruptible():
        return queue.get()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C through: a wait that it ends just as it wakes up has not got its lock back."""
    try:
        yield
    except RuntimeError as error:  # "release unlocked lock"
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


def _drain(queue: Queue[T]) -> None:
    """Drop waiting items, so that the end mark is seen at once."""
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return
