"""Overlapping stages: order, bounds, errors, and that no thread is left behind."""

import threading
import time

import pytest
from comfyui_tlbvfi.tlbvfi.threads import Abandoned, background, prefetch


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_prefetch_keeps_the_order_and_runs_at_most_depth_ahead():
    taken = []

    def source():
        for i in range(20):
            taken.append(i)
            yield i

    stream = prefetch(source(), 2)
    for expected, item in enumerate(stream):
        assert item == expected
        assert len(taken) <= item + 4  # the current item, one held by the thread, two waiting


def test_prefetch_raises_the_error_after_the_items_before_it():
    def source():
        yield 1
        raise ValueError("broken")

    stream = prefetch(source(), 4)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_closing_prefetch_early_closes_the_source_in_its_thread():
    closed = []

    def source():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread().name)

    stream = prefetch(source(), 1)
    next(stream)
    stream.close()
    assert closed == ["tlbvfi-prefetch"]


def test_background_consumes_everything_before_the_block_ends():
    seen = []
    with background(seen.extend, 2) as feed:
        for i in range(50):
            feed(i)
    assert seen == list(range(50))


def test_an_error_of_the_background_stage_reaches_the_feeder():
    def consume(items):
        next(items)
        raise OSError("disk full")

    def feed_for_ever():
        with background(consume, 1) as feed:
            while True:
                feed(0)

    with pytest.raises(OSError, match="disk full"):
        feed_for_ever()


def test_an_error_in_the_last_item_is_not_lost():
    def consume(items):
        for _ in items:
            pass
        raise OSError("close failed")

    with pytest.raises(OSError, match="close failed"), background(consume, 4) as feed:
        feed(1)


def test_leaving_the_block_by_an_error_lets_the_stage_clean_up():
    ended = []

    def consume(items):
        try:
            for _ in items:
                time.sleep(0.01)
        except Abandoned:
            ended.append("abandoned")
            raise

    def interrupted():
        with background(consume, 2) as feed:
            feed(1)
            feed(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended == ["abandoned"]


@pytest.fixture
def interrupt_next_wait(monkeypatch):
    """Ctrl-C comes as this thread's next wait for a queue ends, before it has its lock back."""
    restore, here = threading.Condition._acquire_restore, threading.current_thread()

    def interrupted(condition, state):
        if threading.current_thread() is here:
            monkeypatch.undo()
            raise KeyboardInterrupt
        restore(condition, state)

    return lambda: monkeypatch.setattr(threading.Condition, "_acquire_restore", interrupted)


def test_an_interrupt_as_a_wait_for_items_ends_is_an_interrupt(interrupt_next_wait):
    def source():
        yield 1
        time.sleep(0.2)
        yield 2

    stream = prefetch(source(), 1)
    assert next(stream) == 1
    interrupt_next_wait()
    with pytest.raises(KeyboardInterrupt):
        next(stream)


def test_an_interrupt_as_a_wait_for_room_ends_is_an_interrupt(interrupt_next_wait):
    def consume(items):
        for _ in items:
            time.sleep(0.05)

    def feed_all():
        with background(consume, 1) as feed:
            interrupt_next_wait()
            for item in range(9):
                feed(item)

    with pytest.raises(KeyboardInterrupt):
        feed_all()
