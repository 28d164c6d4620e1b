"""The password function of `connect`, called at each connect."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from database_locks import LockConfigError, Locks, LockUnavailable, connect
from support import TIMEOUT, Rotating, eventually

pytestmark = pytest.mark.parametrize("engine", ["postgres", "mariadb"])


@pytest.fixture
def server(request: pytest.FixtureRequest, engine: str) -> str:
    """The URL of an empty table, as the superuser."""
    url: str = request.getfixturevalue(f"{engine}_url")
    return url


@pytest.fixture
def rotating(server: str) -> Iterator[Rotating]:
    one = Rotating(server)
    yield one
    one.mend()


def test_a_held_lock_reconnects_with_the_new_password(rotating: Rotating, name: str) -> None:
    rotating.change("first")
    secret = ["first"]
    asked: list[str] = []

    def password() -> str:
        asked.append(threading.current_thread().name)
        return secret[0]

    locks = connect(rotating.without, password=password)
    with locks.lock(name, timeout=TIMEOUT, lock_ttl=20, lock_ttl_renew=19.5) as held:
        before = len(asked)
        secret[0] = "second"
        rotating.change("second")
        # A renewal that was under way may still be done on the old connection.
        eventually(lambda: len(asked) > before, "it logs in again")
        rotating.is_renewed(name)
        assert not held.lost
    assert set(asked) == {"database-locks-login"}


def test_an_exception_of_the_password_function_is_the_cause_and_the_call_is_repeated(
    rotating: Rotating, name: str
) -> None:
    rotating.change("first")
    fails = threading.Event()
    fails.set()

    def password() -> str:
        if fails.is_set():
            raise RuntimeError("the token service is down")
        return "first"

    locks = connect(rotating.without, password=password)
    with pytest.raises(LockUnavailable, match="RuntimeError: the token service") as caught:
        locks.lock(name, timeout=3).__enter__()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.__cause__.__traceback__ is None
    threading.Timer(0.5, fails.clear).start()
    with locks.lock(name, timeout=TIMEOUT):
        pass


def test_a_bad_password_result_is_reported_without_its_value(
    server: str, name: str, engine: str
) -> None:
    without = Rotating(server).without
    with pytest.raises(LockUnavailable, match="returned bytes, must be a str") as caught:
        connect(without, password=lambda: b"hunter2").lock(name, timeout=3).__enter__()  # type: ignore[arg-type,return-value]
    assert "hunter2" not in str(caught.value)
    with pytest.raises(LockConfigError, match="of type str, must be a function") as refused:
        connect(without, password="hunter2")  # type: ignore[arg-type]
    assert "hunter2" not in str(refused.value)


def test_a_blocking_password_function_delays_neither_python_nor_renewals(
    server: str, name: str, engine: str
) -> None:
    go = threading.Event()

    def password() -> str:
        go.wait(60)
        return ""

    with connect(server).lock(name, timeout=TIMEOUT, lock_ttl=4) as held:
        slow = connect(server, password=password)
        before = time.monotonic()
        with pytest.raises(LockUnavailable):
            # Longer than the ttl.
            slow.lock("other", timeout=5).__enter__()
        assert time.monotonic() - before < 20
        assert not held.lost
    go.set()
    with slow.lock("other", timeout=TIMEOUT):
        pass


def test_the_scheme_of_a_url_is_case_insensitive(engine: str) -> None:
    scheme = "Postgres" if engine == "postgres" else "MariaDB"
    assert Locks(f" {scheme}://h/d\n").engine == ("postgres" if engine == "postgres" else "mysql")
