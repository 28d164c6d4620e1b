"""Refused waits: deadlocks within the process, and waits that would stop an event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

from database_locks import LockConfigError, Locks, LockTimeout, connect
from support import in_thread

TIMEOUT = 20.0


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


Job = Callable[[], Any]
AsyncJob = Callable[[], Coroutine[Any, Any, None]]


async def _gathered(task: AsyncJob, _: Job) -> None:
    await asyncio.gather(task(), asyncio.sleep(0))


async def _waited_for(task: AsyncJob, _: Job) -> None:
    await asyncio.wait_for(asyncio.ensure_future(task()), 60)


async def _as_completed(task: AsyncJob, _: Job) -> None:
    for ended in asyncio.as_completed([task()]):
        await ended


async def _below_another(task: AsyncJob, _: Job) -> None:
    await asyncio.gather(_gathered(task, lambda: None))


async def _awaited_later(task: AsyncJob, _: Job) -> None:
    child = asyncio.ensure_future(task())
    await asyncio.sleep(0.1)
    await asyncio.shield(child)


async def _to_thread(_: AsyncJob, work: Job) -> None:
    await asyncio.to_thread(work)


async def _sync_to_async(_: AsyncJob, work: Job) -> None:
    await sync_to_async(work)()


async def _sync_to_async_anywhere(_: AsyncJob, work: Job) -> None:
    await sync_to_async(work, thread_sensitive=False)()


IN_A_TASK = [
    _gathered,
    _waited_for,
    _as_completed,
    _below_another,
    _awaited_later,
    _to_thread,
    _sync_to_async,
    _sync_to_async_anywhere,
]


@pytest.mark.parametrize("nested", IN_A_TASK)
@pytest.mark.parametrize("timeout", [0, 60])
def test_a_wait_of_a_task_that_the_holder_awaits_is_refused(
    here: Locks, nested: Any, timeout: int
) -> None:
    async def task() -> None:
        async with here.lock("job", timeout=timeout):
            pytest.fail("got it")

    def work() -> None:
        with here.lock("job", timeout=timeout):
            pytest.fail("got it")

    async def main() -> None:
        async with here.lock("job"):
            await nested(task, work)

    began = time.monotonic()
    with pytest.raises(
        LockConfigError, match=r"`job` is held by .* \(this process\), and the task"
    ):
        asyncio.run(main())
    assert time.monotonic() - began < TIMEOUT
    assert not here.is_locked("job")


def _run(task: AsyncJob, _: Job) -> None:
    asyncio.run(task())


def _async_to_sync(task: AsyncJob, _: Job) -> None:
    async_to_sync(task)()


def _in_a_pool(_: AsyncJob, work: Job) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def _mapped(_: AsyncJob, work: Job) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: work(), range(2)))


@pytest.mark.parametrize("nested", [_run, _async_to_sync, _in_a_pool, _mapped])
def test_a_wait_in_a_thread_that_the_holder_waits_for_is_refused(here: Locks, nested: Any) -> None:
    async def task() -> None:
        async with here.lock("job"):
            pytest.fail("got it")

    def work() -> None:
        with here.lock("job"):
            pytest.fail("got it")

    began = time.monotonic()
    with pytest.raises(LockConfigError, match=r"\(this process\), and (this|the) .*thread"):
        with here.lock("job"):
            nested(task, work)
    assert time.monotonic() - began < TIMEOUT
    assert not here.is_locked("job")


def test_a_wait_in_a_task_of_the_views_own_loop_is_refused(here: Locks) -> None:
    async def task() -> None:
        async with here.lock("job"):
            pytest.fail("got it")

    def view() -> None:
        with here.lock("job"):
            async_to_sync(task)()

    async def main() -> None:
        await sync_to_async(view)()

    with pytest.raises(LockConfigError, match="the thread that holds it waits for this one"):
        asyncio.run(main())


def test_an_unlimited_wait_in_a_thread_that_the_holder_joins_is_refused(here: Locks) -> None:
    errors: list[Exception] = []

    def work(timeout: float) -> None:
        try:
            with here.lock("job", timeout=timeout):
                pytest.fail("got it")
        except Exception as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    with here.lock("job"):
        for timeout in (0, 0.5):
            thread = threading.Thread(target=work, args=[timeout])
            thread.start()
            thread.join()
    assert [type(error) for error in errors] == [LockConfigError, LockTimeout]


def test_waits_that_can_end_are_not_refused(here: Locks) -> None:
    """What was started under the lock, and is waited for after it."""
    done: list[str] = []

    async def task() -> None:
        async with here.lock("job", timeout=20):
            done.append("task")

    def work() -> None:
        with here.lock("job", timeout=20):
            done.append("thread")

    async def main() -> None:
        async with here.lock("job"):
            started = asyncio.ensure_future(task())
            called = asyncio.get_running_loop().run_in_executor(None, work)
            await asyncio.sleep(0.6)
            assert done == []
        await asyncio.gather(started, called)

    asyncio.run(main())
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with here.lock("job"):
            called = pool.submit(work)
            with pytest.raises(concurrent.futures.TimeoutError):
                called.result(0.6)
        called.result(20)
    assert sorted(done) == ["task", "thread", "thread"]


def test_a_plain_block_in_a_task_raises_instead_of_stopping_the_loop(
    here: Locks, memory_url: str
) -> None:
    other = connect(memory_url)

    async def main() -> None:
        with here.lock("free"):
            await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(LockConfigError, match=r"would stop the event loop .* `async with`"):
            with here.lock("job", timeout=60):
                pytest.fail("got it")
        assert time.monotonic() - began < TIMEOUT
        # One try is a try.
        with pytest.raises(LockTimeout), here.lock("job", retry=0):
            pytest.fail("got it")
        with here.lock("job").try_() as held:
            assert held is None

    with other.lock("job"):
        in_thread(lambda: asyncio.run(main()))


def test_two_tasks_with_plain_blocks_exclude_each_other(here: Locks) -> None:
    async def holds() -> None:
        with here.lock("job"):
            await asyncio.sleep(0.2)

    async def comes() -> None:
        await asyncio.sleep(0.05)
        with pytest.raises(LockConfigError, match=r"\(this process\), and a wait would stop"):
            with here.lock("job"):
                pytest.fail("got it")

    async def main() -> None:
        await asyncio.gather(holds(), comes())

    asyncio.run(main())
    assert not here.is_locked("job")


IN_DJANGO = """
import asyncio
from django.core.exceptions import SynchronousOnlyOperation
from database_locks import LockConfigError, connect
here, other = connect("memory:x"), connect("memory:x")
async def main():
    with other.lock("job"):
        try:
            with here.lock("job"): pass
        except SynchronousOnlyOperation as error:
            assert isinstance(error, LockConfigError)
            print("refused")
asyncio.run(main())
"""


def test_with_django_the_error_is_also_synchronous_only_operation(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_DJANGO]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


def test_lock_timeout_says_that_the_holder_is_in_this_process(here: Locks, memory_url: str) -> None:
    for locks in (here, connect(memory_url)):
        with here.lock("job"), pytest.raises(LockTimeout) as caught:
            in_thread(lambda locks=locks: locks.lock("job", timeout=0.2).__enter__())  # type: ignore[misc]
        assert "(this process)" in str(caught.value)
        assert caught.value.in_this_process


def test_a_thread_is_not_taken_for_the_one_that_ended_and_had_its_ident(here: Locks) -> None:
    one = here.lock("job")
    idents: list[int] = []

    def acquire() -> None:
        idents.append(threading.get_ident())
        one.acquire()

    def wait() -> None:
        idents.append(threading.get_ident())
        with here.lock("job", timeout=TIMEOUT):
            pass

    acquiring = threading.Thread(target=acquire)
    acquiring.start()
    acquiring.join()
    release = threading.Timer(0.3, one.release)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        release.start()
        waiting.result(2 * TIMEOUT)
    # On Linux the ident is used again at once. If not, this has tested nothing, and harms nothing.
    assert len(idents) == 2
