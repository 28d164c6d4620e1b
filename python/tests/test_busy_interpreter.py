"""Renewal without the GIL; the number of threads and connections of many locks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import Program, eventually, sql, threads_of

GIL = str(Path(__file__).parent / "programs" / "busy_interpreter.py")
Start = Callable[[list[str]], Program]

CONNECTIONS = {
    "postgres": "SELECT COUNT(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT COUNT(*) FROM information_schema.processlist"
    " WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}


def test_a_lock_of_5_seconds_outlives_15_of_python_that_keeps_the_gil(
    shared_url: str, start: Start
) -> None:
    program = start([sys.executable, GIL, shared_url, "starve", "15"])
    token = program.expect("held")
    seen: set[object] = set()
    renewed = "SELECT token, renewed_at, expires_at FROM database_locks_lock WHERE name = 'job'"

    def renewals() -> int:
        [(now, at, until)] = sql(shared_url, renewed)
        assert str(now) == token
        assert until is not None
        seen.add(at)
        return len(seen)

    # The first one is the grant. What the program says cannot come before its 15 seconds are over.
    eventually(lambda: renewals() >= 6, "five renewals", within=14.5)
    assert float(program.expect("took")) >= 14.9
    program.expect("lost False")
    assert float(program.expect("remaining")) > 0
    program.expect("released")


@pytest.mark.parametrize("engine", ["postgres", "mariadb"])
def test_200_locks_need_no_more_threads_and_connections_than_one(
    engine: str, request: pytest.FixtureRequest, start: Start
) -> None:
    url: str = request.getfixturevalue(f"{engine}_url")
    connections = CONNECTIONS[url.partition(":")[0]]
    eventually(lambda: sql(url, connections) == [(0,)], "no other connection is open")

    def cost(count: int) -> tuple[int, int]:
        program = start([sys.executable, GIL, url, "many", str(count)])
        program.expect("held")
        # Longer than the ttl, so that all of them have been renewed.
        program.silent(7)
        cost = sql(url, connections)[0][0], threads_of(program.pid)
        held = "SELECT COUNT(*) FROM database_locks_lock WHERE expires_at IS NOT NULL"
        assert sql(url, held) == [(count,)]
        program.send("release")
        program.expect("released")
        assert program.wait() == 0
        eventually(lambda: sql(url, connections) == [(0,)], "it disconnects")
        return cost

    of_one, of_200 = cost(1), cost(200)
    assert of_200 == of_one
    assert of_one[0] == 2
