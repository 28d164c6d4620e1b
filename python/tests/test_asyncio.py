"""Locks in tasks of asyncio: exclusion, nesting, cancellation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from database_locks import Locks, LockTimeout, connect


@pytest.fixture
def locks(url: str) -> Locks:
    return connect(url)


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


def test_tasks_of_one_thread_exclude_each_other(locks: Locks) -> None:
    inside: list[int] = []
    most: list[int] = []

    async def work(i: int) -> None:
        async with locks.lock("job", timeout=30):
            inside.append(i)
            most.append(len(inside))
            await asyncio.sleep(0.01)
            inside.remove(i)

    async def main() -> None:
        await asyncio.gather(*(work(i) for i in range(10)))

    asyncio.run(main())
    assert most == [1] * 10


def test_a_child_task_does_not_hold_the_lock_of_its_parent(here: Locks) -> None:
    async def child() -> None:
        async with here.lock("job", retry=0):
            pytest.fail("walked into its parent's lock")

    async def main() -> None:
        async with here.lock("job"), here.lock("job"):
            with pytest.raises(LockTimeout):
                await asyncio.create_task(child())

    asyncio.run(main())


def test_waiting_leaves_the_loop_free(here: Locks, memory_url: str) -> None:
    ticks, other = 0, connect(memory_url)

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        async with here.lock("job"):

            async def wait() -> None:
                async with other.lock("job", timeout=3):
                    pytest.fail("got it")

            with pytest.raises(LockTimeout):
                await asyncio.create_task(wait())
        ticking.cancel()

    asyncio.run(main())
    assert ticks > 10


def test_a_cancelled_wait_leaves_nothing_held(locks: Locks) -> None:
    async def wait() -> None:
        # Longer than the bound below: a grant of its own would be in the way until then.
        async with locks.lock("job", lock_ttl=60):
            pytest.fail("got it")

    async def main() -> None:
        async with locks.lock("job"):
            for pause in (0, 0.001, 0.01, 0.1):
                task = asyncio.create_task(wait())
                await asyncio.sleep(pause)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(main())
    began = time.monotonic()
    with locks.lock("job"):
        pass
    assert time.monotonic() - began < 20


def test_asyncio_timeout_around_a_wait_raises_timeout_error(here: Locks, memory_url: str) -> None:
    other = connect(memory_url)

    async def main() -> None:
        async with here.lock("job"):

            async def wait() -> None:
                async with other.lock("job"):
                    pytest.fail("got it")

            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.create_task(wait()), 0.2)

    asyncio.run(main())


def test_many_tasks_can_share_one_lock_object(here: Locks) -> None:
    job, order = here.lock("job", timeout=30), []

    async def work() -> None:
        async with job:
            order.append("in")
            await asyncio.sleep(0)
            order.append("out")

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(20)))

    asyncio.run(main())
    assert order == ["in", "out"] * 20


def test_a_closed_event_loop_does_not_harm_locks_of_a_later_one(here: Locks) -> None:
    async def leave_it() -> None:
        await here.lock("left").__aenter__()

    asyncio.run(leave_it())

    async def main() -> str:
        async with here.lock("job") as held:
            await held.acheck()
            await held.aextend(20)
            return "fine"

    assert asyncio.run(main()) == "fine"


@pytest.mark.parametrize("engine", ["memory:", "sqlite:locks.sqlite3"])
def test_a_program_that_takes_locks_prints_nothing_of_its_own(engine: str, tmp_path: Path) -> None:
    program = f"""
import asyncio, database_locks
locks = database_locks.connect({engine!r})
async def main():
    for _ in range(9):
        async with locks.lock("job", timeout=30):
            pass
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
