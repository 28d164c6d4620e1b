"""A lost lock: how the body learns of it, and that no later code is interrupted."""

from __future__ import annotations

import asyncio
import logging
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from database_locks import LockLost, Locks, connect
from support import TIMEOUT, eventually, in_thread, sql


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


def lose_after(locks: Locks, seconds: float, name: str = "job") -> threading.Timer:
    timer = threading.Timer(seconds, locks.lose, [name])
    timer.start()
    return timer


def test_a_main_thread_asleep_is_woken_by_the_loss(here: Locks) -> None:
    began = time.monotonic()
    with pytest.raises(LockLost) as caught, here.lock("job") as held:
        lose_after(here, 0.1)
        time.sleep(60)
    assert time.monotonic() - began < 30
    assert (caught.value.name, caught.value.reason) == ("job", "forced")
    # The lock is free.
    assert (caught.value.holder, caught.value.holder_token) == (None, None)
    assert caught.value.token == held.token
    assert held.lost


FORGET = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1])
with file:
    file.execute("UPDATE database_locks_lock SET token = token - 1")
"""


REFUSE = [
    """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN RAISE EXCEPTION 'closed for today'; END $$""",
    """CREATE TRIGGER refuse BEFORE UPDATE ON database_locks_lock FOR EACH ROW
       WHEN (NEW.name = 'job') EXECUTE FUNCTION refuse()""",
]
ALLOW = ["DROP TRIGGER refuse ON database_locks_lock", "DROP FUNCTION refuse"]


def test_a_grant_that_the_database_forgot_is_lost_to_a_failover(sqlite_url: str) -> None:
    """Its row is as a server has it that took another's place and lacks its last commits."""
    path = sqlite_url.removeprefix("sqlite://")
    with pytest.raises(LockLost) as caught, connect(sqlite_url).lock("job", lock_ttl=6):
        # In a process of its own: two copies of SQLite in one cancel each other's file locks.
        subprocess.run([sys.executable, "-c", FORGET, path], check=True)
        time.sleep(60)
    assert caught.value.reason == "failover"
    assert caught.value.detail is not None
    assert ": the database forgot the grant (failover)" in caught.value.detail
    assert caught.value.detail in str(caught.value)


def test_a_loss_says_since_when_and_who_has_the_lock_now(sqlite_url: str) -> None:
    """By a check, and at a renewal: what the core's answer showed, in the core's words."""
    here, there = connect(sqlite_url), connect(sqlite_url)
    for lock_ttl, check in ((300, True), (24, False)):
        began = time.monotonic()
        with pytest.raises(LockLost) as caught, here.lock("job", lock_ttl=lock_ttl) as held:
            assert here.force_release("job")
            taking = there.lock("job", locked_by="the thief", lock_ttl=60)
            thief = taking.__enter__()
            if check:
                held.check()
            time.sleep(60)
        lost = caught.value
        assert (lost.reason, lost.holder) == ("preempted", "the thief")
        assert lost.holder_token == thief.token
        assert lost.token == held.token
        assert lost.held_for is not None
        assert 0 <= lost.held_for <= time.monotonic() - began
        message = str(lost)
        assert message.startswith("lost lock, terminating: `job` lost ")
        assert " after " in message
        assert ": preempted by another holder (now held by the thief for " in message
        assert message.endswith(f", token {thief.token})")
        again = pickle.loads(pickle.dumps(lost))
        assert (type(again), str(again), vars(again)) == (LockLost, message, vars(lost))
        taking.__exit__(None, None, None)


def test_a_database_that_refuses_renewals_is_named_as_the_reason(postgres_url: str) -> None:
    """One name of two, so that the other lock of this process goes on."""
    locks = connect(postgres_url)
    # Both are renewed every two seconds.
    with locks.lock("spared", lock_ttl=20, lock_ttl_renew=18) as spared:
        with pytest.raises(LockLost) as caught, locks.lock("job", lock_ttl=6):
            for statement in REFUSE:
                sql(postgres_url, statement)
            time.sleep(30)
        lost = caught.value
        for statement in ALLOW:
            sql(postgres_url, statement)
        assert not spared.lost
        spared.check()
    assert lost.reason == "refused"
    assert lost.last_answer is not None
    assert "closed for today" in lost.last_answer
    assert "closed for today" in str(lost)
    # Its own grant is not said to be the new holder.
    assert (lost.holder, lost.holder_token) == (None, None)
    assert "now held by" not in str(lost)
    again = pickle.loads(pickle.dumps(lost))
    assert vars(again) == vars(lost)


def test_a_loss_is_raised_in_another_thread_at_its_next_bytecode(here: Locks) -> None:
    def work() -> None:
        with here.lock("job"):
            lose_after(here, 0.1)
            until = time.monotonic() + 20
            while time.monotonic() < until:
                pass

    began = time.monotonic()
    with pytest.raises(LockLost) as caught:
        in_thread(work)
    assert time.monotonic() - began < 10
    assert caught.value.reason == "forced"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_loss_interrupts_a_wait_for_another_lock(here: Locks) -> None:
    def work() -> None:
        with here.lock("outer"):
            lose_after(here, 0.1, "outer")
            with here.lock("inner"):
                pytest.fail("got a lock that another holder has")

    with here.lock("inner"), pytest.raises(LockLost) as caught:
        in_thread(work)
    assert caught.value.name == "outer"


def test_a_loss_cancels_a_task(here: Locks) -> None:
    async def work() -> None:
        async with here.lock("job"):
            asyncio.get_running_loop().call_later(0.1, here.lose, "job")
            await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(LockLost):
        asyncio.run(work())
    assert time.monotonic() - began < 30


def test_a_task_can_go_on_after_a_loss(here: Locks) -> None:
    async def work() -> str:
        try:
            async with here.lock("job"):
                asyncio.get_running_loop().call_later(0.1, here.lose, "job")
                await asyncio.sleep(60)
        except LockLost:
            await asyncio.sleep(0.1)
            return "went on"
        return "was not notified"

    assert asyncio.run(work()) == "went on"


def test_a_task_that_the_application_cancels_stays_cancelled(here: Locks) -> None:
    async def work(held: asyncio.Event) -> None:
        async with here.lock("job"):
            held.set()
            await asyncio.sleep(60)

    async def main() -> None:
        held = asyncio.Event()
        task = asyncio.ensure_future(work(held))
        await held.wait()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert here.show("job")["state"] == "free"  # type: ignore[index]


def test_a_callback_is_called_like_a_signal_handler(here: Locks) -> None:
    calls: list[tuple[Any, ...]] = []
    with here.lock("job", lost_lock_cb=lambda *args: calls.append(args)) as held:
        lose_after(here, 0.1)
        until = time.monotonic() + 10
        while not calls and time.monotonic() < until:
            time.sleep(0.05)
        assert held.lost
    ((signum, frame),) = calls
    assert isinstance(signum, int)
    assert frame is not None


def test_an_exception_of_the_callback_arrives_in_the_block(here: Locks) -> None:
    def callback(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), here.lock("job", lost_lock_cb=callback):
        lose_after(here, 0.1)
        time.sleep(60)


def test_a_callback_is_called_for_a_block_in_another_thread(here: Locks) -> None:
    called = threading.Event()

    def work() -> None:
        with here.lock("job", lost_lock_cb=lambda *_: called.set()):
            here.lose("job")
            assert called.wait(10)

    in_thread(work)


def test_a_loss_found_at_the_end_of_the_block_is_raised_there(here: Locks) -> None:
    with pytest.raises(LockLost), here.lock("job"):
        here.force_release("job")
    with pytest.raises(ZeroDivisionError), here.lock("job"):
        here.force_release("job")
        raise ZeroDivisionError


def test_an_exception_of_the_body_is_not_replaced_by_the_loss(here: Locks, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="mine"):
        with here.lock("job"):
            here.force_release("job")
            raise ValueError("mine")
    assert "`job`" in caplog.text


def test_no_loss_is_raised_after_its_block(here: Locks) -> None:
    """Losses that race with the end of the block, in the main thread and in another."""

    def work() -> None:
        for i in range(150):
            timer = threading.Timer(0.002 * (i % 5) / 4, here.lose, ["job"])
            timer.start()
            try:
                with here.lock("job", timeout=10):
                    time.sleep(0.001)
            except LockLost:
                pass
            # Here it would arrive if it came too late, or in the middle of the join.
            timer.join()
            time.sleep(0.001)

    work()
    in_thread(work)


def test_signal_handlers_of_the_application_are_kept(here: Locks) -> None:
    numbers = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
    seen: list[int] = []
    mine = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM}
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in mine:
            signal.signal(number, lambda number, _: seen.append(number))
        expected = {number: signal.getsignal(number) for number in numbers}
        with here.lock("job") as held:
            signal.raise_signal(signal.SIGUSR1)
            changed = {n for n in numbers if signal.getsignal(n) != expected[n]}
            assert all(n >= signal.SIGRTMIN for n in changed)
            assert len(changed) <= 1
            assert not held.lost
        with pytest.raises(LockLost), here.lock("job"):
            lose_after(here, 0.05)
            time.sleep(60)
        signal.raise_signal(signal.SIGUSR1)
        assert seen == [signal.SIGUSR1] * 2
        assert {n for n in mine if signal.getsignal(n) != expected[n]} == set()
    finally:
        for number in mine:
            signal.signal(number, before[number])


def test_two_lost_locks_each_raise_in_their_own_block(here: Locks) -> None:
    names = []
    with pytest.raises(LockLost) as outer, here.lock("a"):
        try:
            with here.lock("b"):
                lose_after(here, 0.05, "b")
                time.sleep(60)
        except LockLost as inner:
            names.append(inner.name)
        lose_after(here, 0.05, "a")
        time.sleep(60)
    assert [*names, outer.value.name] == ["b", "a"]


def test_a_loss_of_a_paused_generator_interrupts_no_other_code(here: Locks) -> None:
    @here.locked("job")
    def numbers() -> Any:
        yield 1
        yield 2

    steps = numbers()
    assert next(steps) == 1
    here.lose("job")
    time.sleep(0.5)  # where a loss that is not for this code would arrive
    with pytest.raises(LockLost):
        next(steps)


def test_check_raises_the_loss_at_once_and_the_end_of_the_block_again(here: Locks) -> None:
    with pytest.raises(LockLost) as at_the_end:
        with here.lock("job") as held:
            here.force_release("job")
            with pytest.raises(LockLost) as caught:
                held.check()
            assert caught.value.reason == "forced"
            time.sleep(0.3)  # where a second one would arrive
    assert (at_the_end.value.name, at_the_end.value.token) == ("job", held.token)


def swallow_the_loss(locks: Locks) -> None:
    """A body that catches each item's exceptions, and loses its lock in one of them."""
    try:
        lose_after(locks, 0.05)
        until = time.monotonic() + TIMEOUT
        while time.monotonic() < until:
            time.sleep(0.02)
    except Exception:  # noqa: BLE001 - as the body of an application does
        return
    pytest.fail("no loss was raised")


def test_a_loss_that_the_body_swallows_is_raised_at_the_end_of_the_block(here: Locks) -> None:
    """In the main thread, which a signal tells, and in another one."""

    def work() -> None:
        with pytest.raises(LockLost) as caught, here.lock("job") as held:
            swallow_the_loss(here)
            time.sleep(0.3)  # where a second one would arrive
        assert (caught.value.name, caught.value.token) == ("job", held.token)
        assert caught.value.reason == "forced"

    work()
    in_thread(work)


def test_a_loss_that_a_task_swallows_is_raised_at_the_end_of_the_block(here: Locks) -> None:
    async def work() -> str:
        with pytest.raises(LockLost, match="job"):
            async with here.lock("job"):
                asyncio.get_running_loop().call_later(0.05, here.lose, "job")
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
        # It counts as cancelled no more.
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await asyncio.sleep(0.01)
        return "went on"

    assert asyncio.run(work()) == "went on"


def test_with_a_callback_no_loss_is_raised_at_the_end_of_the_block(here: Locks) -> None:
    calls: list[Any] = []
    with here.lock("job", lost_lock_cb=lambda *args: calls.append(args)):
        lose_after(here, 0.05)
        eventually(lambda: calls, "the callback is called")
        time.sleep(0.3)  # where a second call would come
    assert len(calls) == 1


def test_an_exception_of_the_body_takes_precedence_over_a_swallowed_loss(here: Locks) -> None:
    with pytest.raises(ValueError, match="mine"), here.lock("job"):
        swallow_the_loss(here)
        raise ValueError("mine")


def test_a_loss_names_its_own_lock_and_not_an_inner_one(here: Locks) -> None:
    """Arriving in the middle of an inner acquire, release, check or extension."""
    delays = random.Random(5)
    message = set()

    def work(rounds: int) -> None:
        for i in range(rounds):
            try:
                with here.lock("ledger", timeout=10, lock_ttl=60) as outer:
                    lose_after(here, delays.random() * 0.01, "ledger")
                    while True:
                        with here.lock("item", timeout=10, lock_ttl=60) as item:
                            if i % 3 == 1:
                                item.check()
                            elif i % 3 == 2:
                                item.extend(60)
            except LockLost as lost:
                message.add((lost.name, lost.token == outer.token))

    work(60)
    in_thread(lambda: work(30))
    assert message == {("ledger", True)}

    def none_is_held() -> bool:
        # An acquire that the loss interrupted is undone in the background.
        here.drain()
        return not [row["name"] for row in here.list() if row["state"] == "held"]

    eventually(none_is_held, "all are released")


@contextmanager
def signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_loss_is_raised_in_a_main_thread_with_blocked_signals(here: Locks) -> None:
    """Threads that are started meanwhile have them blocked as well."""
    began = time.monotonic()
    with signals_blocked(), pytest.raises(LockLost) as caught, here.lock("job"):
        lose_after(here, 0.1)
        while time.monotonic() - began < 20:
            time.sleep(0.05)
    assert time.monotonic() - began < 10
    assert caught.value.reason == "forced"


def test_a_callback_is_called_in_a_main_thread_with_signals_blocked(here: Locks) -> None:
    calls: list[threading.Thread] = []
    with signals_blocked():
        callback = lambda *_: calls.append(threading.current_thread())  # noqa: E731
        with here.lock("job", lost_lock_cb=callback):
            lose_after(here, 0.1)
            until = time.monotonic() + 10
            while not calls and time.monotonic() < until:
                time.sleep(0.05)
            # And not at the end of the block.
            assert calls == [threading.main_thread()]
