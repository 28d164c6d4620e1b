"""``at_least`` and ``once_per``: how far apart the grants of a lock are."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from database_locks import LockAlreadyRan, LockConfigError, Locks, LockTimeout, connect, lock


def state(locks: Locks, name: str) -> str:
    found = locks.show(name)
    assert found is not None
    return str(found["state"])


def test_a_lock_rests_after_its_block(url: str) -> None:
    locks, other = connect(url), connect(url)
    locks.migrate()
    with locks.lock("job", at_least=600, locked_by="me"):
        assert state(locks, "job") == "held"
    assert state(locks, "job") == "resting"
    assert not locks.is_locked("job")
    with other.lock("job").try_() as held:
        assert held is None
    with pytest.raises(LockTimeout) as caught, other.lock("job", timeout=3):
        pass
    error = caught.value
    assert error.rests_for is not None and 500 < error.rests_for < 600
    assert (error.holder, error.held_for) == ("me", None)
    assert " rests for another " in str(error) and str(error).endswith(" after me")
    # The same holder does not end the rest.
    began = time.monotonic()
    with locks.lock("short", at_least=2.5, locked_by="me"):
        pass
    with other.lock("short", timeout=60, locked_by="me"):
        assert time.monotonic() - began > 2.4
    assert state(locks, "short") == "free"


def test_a_lock_rests_after_an_exception_and_a_ticket_releases_at_once(url: str) -> None:
    locks = connect(url)
    locks.migrate()
    with pytest.raises(ZeroDivisionError), locks.lock("job", at_least=timedelta(minutes=10)):
        raise ZeroDivisionError
    assert state(locks, "job") == "resting"
    assert [row["name"] for row in locks.list(free=False)] == ["job"]
    freed = locks.force_release("job")
    assert freed is not None and freed[1] is None
    assert state(locks, "job") == "free"
    ticket = locks.lock("job", at_least=600).acquire().hand_over()
    with locks.lock(ticket=ticket):
        pass
    assert state(locks, "job") == "free"


def test_a_lock_is_granted_once_in_a_period(url: str) -> None:
    locks, other = connect(url), connect(url)
    locks.migrate()
    with locks.lock("job", once_per=50, locked_by="first"):
        # While it is held too, and without a wait.
        with (
            pytest.raises(LockAlreadyRan) as caught,
            other.lock("job", once_per=50, timeout=60),
        ):
            pass
    assert isinstance(caught.value, LockTimeout)
    for once in ({"on_busy": "raise"}, {"retry": 0}, {"timeout": 5}):
        options: dict[str, Any] = once
        with pytest.raises(LockAlreadyRan) as caught, other.lock("job", once_per=50, **options):
            pass
    error = caught.value
    assert (error.name, error.holder, error.once_per) == ("job", "first", 50.0)
    assert error.ago is not None and 0 <= error.ago < 50
    assert "`job` was granted to first " in str(error)
    assert str(error).endswith("s ago, and is granted once per 50s")
    with other.lock("job", once_per=50).try_() as held:
        assert held is None
    with locks.lock("soon", once_per=2):
        pass
    time.sleep(2)
    with other.lock("soon", once_per=timedelta(seconds=2)):
        pass


def test_of_threads_that_start_together_one_runs_a_decorated_function(url: str) -> None:
    locks = connect(url)
    locks.migrate()
    runs = []

    @locks.locked("hourly", once_per=3600, at_least=50, on_busy="skip")
    def hourly() -> str:
        runs.append(threading.get_ident())
        return "done"

    answers: list[str | None] = []
    threads = [threading.Thread(target=lambda: answers.append(hourly())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert sorted(answers, key=str) == [None, None, None, "done"]
    assert state(locks, "hourly") == "resting"


def test_a_task_and_an_object_are_refused_too(memory_url: str) -> None:
    locks = connect(memory_url)
    locks.lock("job", once_per=60).acquire().release()
    with pytest.raises(LockAlreadyRan):
        locks.lock("job", once_per=60).acquire()

    async def in_a_task() -> None:
        async with locks.lock("job", once_per=60):
            pass

    with pytest.raises(LockAlreadyRan):
        asyncio.run(in_a_task())


def test_a_block_within_one_of_the_same_lock_belongs_to_it(memory_url: str) -> None:
    locks = connect(memory_url)
    with locks.lock("job", once_per=60) as outer, locks.lock("job", once_per=60) as inner:
        assert inner is outer


def test_the_exception_can_be_pickled(memory_url: str) -> None:
    locks = connect(memory_url)
    locks.lock("job").acquire().release()
    with pytest.raises(LockAlreadyRan) as caught, locks.lock("job", once_per=60):
        pass
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert (copy.ago, copy.once_per) == (caught.value.ago, 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_least": -1}, "`at_least` is -1, must be a number of seconds from 0 to"),
        ({"at_least": 1e12}, "`at_least` is 1000000000000.0, must be"),
        ({"at_least": None}, "`at_least` is None, must be"),
        ({"once_per": 0}, "`once_per` is 0, must be a number of seconds from 0.1 to"),
        ({"once_per": "1h"}, "`once_per` is '1h', must be"),
        ({"once_per": True}, "`once_per` is True, must be"),
        ({"once_per": 60, "ticket": "x"}, "`once_per` is given with a `ticket`"),
        ({"at_least": 60, "ticket": "x"}, "`at_least` is given with a `ticket`"),
    ],
)
def test_a_value_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LockConfigError) as caught:
        lock(**options)
    assert message in str(caught.value) or "ticket" in options
    assert type(caught.value) is LockConfigError


def test_the_argument_of_another_library_is_answered_with_this_one() -> None:
    with pytest.raises(TypeError, match="once_per=…"):
        lock("job", period=60)  # type: ignore[call-arg]
