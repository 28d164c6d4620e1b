"""A rolling upgrade: legacy (django-database-locks 0.5) and this package on one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from database_locks import LockUnavailable, connect
from support import (
    Holder,
    LegacyHolder,
    Program,
    Servers,
    connect_and_migrate,
    eventually,
    sql,
    tool,
)

CURRENT = ["python", "dblock", "rust"]
Hold = Callable[[str, str], Holder]


@pytest.fixture(scope="module", params=["postgres", "mariadb", "mysql"])
def legacy_and_url(
    request: pytest.FixtureRequest, shared_servers: Servers
) -> Iterator[tuple[LegacyHolder, str]]:
    """Legacy on the table that its own migration made, upgraded by this package since."""
    url = getattr(shared_servers, request.param).database()
    legacy = LegacyHolder(url)
    legacy.migrate()
    connect_and_migrate(url)
    yield legacy, url
    legacy.close()


@pytest.fixture
def url(legacy_and_url: tuple[LegacyHolder, str]) -> str:
    _, url = legacy_and_url
    sql(url, "DELETE FROM database_locks_lock")
    return url


@pytest.fixture
def legacy(legacy_and_url: tuple[LegacyHolder, str], url: str) -> LegacyHolder:
    return legacy_and_url[0]


@pytest.mark.parametrize("kind", CURRENT)
def test_a_waiter_gets_the_lock_after_the_release_of_legacy(
    legacy: LegacyHolder, url: str, kind: str, hold: Hold
) -> None:
    current = hold(kind, url)
    legacy.hold("job", auto_renew=True)
    current.begin("job")
    current.silent(1.5)
    assert legacy.is_held()
    legacy.release()
    current.expect_held()
    current.release()


@pytest.mark.parametrize("kind", CURRENT)
def test_a_waiter_of_legacy_gets_the_lock_after_a_release(
    legacy: LegacyHolder, url: str, kind: str, hold: Hold
) -> None:
    current = hold(kind, url)
    current.hold("job")
    legacy.begin("job")
    legacy.silent(1.5)
    current.release()
    legacy.expect_held()
    legacy.release()


@pytest.mark.parametrize("kind", CURRENT)
def test_a_waiter_takes_over_from_killed_legacy_only_after_its_lease(
    url: str, kind: str, hold: Hold
) -> None:
    killed, current = hold("legacy", url), hold(kind, url)
    # Its ttl counts from a moment after this one.
    taken = time.monotonic()
    killed.hold("job", ttl=4)
    killed.kill()
    current.begin("job")
    current.expect_held()
    assert time.monotonic() - taken > 3.5
    current.release()


@pytest.mark.parametrize("kind", CURRENT)
def test_a_waiter_of_legacy_takes_over_from_a_killed_holder(
    legacy: LegacyHolder, url: str, kind: str, hold: Hold
) -> None:
    current = hold(kind, url)
    taken = time.monotonic()
    current.hold("job", ttl=4)
    current.kill()
    legacy.begin("job")
    legacy.expect_held()
    assert time.monotonic() - taken > 3.5
    legacy.release()


@pytest.mark.parametrize("kind", CURRENT)
def test_a_lease_is_renewed_while_legacy_polls(
    legacy: LegacyHolder, url: str, kind: str, hold: Hold
) -> None:
    current = hold(kind, url)
    current.hold("job", ttl=4)
    legacy.begin("job", retry=0.05)
    legacy.silent(6)
    if kind != "dblock":
        assert current.is_held()
    current.release()
    legacy.expect_held()
    legacy.release()


def test_the_lease_of_legacy_is_renewed_while_a_client_waits(
    legacy: LegacyHolder, url: str, hold: Hold
) -> None:
    current = hold("python", url)
    legacy.hold("job", ttl=6, lock_ttl_renew=4, auto_renew=True)
    current.begin("job")
    current.silent(8)
    assert legacy.is_held()
    legacy.release()
    current.expect_held()
    current.release()


def test_a_holder_notices_that_legacy_has_its_lock(
    legacy: LegacyHolder, url: str, hold: Hold
) -> None:
    current = hold("python", url)
    current.hold("job", ttl=2)
    current.freeze()
    legacy.begin("job")
    legacy.expect_held()
    current.thaw()
    assert current.expect("lost") in {"expired", "preempted", "unreachable"}
    assert legacy.is_held()
    legacy.release()


def test_many_processes_of_both_versions_exclude_each_other(
    url: str, hold: Hold, tmp_path: Path
) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    rounds = 25
    holders = [hold(kind, url) for kind in ("legacy", "legacy", "python", "python")]
    rust = Program([tool("test-holder"), "count", url, "job", str(rounds), str(number), "locked"])
    try:
        rust.expect("ready")
        rust.send("go")
        for one in holders:
            one.count("job", rounds, number)
        for one in holders:
            one.expect("counted", within=120)
        rust.expect("done", within=120)
    finally:
        rust.close()
    assert number.read_text() == str(rounds * 5)


def test_a_lock_that_legacy_holds_or_has_died_with_is_not_shared(url: str, hold: Hold) -> None:
    """Legacy would not see who shares it. After its release the row does not show it any more."""
    locks, legacy = connect(url), hold("legacy", url)
    wanted = r"shared lock `job`: .* 0\.5 holds it, or did last"
    legacy.hold("job", ttl=2)
    with pytest.raises(LockUnavailable, match=wanted):
        locks.lock("job", shared=True, timeout=30).acquire()
    legacy.kill()
    time.sleep(2.5)
    with pytest.raises(LockUnavailable, match=wanted):
        locks.lock("job", shared=True, timeout=30).acquire()
    # A holder of this version in between shows that legacy has gone.
    with locks.lock("job", timeout=30):
        pass
    with locks.lock("job", shared=True, timeout=30) as held:
        assert held.shared


@pytest.mark.parametrize("engine", ["postgres", "mariadb", "mysql"])
def test_the_table_of_legacy_is_upgraded_while_legacy_writes(
    engine: str, fresh_database: Callable[[str], str], hold: Callable[..., LegacyHolder]
) -> None:
    url = fresh_database(engine)
    contending, holding = hold("legacy", url), hold("legacy", url)
    contending.migrate()
    holding.hold("held before", ttl=5, lock_ttl_renew=4, auto_renew=True)
    contending.contend("contended")

    connect_and_migrate(url)

    # It still renews what it held, and still makes rows of new names in the table that has more
    # columns now: otherwise the contender would have failed.
    waiting = hold("python", url)
    waiting.begin("held before")
    waiting.silent(6)
    assert holding.is_held()
    rows = "SELECT COUNT(*) FROM database_locks_lock"
    now = sql(url, rows)
    eventually(lambda: sql(url, rows) > now, "legacy makes new rows")
    assert contending.stop_contending() > 1
    holding.release()
    waiting.expect_held()
    waiting.release()


@pytest.mark.parametrize("kind", CURRENT)
def test_names_used_by_legacy_get_growing_tokens(
    legacy: LegacyHolder, url: str, kind: str, hold: Hold
) -> None:
    """A row of legacy has no token; the first grant after it begins at the clock."""
    legacy.hold("job")
    legacy.release()
    before = sql(url, "SELECT token FROM database_locks_lock WHERE name = 'job'")
    assert before == [(0,)]
    tokens = []
    for _ in range(2):
        current = hold(kind, url)
        current.begin("job")
        tokens.append(int(current.expect_held()))
        current.release()
        legacy.hold("job")
        legacy.release()
    assert tokens[0] > 1_700_000_000_000
    assert tokens[1] > tokens[0]
