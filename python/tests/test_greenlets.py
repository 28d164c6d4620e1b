"""Locks under gevent and eventlet, and in tasks of trio."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from database_locks import LockConfigError, LockLost, Locks, LockTimeout, connect
from support import Program

GREENLETS = str(Path(__file__).parent / "programs" / "greenlets.py")


@pytest.mark.parametrize("kind", ["gevent", "eventlet"])
def test_greenlets_exclude_each_other_and_wait_without_stopping_the_others(
    kind: str, sqlite_url: str, start: Callable[[list[str]], Program]
) -> None:
    program = start([sys.executable, GREENLETS, kind, sqlite_url])
    program.expect("right", within=60)
    assert program.wait() == 0, program.stderr


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


def test_tasks_of_trio_exclude_each_other_and_wait_without_stopping_the_loop(here: Locks) -> None:
    inside: list[int] = []
    most: list[int] = []
    ticks: list[float] = []

    async def work(i: int) -> None:
        async with here.lock("job", timeout=30), here.lock("job"):
            inside.append(i)
            most.append(len(inside))
            # While the others wait: if their waits stopped the loop, this would not end.
            end = len(ticks) + 10
            while len(ticks) < end:
                await trio.sleep(0.01)
            inside.remove(i)

    async def tick(scope: trio.CancelScope) -> None:
        with scope:
            while True:
                ticks.append(trio.current_time())
                await trio.sleep(0.01)

    async def main() -> None:
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick, scope)
            async with trio.open_nursery() as workers:
                for i in range(4):
                    workers.start_soon(work, i)
            scope.cancel()

    trio.run(main)
    assert most == [1] * 4


async def _lose(locks: Locks, name: str) -> None:
    await trio.sleep(0.1)
    locks.lose(name)


@pytest.mark.parametrize("inside", ["sleeps", "has children"])
def test_a_task_of_trio_gets_lock_lost(here: Locks, inside: str) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with pytest.raises(LockLost) as caught:
                async with here.lock("job") as held:
                    nursery.start_soon(_lose, here, "job")
                    if inside == "sleeps":
                        await trio.sleep(60)
                    async with trio.open_nursery() as children:
                        children.start_soon(trio.sleep, 60)
                        children.start_soon(trio.sleep, 60)
            assert (caught.value.name, caught.value.token) == ("job", held.token)

    trio.run(main)


def test_a_cancelled_task_of_trio_releases_its_lock(here: Locks) -> None:
    async def main() -> None:
        with trio.CancelScope() as scope:
            async with here.lock("job"):
                scope.cancel()
                await trio.sleep(60)
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            async with here.lock("job"):
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_is_busy, here)
        assert not here.is_locked("job")

    trio.run(main)


def _is_busy(locks: Locks) -> None:
    with pytest.raises(LockTimeout), locks.lock("job", timeout=0.3):
        pytest.fail("got it")


def test_a_task_of_trio_is_refused_a_wait_that_could_never_end(here: Locks) -> None:
    async def child() -> None:
        with pytest.raises(LockConfigError, match="at the end of its nursery"):
            async with here.lock("job"):
                pytest.fail("got it")
        with pytest.raises(LockConfigError, match="would stop the event loop"):
            with here.lock("job"):
                pytest.fail("got it")

    async def main() -> None:
        async with here.lock("job"), trio.open_nursery() as nursery:
            nursery.start_soon(child)

    trio.run(main)
