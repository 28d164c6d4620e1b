"""Leases that end before the body can begin, because the thread waits for the GIL or the loop is busy.

The wait goes on; a single try raises `LockLost`.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading
import time
from collections.abc import Callable

import pytest

import database_locks
from database_locks import LockLost, Locks

TTL = 2.5
BUSY = 5
ROUNDS = 10


def keep_the_gil(seconds: float) -> None:
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


def beside(work: Callable[[], None]) -> threading.Thread:
    """Started so that it runs as soon as this thread waits."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_thread_that_waits_for_the_gil_enters_no_lost_lock() -> None:
    locks = database_locks.connect("memory:late thread")
    for timeout in (30, None):
        # The hog may get the GIL too late, or this thread the lock too early.
        late = any(_enters_late(locks, timeout) for _ in range(ROUNDS))
        assert late, "the hog was never in the way"


def _enters_late(locks: Locks, timeout: float | None) -> bool:
    """Whether the lease was over before this thread had the GIL again."""
    go = threading.Event()

    def hog() -> None:
        """Hold the GIL for longer than the lease lasts, from the moment when the main thread lets it go."""
        go.wait()
        keep_the_gil(BUSY)

    lock = locks.lock("x", lock_ttl=TTL, auto_renew=False, **_wait(timeout))
    thread = beside(hog)
    interval = sys.getswitchinterval()
    # This thread keeps the GIL until it blocks in the extension. By then the hog waits for it.
    sys.setswitchinterval(60)
    go.set()
    keep_the_gil(0.3)
    began = time.monotonic()
    try:
        with lock as held:
            entered = time.monotonic()
            assert not held.lost
            assert held.remaining() > 0
    except LockLost:
        assert timeout is None, "the wait was not over"
        return True
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    # A try-once that comes late is lost.
    return timeout is not None and entered - began > BUSY


def _wait(timeout: float | None) -> dict[str, float | None]:
    return {"retry": None} if timeout is None else {"timeout": timeout}


def test_a_task_whose_loop_was_busy_enters_no_lost_lock() -> None:
    locks = database_locks.connect("memory:late task")
    entered: list[bool] = []

    async def take(timeout: float | None) -> None:
        lock = locks.lock("x", lock_ttl=TTL, auto_renew=False, **_wait(timeout))
        async with lock as held:
            entered.append(held.lost)

    async def main(timeout: float | None) -> None:
        task = asyncio.create_task(take(timeout))
        # It asks, and the loop is busy when the answer comes.
        await asyncio.sleep(0)
        time.sleep(BUSY)
        await task

    asyncio.run(main(30))
    assert entered == [False]
    with pytest.raises(LockLost, match="`x` lost"):
        asyncio.run(main(None))
    assert entered == [False], "the body ran"
