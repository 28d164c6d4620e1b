"""`lock(…).acquire()`, `try_()`, and `Held` after its block."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import pytest

from database_locks import (
    LockConfigError,
    LockLost,
    LockReleased,
    Locks,
    LockTimeout,
    LockUnavailable,
    connect,
)
from support import TIMEOUT, in_thread


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


def test_every_method_of_held_raises_lock_released_after_its_block(here: Locks) -> None:
    with here.lock("job") as held:
        pass
    with here.lock("job"):
        for use in (
            held.check,
            lambda: held.extend(60),
            held.hand_over,
            held.atomic,
            lambda: held.fence(None),
            lambda: held.ticket,
            lambda: asyncio.run(held.acheck()),
            lambda: asyncio.run(held.aextend(60)),
        ):
            with pytest.raises(LockReleased, match="`job`: the lock is not held any more"):
                use()
        assert (held.remaining(), held.lost) == (0.0, False)
        held.release()
        assert here.is_locked("job")


def test_a_lost_lock_stays_lost_after_its_block(here: Locks) -> None:
    with pytest.raises(LockLost), here.lock("job") as held:
        here.lose("job")
        time.sleep(10)
    assert held.lost
    for use in (held.check, held.hand_over, lambda: held.ticket):
        with pytest.raises(LockLost, match=r"`job` .*released by force"):
            use()


def test_a_loss_found_by_the_release_is_kept(here: Locks) -> None:
    with pytest.raises(LockLost), here.lock("job") as held:
        here.force_release("job")
    assert held.lost


def test_a_lock_can_be_released_before_the_end_of_its_block(here: Locks) -> None:
    with here.lock("job") as held, here.lock("job"):
        held.release()
        assert not here.is_locked("job")
        held.release()
        with here.lock("job") as again:
            assert again.token is not None
            assert held.token is not None
            assert again.token > held.token
        assert not here.is_locked("job")

    async def task() -> None:
        async with here.lock("job") as held:
            await held.arelease()
            assert not await here.ais_locked("job")

    asyncio.run(task())
    with pytest.raises(LockLost), here.lock("job") as held:
        here.force_release("job")
        with pytest.raises(LockLost):
            held.release()
        raise LockLost(name="the one that was caught")


def test_try_gives_none_if_the_lock_is_busy(here: Locks) -> None:
    def tries(**words: Any) -> bool:
        with here.lock("job", **words).try_() as held:
            return held is not None

    async def atries() -> bool:
        async with here.lock("job").try_() as held:
            return held is not None

    assert tries()
    assert asyncio.run(atries())
    with here.lock("job"):
        assert tries()
        assert not in_thread(tries)
        assert not in_thread(lambda: asyncio.run(atries()))
        began = time.monotonic()
        assert not in_thread(lambda: tries(timeout=0.3))
        assert time.monotonic() - began > 0.25
    assert not here.is_locked("job")


def test_try_raises_errors_other_than_lock_timeout() -> None:
    locks = connect("postgres://u:hunter2@127.0.0.1:1/db")
    with pytest.raises(LockUnavailable), locks.lock("job", retry=0).try_():
        pytest.fail("entered")


def test_an_acquired_lock_is_renewed_until_its_release(here: Locks) -> None:
    job = here.lock("job", lock_ttl=3)
    held = job.acquire()
    assert held
    time.sleep(4)
    held.check()
    assert here.is_locked("job")
    # Another thread may release it.
    in_thread(job.release)
    assert not here.is_locked("job")
    job.release()
    job.acquire()
    job.release()


def test_an_acquired_lock_excludes_its_own_thread_and_the_error_says_so(here: Locks) -> None:
    job = here.lock("job")
    job.acquire()
    with pytest.raises(LockConfigError, match="this very thread holds it"), here.lock("job"):
        pytest.fail("entered")
    with pytest.raises(LockConfigError, match="acquired by this object already"):
        job.acquire()
    with pytest.raises(LockTimeout):
        here.lock("job", retry=0).acquire()
    job.release()


def test_a_task_acquires_and_releases_without_a_block(here: Locks) -> None:
    async def main() -> None:
        job = here.lock("job")
        held = await job.aacquire()
        await held.acheck()
        await asyncio.create_task(job.arelease())
        assert not await here.ais_locked("job")

    asyncio.run(main())


def test_a_dropped_lock_stays_held_until_its_lease_ends(here: Locks) -> None:
    here.lock("job", lock_ttl=3).acquire()
    gc.collect()
    assert here.is_locked("job")
    with here.lock("job", timeout=TIMEOUT):
        pass


def test_a_loss_without_a_block_reaches_the_callback_and_the_release(here: Locks) -> None:
    called = threading.Event()
    job = here.lock("job", lost_lock_cb=lambda *_: called.set())
    held = job.acquire()
    here.lose("job")
    assert called.wait(10)
    assert held.lost
    job.release()
    job = here.lock("job")
    job.acquire()
    here.lose("job")
    time.sleep(0.1)  # where an exception would arrive
    with pytest.raises(LockLost, match="`job`"):
        job.release()


def test_arguments_of_other_libraries_are_refused_with_the_equivalent(here: Locks) -> None:
    for lock in (here.lock, here.locked):
        with pytest.raises(TypeError, match='on_busy="raise"'):
            lock("job", blocking=False)  # type: ignore[operator]


def test_errors_name_their_lock_when_they_are_logged(here: Locks) -> None:
    with here.lock("job"), pytest.raises(LockTimeout) as caught:
        in_thread(lambda: here.lock("job", retry=0).__enter__())
    assert repr(caught.value) == "LockTimeout('failed to acquire lock', name='job')"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"timeout": 10**400}, "timeout"),
        ({"timeout": 10**5000}, "timeout"),
        ({"lock_ttl": 10**400}, "lock_ttl"),
        ({"retry": 1e300}, "retry"),
        ({"meta": {"a": float("nan")}}, "meta"),
        ({"ticket": "\ud800", "lock_name": None}, "ticket"),
    ],
)
def test_values_that_cannot_be_stored_are_refused_by_name(
    here: Locks, words: dict[str, Any], named: str
) -> None:
    with pytest.raises(LockConfigError, match=f"^`{named}`") as caught:
        here.lock(**{"lock_name": "job", **words})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("ask", ["show", "is_locked", "force_release"])
def test_an_invalid_name_is_refused_by_every_query(here: Locks, ask: str) -> None:
    for name in (1, "", "\ud800"):
        with pytest.raises(LockConfigError):
            getattr(here, ask)(name)


def test_locks_of_connect_are_kept_until_the_transaction_ends(here: Locks) -> None:
    assert here.lock("job")._until == "commit"
    assert here.lock("job", until="exit")._until == "exit"
    with pytest.raises(LockConfigError, match="until_using"):
        here.lock("job", until_using="nowhere").__enter__()
