"""A rolling upgrade: legacy (django-database-locks 0.5) and this package on one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import Holder, OldHolder, Program, Servers, connect_and_migrate, eventually, sql, tool

OURS = ["ours", "dblock", "rust"]
Hold = Callable[[str, str], Holder]


@pytest.fixture(scope="module", params=["postgres", "mariadb", "mysql"])
def old_and_url(
    request: pytest.FixtureRequest, shared_servers: Servers
) -> Iterator[tuple[OldHolder, str]]:
    """0.5 on the table that its own migration made, and that ours has upgraded since."""
    url = getattr(shared_servers, request.param).database()
    old = OldHolder(url)
    old.migrate()
    connect_and_migrate(url)
    yield old, url
    old.close()


@pytest.fixture
def url(old_and_url: tuple[OldHolder, str]) -> str:
    _, url = old_and_url
    sql(url, "DELETE FROM database_locks_lock")
    return url


@pytest.fixture
def old(old_and_url: tuple[OldHolder, str], url: str) -> OldHolder:
    return old_and_url[0]


@pytest.mark.parametrize("kind", OURS)
def test_our_waiter_gets_the_lock_after_the_release_of_legacy(
    old: OldHolder, url: str, kind: str, hold: Hold
) -> None:
    ours = hold(kind, url)
    old.hold("job", auto_renew=True)
    ours.begin("job")
    ours.silent(1.5)
    assert old.is_held()
    old.release()
    ours.expect_held()
    ours.release()


@pytest.mark.parametrize("kind", OURS)
def test_a_waiter_of_legacy_gets_the_lock_after_our_release(
    old: OldHolder, url: str, kind: str, hold: Hold
) -> None:
    ours = hold(kind, url)
    ours.hold("job")
    old.begin("job")
    old.silent(1.5)
    ours.release()
    old.expect_held()
    old.release()


@pytest.mark.parametrize("kind", OURS)
def test_our_waiter_takes_over_from_killed_legacy_only_after_its_lease(
    url: str, kind: str, hold: Hold
) -> None:
    killed, ours = hold("old", url), hold(kind, url)
    killed.hold("job", ttl=4)
    taken = time.monotonic()
    killed.kill()
    ours.begin("job")
    ours.expect_held()
    # Its ttl counts from a moment before we were told.
    assert time.monotonic() - taken > 3
    ours.release()


@pytest.mark.parametrize("kind", OURS)
def test_a_waiter_of_legacy_takes_over_from_our_killed_holder(
    old: OldHolder, url: str, kind: str, hold: Hold
) -> None:
    ours = hold(kind, url)
    taken = time.monotonic()
    ours.hold("job", ttl=4)
    ours.kill()
    old.begin("job")
    old.expect_held()
    assert time.monotonic() - taken > 3.5
    old.release()


@pytest.mark.parametrize("kind", OURS)
def test_our_lease_is_renewed_while_legacy_polls(
    old: OldHolder, url: str, kind: str, hold: Hold
) -> None:
    ours = hold(kind, url)
    ours.hold("job", ttl=2)
    old.begin("job", retry=0.05)
    old.silent(6)
    if kind != "dblock":
        assert ours.is_held()
    ours.release()
    old.expect_held()
    old.release()


def test_the_lease_of_legacy_is_renewed_while_ours_waits(
    old: OldHolder, url: str, hold: Hold
) -> None:
    ours = hold("ours", url)
    old.hold("job", ttl=3, lock_ttl_renew=2, auto_renew=True)
    ours.begin("job")
    ours.silent(6)
    assert old.is_held()
    old.release()
    ours.expect_held()
    ours.release()


def test_our_holder_notices_that_legacy_has_its_lock(old: OldHolder, url: str, hold: Hold) -> None:
    ours = hold("ours", url)
    ours.hold("job", ttl=2)
    ours.freeze()
    old.begin("job")
    old.expect_held()
    ours.thaw()
    assert ours.expect("lost") in {"expired", "preempted"}
    assert old.is_held()
    old.release()


def test_many_processes_of_both_versions_exclude_each_other(
    url: str, hold: Hold, tmp_path: Path
) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    rounds = 25
    crowd = [hold(kind, url) for kind in ("old", "old", "ours", "ours")]
    rust = Program([tool("test-holder"), "count", url, "job", str(rounds), str(number), "locked"])
    try:
        rust.expect("ready")
        rust.tell("go")
        for one in crowd:
            one.count("job", rounds, number)
        for one in crowd:
            one.expect("counted", within=120)
        rust.expect("done", within=120)
    finally:
        rust.close()
    assert number.read_text() == str(rounds * 5)


@pytest.mark.parametrize("engine", ["postgres", "mariadb", "mysql"])
def test_the_table_of_legacy_is_upgraded_while_legacy_writes(
    engine: str, fresh_database: Callable[[str], str], hold: Callable[..., OldHolder]
) -> None:
    url = fresh_database(engine)
    storming, holding = hold("old", url), hold("old", url)
    storming.migrate()
    holding.hold("held before", ttl=5, lock_ttl_renew=4, auto_renew=True)
    storming.storm("storm")

    connect_and_migrate(url)

    # It still renews what it held, and still makes rows of new names in the table that has more
    # columns now: the storm has had an error otherwise.
    waiting = hold("ours", url)
    waiting.begin("held before")
    waiting.silent(6)
    assert holding.is_held()
    rows = "SELECT COUNT(*) FROM database_locks_lock"
    now = sql(url, rows)
    eventually(lambda: sql(url, rows) > now, "0.5 makes new rows")
    assert storming.calm() > 1
    holding.release()
    waiting.expect_held()
    waiting.release()


@pytest.mark.parametrize("kind", OURS)
def test_names_used_by_legacy_get_growing_tokens(
    old: OldHolder, url: str, kind: str, hold: Hold
) -> None:
    """A row of 0.5 has no token; the first grant of ours begins at the time."""
    old.hold("job")
    old.release()
    before = sql(url, "SELECT token FROM database_locks_lock WHERE name = 'job'")
    assert before == [(0,)]
    tokens = []
    for _ in range(2):
        ours = hold(kind, url)
        ours.begin("job")
        tokens.append(int(ours.expect_held()))
        ours.release()
        old.hold("job")
        old.release()
    assert tokens[0] > 1_700_000_000_000
    assert tokens[1] > tokens[0]
