"""Exceptions between any two bytecodes of ``__enter__`` and ``__exit__``."""

from __future__ import annotations

import asyncio
import functools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from database_locks import LockLost, Locks, connect
from database_locks._registry import all_held_here
from support import in_thread


class Limit(Exception):
    """What a signal handler of the application raises."""


class Told(BaseException):
    """The same as no `Exception`."""


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


#: Of the test runner, which would have SIGALRM.
pytestmark = pytest.mark.timeout(100, method="thread")


class Interrupter:
    """Signals whose handler raises, at any bytecode of the package or of this module."""

    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind
        self._armed = False

    def handler(self, _: int, frame: Any) -> None:
        # An exception within asyncio would break the event loop and prove nothing.
        # Another signal may find this handler itself, in a callback that swallows exceptions.
        inside = frame.f_globals.get("__name__", "").startswith(("database_locks", __name__))
        inside = inside and frame.f_code is not Interrupter.handler.__code__
        if self._armed and inside:
            self._armed = False
            raise self._kind

    def during(self, work: Callable[[], object], longest: float) -> bool:
        """Whether the exception came before the end of the work."""
        try:
            try:
                self._armed = True
                # Again where the handler was unwilling.
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + DELAYS.random() * longest, 1e-4)
                work()
            finally:
                self._armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except self._kind:
            return True
        return False


@pytest.fixture
def interrupter() -> Iterator[Callable[[type[BaseException]], Interrupter]]:
    before = signal.getsignal(signal.SIGALRM)

    def make(kind: type[BaseException]) -> Interrupter:
        made = Interrupter(kind)
        signal.signal(signal.SIGALRM, made.handler)
        return made

    yield make
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def nothing_is_held(locks: Locks) -> None:
    """Neither in the table, nor as far as this thread knows."""
    until = time.monotonic() + 10
    while held := [row["name"] for row in locks.list() if row["state"] == "held"]:
        locks.drain()
        assert time.monotonic() < until, f"held still: {held}"
    assert [held for key, held in all_held_here().items() if key[1] == id(locks)] == []


DELAYS = random.Random(1)


@pytest.mark.parametrize("kind", [Limit, Told, KeyboardInterrupt])
def test_an_exception_of_a_signal_handler_leaves_nothing_held(
    here: Locks, interrupter: Any, kind: type[BaseException]
) -> None:
    interrupts, rounds, kept = interrupter(kind), 400, []

    def work(i: int) -> None:
        with here.lock(f"job {i}", lock_ttl=300) as held:
            kept.append(held)

    early = sum(interrupts.during(functools.partial(work, i), 6e-4) for i in range(rounds))
    # What the application keeps of its blocks keeps no lock.
    nothing_is_held(here)
    assert early > 0


def test_an_exception_of_a_signal_handler_with_a_kept_traceback_leaves_nothing_held(
    here: Locks, interrupter: Any
) -> None:
    interrupts, kept = interrupter(Limit), []

    def work(i: int) -> None:
        try:
            with here.lock(f"job {i}", lock_ttl=300):
                pass
        except Limit as error:
            kept.append(error)

    for i in range(300):
        interrupts.during(functools.partial(work, i), 6e-4)
    assert kept
    nothing_is_held(here)


def test_an_exception_of_a_signal_handler_leaves_outer_blocks_held(
    here: Locks, interrupter: Any
) -> None:
    interrupts = interrupter(Limit)

    def nested() -> None:
        with here.lock("outer"), here.lock("inner", lock_ttl=300):
            pass

    for _ in range(150):
        with here.lock("outer", lock_ttl=300) as outer:
            interrupts.during(nested, 8e-4)
            assert outer._guard.depth == 1
            assert here.is_locked("outer")
            assert not outer.lost
        assert not here.is_locked("outer")
    nothing_is_held(here)


def test_an_exception_of_a_signal_handler_in_a_task_leaves_nothing_held(
    here: Locks, interrupter: Any
) -> None:
    interrupts = interrupter(Limit)

    async def work(i: int) -> None:
        for n in range(20):
            async with here.lock(f"job {i} {n}", lock_ttl=300):
                pass

    with asyncio.Runner() as runner:
        early = sum(
            interrupts.during(lambda i=i: runner.run(work(i)), 4e-3)  # type: ignore[misc]
            for i in range(150)
        )
    nothing_is_held(here)
    assert early > 0


def test_a_loss_during_the_acquire_of_an_inner_lock_leaves_that_free(here: Locks) -> None:
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
    main = threading.get_ident()

    def handler(*_: Any) -> None:
        with here.lock("of the handler", retry=0) as held:
            lost = held.lost
        took.append(not lost)

    def send() -> None:
        for i in range(50):
            signal.pthread_kill(main, signal.SIGALRM)
            # One at a time: it cannot nest in what it has only begun.
            until = time.monotonic() + 10
            while len(took) <= i and time.monotonic() < until:
                time.sleep(1e-4)

    before = signal.signal(signal.SIGALRM, handler)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        while sender.is_alive():
            with here.lock("job"):
                pass
    finally:
        sender.join()
        signal.signal(signal.SIGALRM, before)
    assert took == [True] * 50
    nothing_is_held(here)
