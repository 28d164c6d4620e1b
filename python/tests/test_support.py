"""The test support itself: servers and child processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support import Holder, Servers, eventually, sql

LOCK = "SELECT name, locked_by FROM database_locks_lock"


def test_every_test_begins_with_an_empty_table(shared_url: str) -> None:
    assert sql(shared_url, LOCK) == []
    sql(shared_url, "INSERT INTO database_locks_lock (name) VALUES (%s)", "left behind")


@pytest.mark.parametrize("kind", ["dblock", "rust"])
def test_a_holder_holds_and_releases(
    shared_url: str, kind: str, hold: Callable[..., Holder]
) -> None:
    first, second = hold(kind, shared_url), hold(kind, shared_url)
    first.hold("a lock")
    [(_, holder)] = sql(shared_url, LOCK)
    assert holder
    second.begin("a lock")
    second.silent(0.5)
    first.release()
    second.expect_held()
    second.kill()


def test_a_frozen_server_answers_when_it_is_thawed(
    servers: Servers, server_url: str, hold: Callable[..., Holder]
) -> None:
    with servers.of(server_url).frozen():
        waiter = hold("rust", server_url)
        waiter.begin("a lock")
        waiter.silent(1)
    waiter.expect_held()


def test_a_stopped_server_is_mended(servers: Servers, server_url: str) -> None:
    servers.of(server_url).stop()
    with pytest.raises(Exception, match="onnect"):
        sql(server_url, LOCK)
    servers.mend()
    assert sql(server_url, LOCK) == []


def test_a_proxy_counts_and_cuts(
    servers: Servers, server_url: str, hold: Callable[..., Holder]
) -> None:
    proxy = servers.proxy(server_url)
    holder = hold("rust", proxy.url)
    holder.hold("a lock")
    first = proxy.counts()["connections"]
    assert first > 0
    proxy.cut()
    eventually(lambda: proxy.counts()["connections"] > first, "it connects again")
    assert holder.is_held()


def test_the_old_holder_runs_legacy(server_url: str, hold: Callable[..., Holder]) -> None:
    old = hold("legacy", server_url)
    old.hold("a lock")
    [(name, _)] = sql(server_url, LOCK)
    assert name == "a lock"
    assert old.is_held()
    old.release()
