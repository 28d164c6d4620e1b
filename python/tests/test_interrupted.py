"""Exceptions that arrive between any two bytecodes: on the way into a block, and out of it."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from database_locks import LockLost, Locks, connect
from database_locks._held import holds
from support import in_thread


class Limit(Exception):
    """What a signal handler of the application raises."""


class Told(BaseException):
    """The same as no `Exception`."""


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


@pytest.fixture
def alarm() -> Iterator[Callable[[type[BaseException]], Callable[[float], None]]]:
    """``alarm(kind)(seconds)``: SIGALRM comes then, and its handler raises that."""
    before = signal.getsignal(signal.SIGALRM)

    def raising(kind: type[BaseException]) -> Callable[[float], None]:
        def handler(*_: Any) -> None:
            raise kind

        signal.signal(signal.SIGALRM, handler)
        return lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None

    yield raising
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def nothing_is_held(locks: Locks) -> None:
    """Neither in the table, nor as far as this thread knows."""
    until = time.monotonic() + 10
    while held := [row["name"] for row in locks.list() if row["state"] == "held"]:
        locks.drain()
        assert time.monotonic() < until, f"held still: {held}"
    assert holds() == {}


def tried(set_alarm: Callable[[float], None], work: Callable[[], None], longest: float) -> bool:
    """Whether the exception came before the end of the work."""
    try:
        try:
            set_alarm(1e-5 + DELAYS.random() * longest)
            work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except (Limit, Told, KeyboardInterrupt):
        return True
    return False


DELAYS = random.Random(1)


@pytest.mark.parametrize("kind", [Limit, Told, KeyboardInterrupt])
def test_an_exception_of_a_signal_handler_leaves_nothing_held(
    here: Locks, alarm: Any, kind: type[BaseException]
) -> None:
    set_alarm, rounds, kept = alarm(kind), 600, []

    def work(i: int) -> None:
        with here.lock(f"job {i}", lock_ttl=300) as held:
            kept.append(held)

    early = sum(tried(set_alarm, lambda i=i: work(i), 6e-4) for i in range(rounds))  # type: ignore[misc]
    # What the application keeps of its blocks keeps no lock.
    nothing_is_held(here)
    assert 0 < early <= rounds


def test_such_an_exception_leaves_nothing_held_where_the_traceback_is_kept(
    here: Locks, alarm: Any
) -> None:
    set_alarm, kept = alarm(Limit), []
    for i in range(400):
        try:
            try:
                set_alarm(1e-5 + DELAYS.random() * 6e-4)
                with here.lock(f"job {i}", lock_ttl=300):
                    pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Limit as error:
            kept.append(error)
    assert kept
    nothing_is_held(here)


def test_such_an_exception_leaves_nested_blocks_as_they_are(here: Locks, alarm: Any) -> None:
    set_alarm = alarm(Limit)
    for _ in range(150):
        with here.lock("outer", lock_ttl=300) as outer:

            def nested() -> None:
                with here.lock("outer"), here.lock("inner", lock_ttl=300):
                    pass

            tried(set_alarm, nested, 8e-4)
            assert outer._guard.depth == 1
            assert here.is_locked("outer")
            assert not outer.lost
        assert not here.is_locked("outer")
    nothing_is_held(here)


def test_such_an_exception_in_a_task_leaves_nothing_held(here: Locks, alarm: Any) -> None:
    set_alarm = alarm(Limit)

    async def work(i: int) -> None:
        async with here.lock(f"job {i}", lock_ttl=300):
            pass

    for i in range(150):
        # The loop itself may be interrupted, with tasks that never ran to their end.
        loop = asyncio.new_event_loop()
        try:
            tried(set_alarm, lambda i=i, loop=loop: loop.run_until_complete(work(i)), 2e-3)  # type: ignore[misc]
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
                with pytest.raises((asyncio.CancelledError, Limit)):
                    loop.run_until_complete(task)
            loop.close()
    nothing_is_held(here)


def test_a_loss_that_arrives_on_the_way_into_an_inner_block_leaves_that_free(here: Locks) -> None:
    """In a thread, which an exception of another thread tells."""

    def work() -> None:
        for _ in range(60):
            with pytest.raises(LockLost), here.lock("outer", lock_ttl=300, timeout=10):
                threading.Timer(DELAYS.random() * 2e-3, here.lose, ["outer"]).start()
                while True:
                    with here.lock("inner", lock_ttl=300, timeout=10):
                        pass

    in_thread(work)
    nothing_is_held(here)


def test_a_handler_may_take_locks_itself(here: Locks) -> None:
    took: list[bool] = []

    def handler(*_: Any) -> None:
        with here.lock("of the handler", retry=0) as held:
            took.append(not held.lost)
        # Not periodic: it would interrupt itself, and one that waits for itself is refused.
        signal.setitimer(signal.ITIMER_REAL, 0.001)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        for i in range(100):
            with here.lock(f"job {i}"):
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert took and all(took)
    nothing_is_held(here)
