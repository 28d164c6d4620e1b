"""`semaphore`: several holders at the same time, as a program uses it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import database_locks
from database_locks import (
    LockConfigError,
    LockLost,
    LockReleased,
    Locks,
    LockTimeout,
    connect,
    semaphore,
)
from support import TIMEOUT, Holder, eventually, in_thread


@pytest.fixture
def locks(url: str) -> Locks:
    return connect(url)


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


class Inside:
    """Counts who is inside, and keeps the greatest count; no slot may be there twice."""

    def __init__(self) -> None:
        self.slots: set[int] = set()
        self.most = 0
        self.faults: list[str] = []
        self._mutex = threading.Lock()

    @contextmanager
    def mark(self, slot: int | None) -> Iterator[None]:
        assert slot is not None
        with self._mutex:
            if slot in self.slots:
                self.faults.append(f"slot {slot} twice")
            self.slots.add(slot)
            self.most = max(self.most, len(self.slots))
        yield
        with self._mutex:
            self.slots.discard(slot)


@contextmanager
def all_taken(locks: Locks, name: str, permits: int) -> Iterator[list[Any]]:
    """All permits, held by objects."""
    taken = [locks.semaphore(name, permits, locked_by=f"holder {n}") for n in range(permits)]
    yield [one.acquire() for one in taken]
    for one in taken:
        one.release()


def test_threads_hold_three_permits_at_the_same_time_and_never_more(locks: Locks) -> None:
    inside, together = Inside(), threading.Barrier(3)

    def work(n: int) -> None:
        for turn in range(3):
            with locks.semaphore("api", 3, timeout=60) as held, inside.mark(held.slot):
                if turn == 0 and n < 3:
                    time.sleep(0.05)
                time.sleep(0.005)

    def three() -> None:
        with locks.semaphore("api", 3, timeout=60):
            together.wait(TIMEOUT)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, n) for n in range(8)]:
            done.result(2 * TIMEOUT)
    assert not inside.faults and inside.most <= 3
    # Three at once do get in: each waits within for the others.
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(three) for _ in range(3)]:
            done.result(TIMEOUT)
    assert locks.show_semaphore("api")["held"] == 0


def test_tasks_wait_without_stopping_the_loop_and_never_exceed_the_limit(locks: Locks) -> None:
    inside, together = Inside(), asyncio.Barrier(2)

    async def two() -> None:
        async with locks.semaphore("api", 3, timeout=60):
            await asyncio.wait_for(together.wait(), TIMEOUT)

    async def work() -> None:
        for _ in range(2):
            async with locks.semaphore("api", 3, timeout=60) as held:
                with inside.mark(held.slot):
                    await asyncio.sleep(0.005)
                    await held.acheck()

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(8)))
        # Two at once do get in: each waits within for the other.
        await asyncio.gather(two(), two())
        found = await locks.ashow_semaphore("api")
        assert (found["held"], found["of"]) == (0, 3)

    asyncio.run(main())
    assert not inside.faults and inside.most <= 3


def test_two_processes_never_hold_more_permits_than_there_are(
    shared_url: str, hold: Callable[..., Holder], tmp_path: Path
) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    both = [hold("python", shared_url) for _ in range(2)]
    # Threads of this process too: two processes alone could not exceed three permits.
    words = {"name": "api", "permits": 3, "rounds": 15, "folder": str(folder)}
    for one in both:
        one.send(f"permits {json.dumps(words)}")
    locks, faults = connect(shared_url), []

    def work() -> None:
        for _ in range(6):
            with locks.semaphore("api", 3, timeout=60) as held:
                (folder / str(held.slot)).touch(exist_ok=False)
                if len(list(folder.iterdir())) > 3:
                    faults.append(held.slot)
                (folder / str(held.slot)).unlink()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result(2 * TIMEOUT)
    assert not faults
    for one in both:
        one.expect("counted", within=2 * TIMEOUT)


def test_a_block_knows_its_permit_and_shows_it(locks: Locks) -> None:
    api = locks.semaphore("api", 2, locked_by="me", meta={"why": "sync"}, lock_ttl=30)
    with api as one, api as two:
        assert {one.slot, two.slot} == {0, 1}
        assert one.token and two.token and one.holder == "me" and 10 < one.remaining() <= 30
        one.check()
        two.extend(60)
        found = locks.show_semaphore("api")
        assert (found["name"], found["held"], found["of"], found["limit"]) == ("api", 2, 2, None)
        rows = {row["slot"]: row for row in found["permits"]}
        assert rows[one.slot]["token"] == one.token and rows[one.slot]["state"] == "held"
        assert rows[two.slot]["metadata"]["meta"] == {"why": "sync"}
        assert [row["slot"] for row in locks.list()] == [0, 1]
        assert locks.show("api") is None and not locks.is_locked("api"), "another thing"
    assert locks.show_semaphore("api")["held"] == 0
    with locks.lock("api") as held:
        assert held.slot is None
        with locks.semaphore("api", 1, retry=0):
            pass


def test_a_wait_ends_at_its_timeout_and_says_why(locks: Locks) -> None:
    with all_taken(locks, "api", 2):
        for words, timeout in (({"timeout": 2}, 2), ({"on_busy": "raise"}, None)):
            wanted = "all 2 permits of `api` are held, the longest by holder . "
            with pytest.raises(LockTimeout, match=wanted):
                locks.semaphore("api", 2, **words).acquire()
            with pytest.raises(LockTimeout, match=wanted) as caught:
                with locks.semaphore("api", 2, **words):
                    pass
            error = caught.value
            assert (error.name, error.permits, error.timeout) == ("api", 2, timeout)
            assert error.holder in ("holder 0", "holder 1") and error.in_this_process
            assert str(error).startswith("failed to acquire a permit")
    with all_taken(locks, "one", 1):
        with pytest.raises(LockTimeout, match="the one permit of `one` is held by holder 0 "):
            locks.semaphore("one", 1, on_busy="raise").acquire()


def test_an_operator_pauses_lowers_and_raises_the_limit(locks: Locks) -> None:
    locks.set_limit("api", 0)
    for words in ({"timeout": 2}, {"retry": 0}):
        with pytest.raises(LockTimeout, match="semaphore `api` is paused") as caught:
            locks.semaphore("api", 3, **words).acquire()
        assert caught.value.permits == 0
    got = threading.Event()

    def waits() -> None:
        with locks.semaphore("api", 3, timeout=60):
            got.set()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waits)
        assert not got.wait(0.3)
        locks.set_limit("api", 1)
        waiting.result(TIMEOUT)
    with locks.semaphore("api", 3):
        assert locks.show_semaphore("api")["limit"] == 1
        with locks.semaphore("api", 3).try_() as second:
            assert second is None
        locks.set_limit("api", None)
        with locks.semaphore("api", 3).try_() as second:
            assert second is not None


def test_try_gives_none_and_a_skipped_function_is_not_called(here: Locks) -> None:
    calls: list[int] = []

    @here.semaphore("api", 2, on_busy="skip")
    def work(n: int) -> int:
        calls.append(n)
        return n

    assert work(1) == 1
    with all_taken(here, "api", 2):
        assert work(2) is None
        with here.semaphore("api", 2).try_() as held:
            assert held is None
    with here.semaphore("api", 2).try_() as held:
        assert held is not None and held.slot in (0, 1)
    assert work(3) == 3 and calls == [1, 3]


def test_it_decorates_functions_whose_arguments_fill_the_name(here: Locks) -> None:
    @here.semaphore("tenant {tenant}", 2, timeout=5)
    def work(tenant: int) -> int:
        """Doc."""
        return int(here.show_semaphore(f"tenant {tenant}")["held"])

    @here.semaphore("tenant {tenant}", 2, timeout=5)
    async def awork(tenant: int) -> int:
        return int((await here.ashow_semaphore(f"tenant {tenant}"))["held"])

    assert work(7) == 1 and work.__doc__ == "Doc."
    assert asyncio.run(awork(8)) == 1
    # A call within a call acquires another permit.
    outer = here.semaphore("tenant {tenant}", 2)(lambda tenant: work(tenant))
    assert outer(9) == 2


def test_blocks_of_one_thread_do_not_nest_and_wait_for_each_other(here: Locks) -> None:
    api = here.semaphore("api", 2, timeout=0.2)
    with api as one, api as two:
        assert one.slot != two.slot
        with pytest.raises(LockTimeout):
            with api:
                pass
        two.release()
        with api as three:
            assert three.slot == two.slot
        assert one.slot is not None and not one.lost


def test_a_permit_that_is_released_by_force_is_lost_in_the_block(locks: Locks) -> None:
    with pytest.raises(LockConfigError, match="`api` is a semaphore, of which 1 permit is held"):
        with locks.semaphore("api", 2):
            locks.force_release("api")
    with pytest.raises(LockLost) as caught:
        with locks.semaphore("api", 2, lock_ttl=6, locked_by="me") as held:
            freed = locks.force_release("api", slot=held.slot)
            assert freed is not None and freed[0] == "me"
            until = time.monotonic() + TIMEOUT
            while time.monotonic() < until:
                time.sleep(0.01)
    assert (caught.value.name, caught.value.reason) == ("api", "forced")
    assert held.lost and caught.value.token == held.token
    assert caught.value.slot == held.slot
    assert str(caught.value).startswith(f"lost permit {held.slot}, terminating: `api` lost after ")
    assert held.slot is not None and locks.force_release("api", held.slot) is None


def test_messages_say_permit(here: Locks, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="database_locks"):
        with here.semaphore("api", 1) as held:
            pass
        # The records of the core come from a thread.
        eventually(lambda: "permit released" in caplog.text, "the last record")
    texts = "\n".join(record.getMessage() for record in caplog.records)
    for text in (
        "acquiring a permit of api",
        "permit 0 of api: permit released",
        "released permit 0 of api",
    ):
        assert text in texts
    assert "lock api" not in texts and "lock `api`" not in texts
    with pytest.raises(LockReleased, match="`api`: permit 0 is not held any more"):
        held.check()


def test_a_permit_rests_for_at_least_so_long(locks: Locks) -> None:
    with locks.semaphore("long", 1, at_least=600):
        pass
    assert not locks.is_locked("long")
    with pytest.raises(LockTimeout, match="permit"):
        locks.semaphore("long", 1, retry=0).acquire()
    began = time.monotonic()
    with locks.semaphore("api", 1, at_least=1.5):
        pass
    with locks.semaphore("api", 1, timeout=60, at_least=timedelta(seconds=0)):
        assert time.monotonic() - began >= 1.4
    with pytest.raises(LockConfigError, match="at_least"):
        locks.semaphore("api", 1, at_least=-1)


def test_a_permit_is_renewed_for_as_long_as_its_block_runs(locks: Locks) -> None:
    with locks.semaphore("api", 1, lock_ttl=4) as held:
        time.sleep(5)
        held.check()
        with locks.semaphore("api", 1).try_() as second:
            assert second is None


def test_a_ticket_of_a_permit_is_resumed_as_any_ticket(locks: Locks) -> None:
    with locks.semaphore("api", 2) as held:
        ticket = held.hand_over()
    assert locks.show_semaphore("api")["held"] == 1
    with locks.lock(ticket=ticket) as resumed:
        assert (resumed.slot, resumed.token) == (held.slot, held.token)
        assert resumed.name == "api"
        # It does not nest either.
        with locks.lock("api", retry=0) as other:
            assert other.slot is None and other is not resumed
    assert locks.show_semaphore("api")["held"] == 0


def test_a_process_that_is_killed_frees_its_permit_when_the_lease_ends(
    shared_url: str, hold: Callable[..., Holder]
) -> None:
    other = hold("python", shared_url)
    other.send('permit {"lock_name": "api", "permits": 1, "lock_ttl": 4}')
    other.expect("held 0")
    locks = connect(shared_url)
    with pytest.raises(LockTimeout):
        locks.semaphore("api", 1, on_busy="raise").acquire()
    other.kill()
    with locks.semaphore("api", 1, timeout=TIMEOUT) as held:
        assert held.slot == 0


def test_a_wait_in_a_running_loop_is_refused_unless_a_permit_is_free(here: Locks) -> None:
    async def main() -> None:
        with here.semaphore("api", 1):
            pass
        async with here.semaphore("api", 1):
            with pytest.raises(
                LockConfigError, match="the one permit of `api` is held, and a wait"
            ):
                here.semaphore("api", 1).acquire()

    asyncio.run(main())


def test_acquired_without_a_block_it_is_released_by_another_thread(here: Locks) -> None:
    one = here.semaphore("api", 1)
    held = one.acquire()
    assert held.slot == 0
    with pytest.raises(LockConfigError, match="acquired by this object already"):
        one.acquire()
    in_thread(one.release)
    eventually(lambda: here.show_semaphore("api")["held"] == 0, "the release")


@pytest.mark.parametrize("permits", [0, -1, 65_537, 2.0, "3", True, None])
def test_a_bad_number_of_permits_is_refused(permits: Any) -> None:
    with pytest.raises(LockConfigError, match=r"`permits` is .*, must be a whole number from 1 to"):
        semaphore("api", permits)


def test_other_bad_arguments_are_refused(here: Locks) -> None:
    with pytest.raises(LockConfigError, match="`limit` is -1, must be a whole number from 0"):
        here.set_limit("api", -1)
    with pytest.raises(LockConfigError, match="`slot` is 65536, must be the number of a permit"):
        here.force_release("api", 65_536)
    with pytest.raises(LockConfigError, match="`lock_name` is empty"):
        here.semaphore("", 1)
    with pytest.raises(LockConfigError, match='`on_busy="skip"` is for decorated functions'):
        here.semaphore("api", 1, on_busy="skip").acquire()
    for word in ("once_per", "ticket"):
        with pytest.raises(TypeError, match=word):
            here.semaphore("api", 1, **{word: 1})  # type: ignore[arg-type]
    assert "semaphore" in database_locks.__all__
