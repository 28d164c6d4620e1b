"""`lock(shared=True)`: many readers or one writer, as a program uses it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from database_locks import LockConfigError, LockLost, Locks, LockTimeout, connect, lock
from support import TIMEOUT, Holder, eventually, in_thread


@pytest.fixture
def locks(url: str) -> Locks:
    return connect(url)


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


class Inside:
    """Who is inside: readers together, a writer alone."""

    def __init__(self) -> None:
        self.readers = self.writers = self.most_readers = 0
        self.faults: list[str] = []
        self._mutex = threading.Lock()

    @contextmanager
    def mark(self, writes: bool) -> Iterator[None]:
        self._add(writes, 1)
        yield
        self._add(writes, -1)

    def _add(self, writes: bool, one: int) -> None:
        with self._mutex:
            self.writers += one * writes
            self.readers += one * (not writes)
            self.most_readers = max(self.most_readers, self.readers)
            if self.writers > 1 or (self.writers and self.readers):
                self.faults.append(f"{self.writers} writers and {self.readers} readers")


def test_readers_hold_the_lock_together_and_a_writer_alone(locks: Locks) -> None:
    inside, together = Inside(), threading.Barrier(3)

    def read() -> None:
        for _ in range(3):
            with locks.lock("list", shared=True, timeout=60), inside.mark(writes=False):
                time.sleep(0.005)

    def write() -> None:
        for _ in range(3):
            with locks.lock("list", timeout=60) as held, inside.mark(writes=True):
                assert not held.shared
                time.sleep(0.005)

    def meet() -> None:
        with locks.lock("list", shared=True, timeout=60) as held, inside.mark(writes=False):
            assert held.shared
            # Each waits within for the others.
            together.wait(TIMEOUT)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work) for work in (read, read, write, read, write, read)]:
            done.result(2 * TIMEOUT)
        for done in [pool.submit(meet) for _ in range(3)]:
            done.result(TIMEOUT)
    assert not inside.faults and inside.most_readers >= 3
    assert not locks.is_locked("list") and locks.show_shared("list") == []


def test_tasks_share_a_lock_without_stopping_the_loop(locks: Locks) -> None:
    inside = Inside()

    async def read() -> None:
        async with locks.lock("list", shared=True, timeout=60) as held:
            with inside.mark(writes=False):
                await held.acheck()
                await asyncio.sleep(0.01)

    async def write() -> None:
        async with locks.lock("list", timeout=60) as held:
            with inside.mark(writes=True):
                await held.acheck()

    async def main() -> None:
        await asyncio.gather(read(), read(), write(), read(), write(), read())
        assert await locks.ashow_shared("list") == []
        async with locks.lock("list", shared=True):
            assert await locks.ais_locked("list")

    asyncio.run(main())
    assert not inside.faults


def test_a_reader_is_shown_with_its_own_row(locks: Locks) -> None:
    asked = locks.lock("list", shared=True, locked_by="web-2", meta={"why": "export"}, lock_ttl=30)
    with asked as held:
        assert (held.shared, held.slot, held.holder) == (True, None, "web-2")
        assert held.token and 10 < held.remaining() <= 30
        held.check()
        held.extend(60)
        (row,) = locks.show_shared("list")
        assert (row["name"], row["state"], row["holder"]) == ("list", "held", "web-2")
        assert row["shared"] is True and row["token"] == held.token
        assert row["metadata"]["meta"] == {"why": "export"}
        own = locks.show("list")
        assert own is not None and own["state"] == "free" and "shared" not in own
        assert locks.is_locked("list")
        assert [row.get("shared") for row in locks.list(free=False)] == [True]
    assert not locks.is_locked("list")
    with locks.lock("list") as later:
        assert later.token is not None and held.token is not None and later.token > held.token


def test_a_wait_ends_at_its_timeout_and_names_a_reader(locks: Locks) -> None:
    readers = [locks.lock("list", shared=True, locked_by=f"reader {n}") for n in range(2)]
    for reader in readers:
        in_thread(reader.acquire)
        time.sleep(0.01)
    for words, timeout in (({"timeout": 3}, 3), ({"on_busy": "raise"}, None)):
        wanted = "`list` is shared by 2 holders, the longest by reader 0 "
        with pytest.raises(LockTimeout, match=wanted) as caught:
            with locks.lock("list", **words):
                pass
        error = caught.value
        assert (error.name, error.shared_by, error.timeout) == ("list", 2, timeout)
        assert error.holder == "reader 0" and error.in_this_process
    with locks.lock("list").try_() as held:
        assert held is None
    readers[0].release()
    with pytest.raises(LockTimeout, match="`list` is shared by reader 1 "):
        with locks.lock("list", on_busy="raise"):
            pass
    with pytest.raises(LockTimeout, match="`list` is shared by reader 1 "):
        with locks.lock_all(["list", "other"], on_busy="raise"):
            pass
    readers[1].release()
    with locks.lock("list", timeout=TIMEOUT, locked_by="writer"):
        for words in ({"timeout": 3}, {"on_busy": "raise"}):
            other = locks.lock("list", shared=True, **words)
            with pytest.raises(LockTimeout, match="`list` is held by writer ") as caught:
                in_thread(other.acquire)
            assert caught.value.shared_by is None


def test_a_writer_that_waits_keeps_new_readers_out_and_goes_first(locks: Locks) -> None:
    order: list[str] = []
    reader = locks.lock("list", shared=True)
    in_thread(reader.acquire)

    def write() -> None:
        with locks.lock("list", timeout=60, locked_by="writer"):
            order.append("writer")

    def read() -> None:
        with locks.lock("list", shared=True, timeout=60):
            order.append("reader")

    with ThreadPoolExecutor(2) as pool:
        writer = pool.submit(write)
        eventually(lambda: (locks.show("list") or {})["state"] == "held", "the writer has asked")
        with pytest.raises(LockTimeout, match="held by writer"):
            in_thread(locks.lock("list", shared=True, timeout=3).acquire)
        late = pool.submit(read)
        time.sleep(0.2)
        assert order == []
        reader.release()
        writer.result(TIMEOUT)
        late.result(TIMEOUT)
    assert order == ["writer", "reader"]


def test_a_shared_block_nests_in_a_shared_and_in_an_exclusive_one(here: Locks) -> None:
    with here.lock("list", shared=True) as outer:
        with here.lock("list", shared=True) as inner:
            assert inner is outer
        outer.check()
        assert len(here.show_shared("list")) == 1
    with here.lock("list") as outer:
        with here.lock("list", shared=True) as inner:
            assert inner is outer and not inner.shared
        with here.lock("list") as again:
            assert again is outer
        outer.check()
    with here.lock_all(["list", "other"]) as both, here.lock("list", shared=True):
        assert not both.shared
    assert not here.is_locked("list")


@pytest.mark.parametrize("words", [{}, {"timeout": 60}, {"on_busy": "raise"}])
def test_an_exclusive_block_within_a_shared_one_is_refused_at_once(
    here: Locks, words: dict[str, Any]
) -> None:
    wanted = "`list` is shared by this very thread or task already, .*cannot be made an exclusive"
    with here.lock("list", shared=True) as held:
        with pytest.raises(LockConfigError, match=wanted) as caught:
            with here.lock("list", **words):
                pass
        # Its wait would have ended with one.
        assert isinstance(caught.value, LockTimeout) is bool(words)
        with pytest.raises(LockConfigError, match=wanted):
            with here.lock("list", **words).try_():
                pass
        with pytest.raises(LockConfigError, match=wanted):
            with here.lock_all(["other", "list"]):
                pass
        if words.get("on_busy") is None:
            with pytest.raises(LockConfigError, match=r"is shared by .* this very thread holds it"):
                here.lock("list", **words).acquire()
        held.check()

    async def main() -> None:
        async with here.lock("list", shared=True):
            with pytest.raises(LockConfigError, match=wanted):
                async with here.lock("list", **words):
                    pass

    asyncio.run(main())


def test_a_wait_for_a_reader_that_waits_for_the_waiter_is_refused(here: Locks) -> None:
    def write() -> None:
        with here.lock("list"):
            pass

    # Another reader of this process: it is not the one to be found.
    other = here.lock("list", shared=True)
    other.acquire()
    with here.lock("list", shared=True), ThreadPoolExecutor(1) as pool:
        with pytest.raises(LockConfigError, match="the thread that holds it waits for this one"):
            pool.submit(write).result()
        # To share it needs no wait.
        pool.submit(lambda: here.lock("list", shared=True).acquire()).result(TIMEOUT)
    other.release()


def test_it_decorates_functions_generators_and_coroutines(here: Locks) -> None:
    def sharing() -> int:
        return len(here.show_shared("list"))

    @here.locked("list", shared=True)
    def read() -> int:
        """Doc."""
        return sharing()

    @here.locked("list", shared=True)
    async def aread() -> int:
        return sharing()

    @here.locked("list", shared=True)
    def lines() -> Iterator[int]:
        yield sharing()

    @here.locked("list {n}", shared=True, on_busy="skip")
    def skipped(n: int) -> int:
        return len(here.show_shared(f"list {n}"))

    assert (read(), read.__doc__, asyncio.run(aread()), list(lines())) == (1, "Doc.", 1, [1])
    busy = here.lock("list", shared=True)
    busy.acquire()
    assert (read(), asyncio.run(aread()), list(lines())) == (2, 2, [2])
    busy.release()
    assert skipped(7) == 1
    writer = here.lock("list 7")
    writer.acquire()
    assert skipped(7) is None
    writer.release()


def test_a_downgrade_lets_readers_in_and_no_writer_in_between(locks: Locks) -> None:
    got: list[int | None] = []

    def write() -> None:
        with locks.lock("list", timeout=60) as held:
            got.append(held.token)

    with locks.lock("list", locked_by="me", lock_ttl=30) as held, ThreadPoolExecutor(1) as pool:
        token, ticket = held.token, held.ticket
        held.downgrade()
        assert held.shared and held.holder == "me" and held.token and token
        assert held.token > token and held.ticket != ticket and 5 < held.remaining() <= 30
        held.check()
        held.extend(60)
        reader = locks.lock("list", shared=True)
        in_thread(reader.acquire)
        with locks.lock("list", shared=True) as inner:
            assert inner is held
        writer = pool.submit(write)
        time.sleep(0.3)
        assert got == []
        with pytest.raises(LockConfigError, match="is shared by this hold already"):
            held.downgrade()
        reader.release()
        held.release()
        writer.result(TIMEOUT)
    assert got[0] is not None and got[0] > held.token

    async def main() -> None:
        async with locks.lock("list") as held:
            await held.adowngrade()
            assert held.shared
            await held.acheck()
        assert not await locks.ais_locked("list")

    asyncio.run(main())


def test_a_loss_after_a_downgrade_is_reported_as_before(locks: Locks) -> None:
    with pytest.raises(LockLost) as caught, locks.lock("list", lock_ttl=6) as held:
        held.downgrade()
        locks.lose("list")
        time.sleep(TIMEOUT)
    assert (caught.value.name, caught.value.reason) == ("list", "forced")
    assert caught.value.token == held.token and held.lost
    lost = threading.Event()
    with locks.lock("list", lost_lock_cb=lambda *_: lost.set()) as held:
        held.downgrade()
        locks.force_release_shared("list")
        assert lost.wait(TIMEOUT)

    async def main() -> None:
        async with locks.lock("list") as held:
            await held.adowngrade()
            locks.lose("list")
            await asyncio.sleep(TIMEOUT)

    with pytest.raises(LockLost):
        asyncio.run(main())


def test_a_downgrade_of_a_lost_lock_raises_the_loss(locks: Locks) -> None:
    """It has not noticed it yet, and another client may have had the lock since."""
    one = locks.lock("list")
    held = one.acquire()
    locks.force_release("list")
    with pytest.raises(LockLost) as caught:
        held.downgrade()
    assert caught.value.reason == "forced" and held.lost and not held.shared
    with pytest.raises(LockLost):
        one.release()
    assert locks.show_shared("list") == []


def test_a_downgrade_that_makes_no_sense_is_refused(here: Locks) -> None:
    with here.lock_all(["a", "b"]) as held:
        with pytest.raises(LockConfigError, match="locks that are held together cannot be shared"):
            held.downgrade()
    with here.semaphore("a", 2) as held:
        with pytest.raises(LockConfigError, match="a permit of a semaphore cannot be shared"):
            held.downgrade()
    with here.lock("a") as outer:
        with here.lock("a") as inner:
            with pytest.raises(LockConfigError, match="is held by an outer block too"):
                inner.downgrade()
        outer.downgrade()
    with pytest.raises(Exception, match="is not held any more"):
        outer.downgrade()


def test_a_downgrade_of_an_object_ends_with_its_release(locks: Locks) -> None:
    one = locks.lock("list")
    held = one.acquire()
    held.downgrade()
    with pytest.raises(LockTimeout, match="is shared by"):
        in_thread(locks.lock("list", on_busy="raise").acquire)
    in_thread(one.release)
    with locks.lock("list", timeout=TIMEOUT):
        pass


def test_readers_that_are_released_by_force_are_lost_in_their_blocks(locks: Locks) -> None:
    with pytest.raises(LockLost) as caught:
        with locks.lock("list", shared=True, lock_ttl=6, locked_by="me") as held:
            with pytest.raises(LockConfigError, match="`list` is shared by 1 holder: release"):
                locks.force_release("list")
            freed = locks.force_release_shared("list")
            assert [holder for holder, _ in freed] == ["me"]
            until = time.monotonic() + TIMEOUT
            while time.monotonic() < until:
                time.sleep(0.01)
    assert (caught.value.name, caught.value.reason) == ("list", "forced")
    assert held.lost and caught.value.token == held.token
    assert locks.force_release_shared("list") == [] and locks.force_release("list") is None


def test_a_reader_is_renewed_for_as_long_as_its_block_runs(locks: Locks) -> None:
    with locks.lock("list", shared=True, lock_ttl=4) as held:
        time.sleep(5)
        held.check()
        with pytest.raises(LockTimeout):
            in_thread(locks.lock("list", on_busy="raise", retry=0).acquire)


def test_a_ticket_of_a_reader_is_resumed_as_a_shared_hold(locks: Locks) -> None:
    with locks.lock("list", shared=True) as held:
        ticket = held.hand_over()
    with locks.lock("list", shared=True) as around:
        with locks.lock(ticket=ticket) as resumed:
            assert resumed is not around and resumed.shared
            assert (resumed.name, resumed.token) == ("list", held.token)
            with locks.lock("list", shared=True) as inner:
                assert inner is resumed
        # The outer one goes on, and nests again.
        with locks.lock("list", shared=True) as inner:
            assert inner is around
    assert not locks.is_locked("list")
    with pytest.raises(LockLost), locks.lock(ticket=ticket):
        pass


def test_an_explicit_holder_takes_no_shared_hold_over(locks: Locks) -> None:
    """Unlike an exclusive hold, which another client with the same ``locked_by`` takes over."""
    with locks.lock("list", shared=True, locked_by="web") as held:
        other = locks.lock("list", shared=True, locked_by="web")
        in_thread(other.acquire)
        assert [row["holder"] for row in locks.show_shared("list")] == ["web", "web"]
        other.release()
        with pytest.raises(LockTimeout, match="is shared by web"):
            in_thread(locks.lock("list", locked_by="web", timeout=3).acquire)
        held.check()
    with locks.lock("list", locked_by="web") as held:
        with pytest.raises(LockTimeout, match="is held by web"):
            in_thread(locks.lock("list", locked_by="web", shared=True, timeout=3).acquire)
        held.check()


def test_a_writer_outlasts_a_reader_that_is_killed(
    shared_url: str, hold: Callable[..., Holder]
) -> None:
    killed = hold("python", shared_url)
    killed.hold("list", ttl=5, shared=True)
    locks = connect(shared_url)
    with pytest.raises(LockTimeout, match="is shared by"):
        locks.lock("list", on_busy="raise").acquire()
    killed.kill()
    with locks.lock("list", timeout=TIMEOUT) as held:
        held.check()
    assert locks.show_shared("list") == []


def test_a_reader_that_was_frozen_has_lost_the_lock_when_it_thaws(
    shared_url: str, hold: Callable[..., Holder]
) -> None:
    frozen, other = hold("python", shared_url), hold("python", shared_url)
    frozen.hold("list", ttl=2, shared=True)
    other.hold("list", ttl=4, shared=True)
    frozen.freeze()
    locks = connect(shared_url)
    writer = locks.lock("list", timeout=TIMEOUT)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(writer.acquire)
        time.sleep(5)
        # The other one has renewed.
        assert not waiting.done() and other.is_held()
        other.release()
        held = waiting.result(TIMEOUT)
    frozen.thaw()
    assert frozen.expect("lost") in ("expired", "unreachable")
    held.check()
    writer.release()


def test_a_reader_that_was_frozen_writes_nothing_behind_its_fence(postgres_url: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    locks, stranger = connect(postgres_url), connect(postgres_url)
    with psycopg.connect(postgres_url) as connection, connection.cursor() as cursor:
        with locks.lock("list", shared=True) as held:
            with held.fence(cursor):
                cursor.execute("SELECT 1")
                # As long as the fence is open, no writer is in.
                with pytest.raises(LockTimeout, match="is shared by"):
                    in_thread(stranger.lock("list", timeout=3).acquire)
                connection.commit()
            with pytest.raises(LockLost):
                stranger.force_release_shared("list")
                with held.fence(cursor):
                    raise AssertionError("the fence has passed")
            connection.rollback()
            with pytest.raises(LockLost):
                held.release()


@pytest.mark.parametrize(
    "words", [{"at_least": 1}, {"once_per": 60}, {"ticket": "1.0123456789abcdef0123456789abcdef.a"}]
)
def test_options_that_make_no_sense_for_readers_are_refused(words: dict[str, Any]) -> None:
    (word,) = words
    with pytest.raises(LockConfigError, match=f"`(shared|{word})` is given with a? ?`"):
        lock(None if "ticket" in words else "a", shared=True, **words)


def test_only_a_lock_can_be_shared(here: Locks) -> None:
    with pytest.raises(LockConfigError, match="`shared` is 1, must be True or False"):
        here.lock("a", shared=1)  # type: ignore[arg-type]
    for make in (
        lambda: here.semaphore("a", 1, shared=True),  # type: ignore[call-arg]
        lambda: here.lock_all(["a"], shared=True),  # type: ignore[call-arg]
        lambda: here.leader("a", shared=True),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match="shared"):
            make()


def test_a_lock_that_was_shared_is_refused_once_per_period(locks: Locks) -> None:
    with locks.lock("list", shared=True):
        pass
    with pytest.raises(
        LockConfigError, match="`once_per` is 1m 0s for `list`, which was shared before"
    ):
        with locks.lock("list", once_per=60):
            pass
    # What it had acquired before it knew is released in the background.
    eventually(lambda: not locks.is_locked("list"), "the release")
