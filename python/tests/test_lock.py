"""`lock`: acquire, wait, nesting, and its arguments."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import database_locks
from database_locks import (
    LockConfigError,
    LockException,
    LockLost,
    Locks,
    LockTimeout,
    LockUnavailable,
    connect,
)
from support import in_thread


@pytest.fixture
def locks(url: str) -> Locks:
    return connect(url)


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


def test_a_lock_is_held_in_its_block_and_free_after_it(locks: Locks) -> None:
    other = locks
    with locks.lock("job") as held:
        assert held.token is not None
        assert not held.lost
        assert 0 < held.remaining() <= 10
        held.check()
        with pytest.raises(LockTimeout):
            in_thread(lambda: other.lock("job", retry=0).__enter__())
    assert locks.show("job")["state"] == "free"  # type: ignore[index]


def test_an_exception_frees_the_lock_and_goes_on(locks: Locks) -> None:
    with pytest.raises(ZeroDivisionError), locks.lock("job"):
        1 / 0  # noqa: B018
    assert locks.show("job")["state"] == "free"  # type: ignore[index]


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_ends_the_block_frees_the_lock(here: Locks, ends: type[BaseException]) -> None:
    with pytest.raises(ends), here.lock("job"):
        raise ends
    assert here.show("job")["state"] == "free"  # type: ignore[index]


def test_fencing_tokens_grow(locks: Locks) -> None:
    tokens = []
    for _ in range(3):
        with locks.lock("job") as held:
            tokens.append(held.token)
    assert tokens == sorted(set(tokens))


def test_a_wait_times_out_and_names_the_holder(locks: Locks) -> None:
    with locks.lock("job", locked_by="the nightly run"):
        began = time.monotonic()
        with pytest.raises(LockTimeout) as caught:
            in_thread(lambda: locks.lock("job", timeout=2.5).__enter__())
        assert 2.4 < time.monotonic() - began < 20
    error = caught.value
    assert error.args == ("failed to acquire lock within timeout", 2.5)
    assert error.holder == "the nightly run"
    assert error.name == "job"
    assert str(error).startswith("failed to acquire lock within timeout of 2.5s: `job` is held by")


@pytest.mark.parametrize("retry", [0, None, timedelta(0)])
def test_without_retry_an_acquire_tries_once(here: Locks, retry: Any) -> None:
    with here.lock("job", locked_by="me"):
        with pytest.raises(LockTimeout) as caught:
            in_thread(lambda: here.lock("job", timeout=60, retry=retry).__enter__())
    assert caught.value.args == ("failed to acquire lock",)
    assert caught.value.holder == "me"


@pytest.mark.parametrize("timeout", [0, None])
def test_without_a_timeout_a_wait_has_no_limit(here: Locks, timeout: Any) -> None:
    got = threading.Event()

    def wait() -> None:
        with here.lock("job", timeout=timeout):
            got.set()

    with here.lock("job"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.3)
    assert got.wait(10)
    thread.join()


def test_on_busy_raise_tries_once(here: Locks) -> None:
    with here.lock("job"):
        began = time.monotonic()
        with pytest.raises(LockTimeout):
            in_thread(lambda: here.lock("job", on_busy="raise").__enter__())
        assert time.monotonic() - began < 20


def test_a_with_block_cannot_be_skipped(here: Locks) -> None:
    with (
        pytest.raises(LockConfigError, match="decorated functions"),
        here.lock("job", on_busy="skip"),
    ):
        pass


def test_only_the_outermost_block_of_a_thread_releases(here: Locks) -> None:
    with here.lock("job") as outer:
        with here.lock("job") as inner:
            assert inner is outer
        assert here.show("job")["state"] == "held"  # type: ignore[index]
        with pytest.raises(LockTimeout):
            in_thread(lambda: here.lock("job", retry=0).__enter__())
    assert here.show("job")["state"] == "free"  # type: ignore[index]


def test_one_object_may_be_entered_again_and_by_several_threads(here: Locks) -> None:
    job, order = here.lock("job", timeout=20), []

    def work() -> None:
        for _ in range(20):
            with job, job:
                order.append("in")
                order.append("out")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == ["in", "out"] * 80


def test_nesting_into_a_lost_lock_raises(here: Locks) -> None:
    calls: list[Any] = []
    with here.lock("job", lost_lock_cb=lambda *args: calls.append(args)) as held:
        here.lose("job")
        wait_until(lambda: held.lost)
        with pytest.raises(LockLost), here.lock("job"):
            pytest.fail("entered a lost lock")


def wait_until(done: Any) -> None:
    until = time.monotonic() + 10
    while not done():
        assert time.monotonic() < until, "nothing happened for ten seconds"
        time.sleep(0.01)


def test_a_bare_lock_has_the_name_of_the_function_around_it(here: Locks) -> None:
    class Job:
        def run(self) -> str:
            with here.lock() as held:
                return held.name

    own = f"{__name__}.test_a_bare_lock_has_the_name_of_the_function_around_it"
    assert Job().run() == f"{own}.<locals>.Job.run"
    with here.lock() as held:
        assert held.name == own


def test_a_bare_lock_outside_functions_is_refused(memory_url: str) -> None:
    program = f"from database_locks import connect\nwith connect({memory_url!r}).lock(): pass"
    with pytest.raises(LockConfigError, match="give it a name"):
        exec(program, {"__name__": "a_module"})


def test_a_ttl_of_none_is_without_end(locks: Locks) -> None:
    with locks.lock("job", lock_ttl=None) as held:
        assert held.remaining() == float("inf")
        assert locks.show("job")["expires_at"] is None  # type: ignore[index]


def test_durations_may_be_timedeltas(here: Locks) -> None:
    with here.lock(
        "job",
        timeout=timedelta(seconds=1),
        lock_ttl=timedelta(minutes=1),
        retry=timedelta(milliseconds=100),
        lock_ttl_renew=timedelta(seconds=10),
    ) as held:
        assert 50 < held.remaining() <= 60


def test_a_lease_is_renewed_while_the_block_runs(locks: Locks) -> None:
    with locks.lock("job", lock_ttl=4) as held:
        time.sleep(5)
        held.check()
        assert not held.lost


def test_extending_lengthens_the_lease(locks: Locks) -> None:
    with locks.lock("job", lock_ttl=10) as held:
        held.extend(60)
        assert held.remaining() > 40


def test_without_renewal_the_end_of_the_lease_is_a_loss(here: Locks) -> None:
    with pytest.raises(LockLost) as caught, here.lock("job", lock_ttl=0.5, auto_renew=False):
        time.sleep(10)
    assert caught.value.reason == "expired"


def test_a_lock_handed_over_outlives_its_block(here: Locks) -> None:
    with here.lock("job") as held:
        ticket = held.hand_over()
        assert ticket is not None
    assert here.show("job")["state"] == "held"  # type: ignore[index]


def test_a_ticket_resumes_the_lock(locks: Locks) -> None:
    with locks.lock("the job", lock_ttl=20) as held:
        token, ticket = held.token, held.hand_over()
    elsewhere = []

    def go_on() -> None:
        with locks.lock(ticket=ticket, lock_ttl=4) as taken_up:
            elsewhere.append((taken_up.name, taken_up.token))
            time.sleep(5)
            taken_up.check()

    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    assert elsewhere == [("the job", token)]
    with pytest.raises(LockLost, match="the job"), locks.lock(ticket=ticket):
        pytest.fail("taken up twice")
    with locks.lock("the job", retry=None):
        pass


def test_a_task_resumes_a_lock_that_a_thread_handed_over(here: Locks) -> None:
    with here.lock("job") as held:
        ticket = held.hand_over()

    async def go_on() -> None:
        async with here.lock("job", ticket=ticket) as held:
            assert held.remaining() > 5

    asyncio.run(go_on())
    assert here.show("job")["state"] == "free"  # type: ignore[index]


@pytest.mark.parametrize("ticket", ["", "job", "1.2.job", "0.0f3a9c5e7b2d46818f0a1c3e5d7b9f24.job"])
def test_an_invalid_ticket_is_refused_before_anything_is_sent(here: Locks, ticket: str) -> None:
    with pytest.raises(LockConfigError, match=r"TOKEN\.GRANT\.NAME"):
        here.lock(ticket=ticket)
    with pytest.raises(LockConfigError, match="'other', and the ticket is for 'job'"):
        here.lock("other", ticket="1.0f3a9c5e7b2d46818f0a1c3e5d7b9f24.job")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"lock_name": ""}, "1 to 255 characters"),
        ({"lock_name": "x" * 256}, "1 to 255 characters"),
        ({"lock_name": "a\0b"}, "NUL"),
        ({"lock_name": 7}, "must be a text"),
        ({"timeout": "5"}, "`timeout` is '5'"),
        ({"timeout": float("nan")}, "`timeout`"),
        ({"timeout": True}, "`timeout`"),
        ({"timeout": -1}, "`timeout` is -1, must be .* 0 or None: without limit"),
        ({"lock_ttl": 0}, "ten years"),
        ({"lock_ttl": 1e12}, "ten years"),
        ({"lock_ttl": -1}, "`lock_ttl` is -1"),
        ({"retry": -1}, "`retry`"),
        ({"lock_ttl_renew": -1}, "`lock_ttl_renew`"),
        ({"locked_by": ""}, "`locked_by` is empty, must be 1 to 255 characters"),
        ({"locked_by": 5}, "`locked_by` is 5, must be a text"),
        ({"locked_by": "x" * 256}, "`locked_by` is 256 characters long"),
        ({"locked_by": "\ud800"}, "surrogate"),
        ({"lock_name": "job \udfff"}, "`lock_name` .* character 4 is half of a surrogate"),
        ({"auto_renew": "no"}, "`auto_renew` is 'no', must be True or False"),
        ({"on_busy": "wiat"}, "wait, skip, raise"),
        ({"until": "comit"}, "exit, commit"),
        ({"lost_lock_cb": 5}, "callable"),
        ({"lost_lock_cb": lambda: None}, "must take two arguments"),
        ({"meta": {"a": object()}}, "JSON"),
        ({"meta": 5}, "`meta` is 5, must be a dict"),
        ({"meta": {"a": "x" * 5000}}, "`meta` is .* 4096 bytes"),
    ],
)
def test_a_value_out_of_range_is_refused_and_the_allowed_range_named(
    here: Locks, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(LockConfigError, match=message), here.lock(**{"lock_name": "job", **words}):
        pytest.fail("entered")
    assert here.list() == []


def test_lock_ttl_renew_makes_renewals_earlier_but_not_later(here: Locks) -> None:
    from database_locks._arguments import renew_every

    assert renew_every(30, 25) == 5
    assert renew_every(30, 2) == 10
    assert renew_every(2, 2) == pytest.approx(0.2)
    assert renew_every(None, 2) is None


def test_a_bad_url_is_refused_without_repeating_it() -> None:
    for url in ("hunter2", "postgres://u:hunter2@h:hunter2/", "redis://hunter2"):
        with pytest.raises(LockConfigError) as caught:
            connect(url)
        assert "hunter2" not in str(caught.value)


def test_the_fault_of_a_url_is_a_sentence() -> None:
    with pytest.raises(
        LockConfigError, match=r"^`url` has the unknown scheme `postgress:`; write "
    ):
        connect("postgress://db/app")


def test_an_unreachable_database_is_unavailable() -> None:
    locks = connect("postgres://u:hunter2@127.0.0.1:1/db")
    with pytest.raises(LockUnavailable) as caught, locks.lock("job", retry=0):
        pytest.fail("entered")
    assert "hunter2" not in str(caught.value)


def test_all_errors_are_lock_exceptions() -> None:
    for kind in (LockTimeout, LockLost, LockUnavailable, LockConfigError):
        assert issubclass(kind, LockException)
    assert issubclass(LockConfigError, ValueError)
    from database_locks import locks as old

    assert old.LockException is LockException


@pytest.mark.parametrize(
    "error",
    [
        LockTimeout("failed", 5.0, name="job", holder="me", held_for=1.5),
        LockLost(
            name="job",
            token=5,
            reason="preempted",
            detail="lost after 12s: preempted by another holder",
            held_for=12.0,
            holder="me",
            holder_token=7,
        ),
    ],
)
def test_errors_can_be_pickled(error: LockException) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_the_package_does_not_import_django(tmp_path: Path) -> None:
    program = "import database_locks, sys; sys.exit('django' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False).returncode == 0
    )
    assert database_locks.__version__.count(".") == 2


def test_the_end_of_the_process_releases_its_locks(sqlite_url: str, tmp_path: Path) -> None:
    program = (
        f"from database_locks import connect\nL = connect({sqlite_url!r})\n"
        "held = L.lock('job', lock_ttl=60).__enter__()\nassert not held.lost\ndel held\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert connect(sqlite_url).show("job")["state"] == "free"  # type: ignore[index]
