"""`lock_all`: several locks at once, as a program uses it."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from database_locks import (
    LockConfigError,
    LockLost,
    LockReleased,
    Locks,
    LockTimeout,
    connect,
    lock_all,
)
from support import TIMEOUT, eventually, in_thread


@pytest.fixture
def locks(url: str) -> Locks:
    return connect(url)


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


def states(locks: Locks, *names: str) -> list[str | None]:
    return [(locks.show(name) or {}).get("state") for name in names]


def test_all_are_held_in_the_block_and_free_after_it(locks: Locks) -> None:
    with locks.lock_all(["stock", "orders", "stock"], locked_by="me", meta={"why": "move"}) as held:
        assert list(held.tokens) == ["orders", "stock"]
        assert held.token is None and held.ticket is None and held.holder == "me"
        assert set(held.tickets) == {"orders", "stock"}
        assert not held.lost and 0 < held.remaining() <= 10
        held.check()
        held.extend(60)
        assert held.remaining() > 30
        for name, token in held.tokens.items():
            row = locks.show(name)
            assert row is not None and (row["token"], row["holder"]) == (token, "me")
            assert row["metadata"]["meta"] == {"why": "move"}
            with pytest.raises(LockTimeout) as caught:
                in_thread(lambda name=name: locks.lock(name, retry=0).__enter__())
            assert caught.value.name == name
    assert states(locks, "orders", "stock") == ["free", "free"]


def test_none_is_held_where_one_is_busy_and_the_error_names_that_one(locks: Locks) -> None:
    with locks.lock("busy", locked_by="the other"):
        for words in ({"timeout": 2}, {"on_busy": "raise"}, {"retry": 0}):

            def wait(words: Any = words) -> None:
                locks.lock_all(["a", "busy", "c"], **words).__enter__()

            with pytest.raises(LockTimeout) as caught:
                in_thread(wait)
            assert (caught.value.name, caught.value.holder) == ("busy", "the other")
            assert caught.value.in_this_process
        assert {*states(locks, "a", "c")} <= {None, "free"}


def test_try_gives_none_where_one_is_busy(here: Locks) -> None:
    def tried() -> bool:
        with here.lock_all(["a", "b"]).try_() as held:
            return held is None

    assert not tried()
    with here.lock("b"):
        assert in_thread(tried)


def test_threads_that_want_overlapping_sets_exclude_each_other(locks: Locks) -> None:
    inside: Counter[str] = Counter()
    faults: list[str] = []

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(4):
            names = chosen.sample("abcd", chosen.randint(2, 3))
            with locks.lock_all(names, timeout=60):
                for name in names:
                    inside[name] += 1
                    if inside[name] > 1:
                        faults.append(name)
                time.sleep(0.002)
                for name in names:
                    inside[name] -= 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT)
        assert not thread.is_alive()
    assert not faults


def test_one_that_is_lost_interrupts_the_block_and_frees_the_others_after_it(locks: Locks) -> None:
    with pytest.raises(LockLost) as caught:
        with locks.lock_all(["a", "b", "c"], lock_ttl=6) as held:
            locks.force_release("b")
            until = time.monotonic() + TIMEOUT
            while time.monotonic() < until:
                time.sleep(0.01)
    assert (caught.value.name, caught.value.reason) == ("b", "forced")
    assert caught.value.token == held.tokens["b"]
    assert held.lost
    assert states(locks, "a", "b", "c") == ["free", "free", "free"]


def test_a_loss_calls_the_callback_once(here: Locks) -> None:
    lost = threading.Event()
    calls: list[int] = []

    def callback(signum: int, frame: Any) -> None:
        calls.append(signum)
        lost.set()

    with here.lock_all(["a", "b"], lock_ttl=0.6, lost_lock_cb=callback) as held:
        here.force_release("a")
        here.force_release("b")
        eventually(lambda: held.lost, "the loss")
        assert lost.wait(TIMEOUT)
        time.sleep(0.3)
    assert len(calls) == 1


def test_one_of_the_locks_and_a_part_of_them_nest_in_the_block(here: Locks) -> None:
    with here.lock_all(["a", "b", "c"]) as held:
        with here.lock("b") as inner:
            assert inner.tokens["b"] == held.tokens["b"]
        with here.lock_all(["c", "a"]), here.lock_all(["a", "b", "c"]):
            pass
        assert states(here, "a", "b", "c") == ["held"] * 3
    assert states(here, "a", "b", "c") == ["free"] * 3


def test_a_lock_that_nests_in_the_block_has_its_own_token_and_releases_nothing(here: Locks) -> None:
    with here.lock_all(["a", "b", "c"]) as held:
        with here.lock("b") as inner:
            assert (inner.name, inner.token) == ("b", held.tokens["b"])
            assert inner.tokens == {"b": held.tokens["b"]}
            assert inner.ticket == held.tickets["b"]
            inner.check()
            inner.release()
            assert not inner.lost
            with here.lock("b") as innermost:
                assert innermost.token == inner.token
        with here.lock_all(["c", "a"]) as two:
            assert list(two.tokens) == ["a", "c"] and two.name == "a, c"
            with here.lock("c") as third:
                assert third.token == held.tokens["c"]
            two.release()
        assert states(here, "a", "b", "c") == ["held"] * 3
        held.check()
        inner = here.lock("b").__enter__()
        held.release()
        assert states(here, "a", "b", "c") == ["free"] * 3
        with pytest.raises(LockReleased, match="`b`: the lock is not held any more"):
            inner.check()
    # The outer block may also end first.
    outer, block = here.lock_all(["a", "b"]), here.lock("a")
    outer.__enter__()
    block.__enter__()
    outer.__exit__(None, None, None)
    assert states(here, "a", "b") == ["held"] * 2
    block.__exit__(None, None, None)
    assert states(here, "a", "b") == ["free"] * 2
    with here.lock("a") as again:
        assert again.token is not None


def test_a_task_nests_one_of_the_locks(here: Locks) -> None:
    async def work() -> None:
        async with here.lock_all(["a", "b"]) as held:
            async with here.lock("a") as inner:
                assert inner.token == held.tokens["a"]
                await inner.acheck()
                await inner.arelease()
            assert states(here, "a", "b") == ["held"] * 2

    asyncio.run(work())
    assert states(here, "a", "b") == ["free"] * 2


def test_a_loss_of_another_one_ends_the_nested_block(here: Locks) -> None:
    with pytest.raises(LockLost) as caught:
        with here.lock_all(["a", "b"], lock_ttl=6) as held, here.lock("a") as inner:
            here.force_release("b")
            until = time.monotonic() + TIMEOUT
            while time.monotonic() < until:
                time.sleep(0.01)
    assert (caught.value.name, caught.value.token) == ("b", held.tokens["b"])
    assert inner.lost


def test_a_set_of_which_the_thread_holds_a_part_already_is_refused_at_once(here: Locks) -> None:
    with here.lock("b"):
        with pytest.raises(LockConfigError, match="holds `b` already"):
            here.lock_all(["a", "b"]).__enter__()
        with pytest.raises(LockConfigError, match="holds `b` already"):
            here.lock_all(["b", "c"], timeout=1).acquire()
        with here.lock_all(["c", "d"]):
            with pytest.raises(LockConfigError, match="holds `b`, `c` already"):
                here.lock_all(["b", "c"]).__enter__()
    assert states(here, "b", "c", "d") == ["free"] * 3
    with here.lock_all(["a", "b"]):
        pass


def test_a_set_of_which_a_waiting_thread_holds_a_part_is_refused(here: Locks) -> None:
    """The thread that holds the lock waits for the one that wants the set."""

    def inner() -> None:
        here.lock_all(["a", "b"]).__enter__()

    with ThreadPoolExecutor() as pool, here.lock("b"):
        with pytest.raises(LockConfigError, match="lock `b` is held by"):
            pool.submit(inner).result()


def test_tasks_wait_without_stopping_the_loop(locks: Locks) -> None:
    order: list[int] = []

    async def work(n: int) -> None:
        names = ["left", "right"] if n % 2 else ["right", "left"]
        async with locks.lock_all(names, timeout=30) as held:
            order.append(n)
            await asyncio.sleep(0.01)
            await held.acheck()
            assert order[-1] == n, "alone"

    async def main() -> None:
        await asyncio.gather(*(work(n) for n in range(6)))

    asyncio.run(main())
    assert sorted(order) == list(range(6))
    assert states(locks, "left", "right") == ["free", "free"]


def test_it_decorates_functions(here: Locks) -> None:
    @here.lock_all(["a", "{literal}"])
    def work(n: int) -> tuple[int, list[str | None]]:
        return n, states(here, "a", "{literal}")

    assert work(3) == (3, ["held", "held"])

    @here.lock_all(["a", "b"])
    async def task() -> list[str | None]:
        return states(here, "a", "b")

    assert asyncio.run(task()) == ["held", "held"]

    @here.lock_all(["a", "b"], on_busy="skip")
    def skipped() -> str:
        return "ran"

    assert skipped() == "ran"
    with here.lock("b"):
        assert in_thread(skipped) is None


def test_an_object_acquires_and_releases(here: Locks) -> None:
    both = here.lock_all(["a", "b"])
    held = both.acquire()
    assert states(here, "a", "b") == ["held", "held"]
    with pytest.raises(LockConfigError, match="handed over"):
        held.hand_over()
    both.release()
    assert states(here, "a", "b") == ["free", "free"]


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_ends_the_block_frees_them_all(here: Locks, ends: type[BaseException]) -> None:
    with pytest.raises(ends), here.lock_all(["a", "b"]):
        raise ends
    assert states(here, "a", "b") == ["free", "free"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "`lock_names` is empty, must be 1 to 100 names of locks"),
        ("job", "`lock_names` is 'job', must be a list of names"),
        (None, "`lock_names` is None, must be a list of names"),
        (["a", ""], "`lock_names` is empty, must be 1 to 255 characters"),
        (["a", 7], "`lock_names` is 7, must be a text"),
    ],
)
def test_bad_names_are_refused_at_once(names: Any, said: str) -> None:
    with pytest.raises(LockConfigError) as caught:
        lock_all(names)
    assert str(caught.value).startswith(said)


def test_too_many_names_are_refused(here: Locks) -> None:
    with pytest.raises(LockConfigError, match="a list of 101, must be 1 to 100 names"):
        here.lock_all(str(n) for n in range(101)).__enter__()


def test_a_fence_over_all_refuses_a_holder_that_lost_one(postgres_url: str) -> None:
    import psycopg

    locks = connect(postgres_url)
    with psycopg.connect(postgres_url.partition("?")[0]) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS written (by text)")
        connection.commit()
        with locks.lock_all(["x", "y"], lost_lock_cb=lambda signum, frame: None) as held:
            with connection.cursor() as cursor, held.fence(cursor):
                cursor.execute("INSERT INTO written VALUES ('first')")
                connection.commit()
            locks.force_release("y")
            with pytest.raises(LockLost) as caught:
                with connection.cursor() as cursor, held.fence(cursor):
                    cursor.execute("INSERT INTO written VALUES ('second')")
                    connection.commit()
            connection.rollback()
            assert caught.value.name == "y"
        assert connection.execute("SELECT by FROM written").fetchall() == [("first",)]
