"""Leader election: `leader` in threads and tasks, and observers."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio

from database_locks import LockConfigError, LockLost, Locks, Term, connect
from support import ROOT, Program, environment, eventually


@pytest.fixture
def locks(url: str) -> Locks:
    return connect(url)


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


def until_lost() -> None:
    """Raises `LockLost` in the middle."""
    for _ in range(600):
        time.sleep(0.05)
    pytest.fail("not interrupted")


def test_the_result_of_the_function_ends_the_leadership(locks: Locks) -> None:
    leader = locks.leader("job", lock_ttl=10, locked_by="me")
    assert leader.current() is None

    def lead(term: Term) -> str:
        assert term.is_leader
        shown = leader.current()
        assert shown is not None
        assert (shown["holder"], shown["token"]) == ("me", term.token)
        term.held.check()
        return "done"

    assert leader.run(lead) == "done"
    assert leader.current() is None


def test_an_exception_of_the_function_ends_the_leadership(here: Locks) -> None:
    leader = here.leader("job")

    def fail(term: Term) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leader.run(fail)
    assert leader.current() is None

    def lose_another(term: Term) -> None:
        with here.lock("other"):
            here.lose("other")
            until_lost()

    with pytest.raises(LockLost, match="other"):
        leader.run(lose_another)
    assert leader.current() is None


def test_a_loss_is_raised_in_the_function_and_the_next_term_calls_it_again(locks: Locks) -> None:
    terms: list[Term] = []

    def lead(term: Term) -> None:
        terms.append(term)
        if len(terms) == 1:
            locks.lose("job")
            until_lost()

    locks.leader("job").run(lead)
    first, second = terms
    assert first.token is not None
    assert second.token is not None
    assert first.token < second.token
    assert not first.is_leader
    assert not second.is_leader


def test_a_function_that_hides_the_loss_is_called_again(here: Locks) -> None:
    calls: list[int] = []

    def lead(term: Term) -> int:
        calls.append(1)
        if len(calls) == 1:
            here.lose("job")
            with pytest.raises(LockLost):
                until_lost()
        return len(calls)

    assert here.leader("job").run(lead) == 2


def test_one_leads_at_a_time_and_one_that_resigns_is_followed_by_another(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The others have this long to follow: more than a thread of a busy machine stands still.
    monkeypatch.setattr("database_locks._leader._SHORTEST_PAUSE", 4.0)
    inside: list[str] = []
    terms: list[tuple[str, int]] = []
    stop = threading.Event()

    def candidate(name: str) -> None:
        def lead(term: Term) -> None:
            inside.append(name)
            assert inside == [name]
            terms.append((name, term.token or 0))
            until = time.monotonic() + 0.3
            while term.is_leader and time.monotonic() < until:
                time.sleep(0.01)
            inside.remove(name)
            if not stop.is_set():
                term.resign()
                assert not term.is_leader

        connect(url).leader("job", locked_by=name, retry=0.1).run(lead)

    with ThreadPoolExecutor(3) as pool:
        threads = [pool.submit(candidate, name) for name in ("a", "b", "c")]
        try:
            eventually(lambda: len(dict(terms)) == 3 and len(terms) >= 5, "each leads", 60)
        finally:
            stop.set()
        for thread in threads:
            thread.result(60)
    tokens = [token for _, token in terms]
    assert tokens == sorted(set(tokens))
    # One that has resigned lets another one lead.
    before_stop = [name for name, _ in terms[:5]]
    assert all(one != other for one, other in itertools.pairwise(before_stop)), terms


def test_a_task_leads_as_a_thread_does(locks: Locks) -> None:
    terms: list[int | None] = []

    async def lead(term: Term) -> str:
        terms.append(term.token)
        if len(terms) == 1:
            locks.lose("job")
            await asyncio.sleep(30)
        if len(terms) == 2:
            term.resign()
        return "done"

    async def main() -> None:
        began = time.monotonic()
        assert await locks.leader("job", retry=0.1).arun(lead) == "done"
        assert time.monotonic() - began >= 1.0
        assert await locks.leader("job").acurrent() is None

    asyncio.run(main())
    assert len(terms) == 3


def test_a_cancelled_task_leads_no_more(here: Locks) -> None:
    async def lead(term: Term) -> None:
        await asyncio.sleep(30)

    async def main() -> None:
        leader = here.leader("job")
        task = asyncio.create_task(leader.arun(lead))
        while await leader.acurrent() is None:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await leader.acurrent() is None

    asyncio.run(main())


def test_a_task_of_trio_leads(here: Locks) -> None:
    calls: list[int] = []

    async def lead(term: Term) -> int:
        calls.append(1)
        if len(calls) == 1:
            term.resign()
        await trio.sleep(0.01)
        return len(calls)

    async def main() -> None:
        assert await here.leader("job", retry=0.1).arun(lead) == 2

    trio.run(main)


def test_an_observer_sees_each_leader(locks: Locks, url: str) -> None:
    seen: list[str | None] = []

    def observe() -> None:
        for shown in connect(url).leader("job").observe():
            seen.append(shown and shown["holder"])
            if seen.count(None) == 2 and len(seen) >= 3:
                return

    with ThreadPoolExecutor(1) as pool:
        observer = pool.submit(observe)
        eventually(lambda: seen == [None], "no leader")
        leader = locks.leader("job", locked_by="a")
        leader.run(lambda term: eventually(lambda: seen[1:], "it is seen"))
        observer.result(30)
    assert seen == [None, "a", None]


def test_a_task_observes(here: Locks) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []
        async with here.lock("job", locked_by="a"):
            async for shown in here.leader("job").observe():
                seen.append(shown and shown["holder"])
                if shown is None:
                    return seen
                here.lose("job")
        return seen

    async def lost() -> None:
        # The block of the lock raises its loss at the end.
        with pytest.raises(LockLost):
            await main()

    asyncio.run(lost())


def test_wrong_arguments_are_refused_at_once(here: Locks) -> None:
    for wrong, message in [
        ({"name": ""}, "`name` is empty"),
        ({"name": "job", "retry": 0}, "`retry` is 0, must be a number of seconds, at least 0.001"),
        ({"name": "job", "lock_ttl": 0}, "`lock_ttl` is 0"),
        ({"name": "job", "meta": 3}, "`meta` is 3"),
    ]:
        with pytest.raises(LockConfigError, match=message):
            here.leader(**wrong)  # type: ignore[arg-type]

    async def lead(term: Term) -> None: ...

    with pytest.raises(LockConfigError, match=r"use `await leader\(…\)\.arun\(…\)`"):
        here.leader("job").run(lead)


def test_the_recipe_for_apscheduler_runs_jobs_in_one_process(
    sqlite_url: str, tmp_path: Path
) -> None:
    """As it is printed in the guide. The first process is killed, and the second one stopped."""
    page = (ROOT / "docs" / "leader.md").read_text(encoding="utf-8")
    recipe = page.partition("## APScheduler")[2].partition("```python\n")[2].partition("```")[0]
    env = environment(DATABASE_LOCKS_URL=sqlite_url)

    def start() -> Program:
        # Not in the folder of the sources, which `-c` would import.
        return Program([sys.executable, "-c", recipe], env=env, cwd=tmp_path)

    first = start()
    assert first.expect("tick from ") == str(first.pid)
    second = start()
    second.silent(2)
    first.signal(signal.SIGKILL)
    assert second.expect("tick from ") == str(second.pid)
    third = start()
    # Ctrl-C ends the function, and with it the leadership: not when the lease ends.
    second.signal(signal.SIGINT)
    second.wait()
    row = connect(sqlite_url).show("apscheduler")
    assert row is not None
    assert row["state"] != "held" or row["metadata"]["pid"] != second.pid
    assert third.expect("tick from ") == str(third.pid)
    for process in (first, second, third):
        process.close()
