"""Losses while the main thread is in a system call or in a query of a driver."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import Program, dblock

LOSING = str(Path(__file__).parent / "programs" / "lock_loss.py")
LOSING_DJANGO = str(Path(__file__).parent / "programs" / "lock_loss_django.py")
Start = Callable[[list[str]], Program]

SECONDS = 20.0
"""A renewal, each 1.3 s, finds that the lock is gone; the rest is for a busy machine."""


def lose(start: Start, url: str, where: str) -> float:
    """How long after the lock was taken from it the program says that it has lost it."""
    program = start([sys.executable, LOSING, url, where])
    program.expect("held")
    # Until it is really there: what comes before is a few bytecodes.
    program.silent(0.5)
    dblock("release", "job", "--force", url=url)
    began = time.monotonic()
    assert program.expect("lost") == "forced"
    took = time.monotonic() - began
    # The handlers that the program has set are still its own.
    assert program.expect("usr1") == ""
    program.expect("end")
    assert program.wait() == 0, program.stderr
    return took


WAITS = ["sleep", "event", "lock", "recv", "select", "pipe", "subprocess", "bytecode"]


@pytest.mark.parametrize("where", WAITS)
def test_a_loss_interrupts_system_calls_of_the_main_thread(
    sqlite_url: str, where: str, start: Start
) -> None:
    assert lose(start, sqlite_url, where) < SECONDS


def test_a_query_of_psycopg_3_is_interrupted(postgres_url: str, start: Start) -> None:
    assert lose(start, postgres_url, "psycopg3") < SECONDS


@pytest.mark.parametrize("engine", ["mariadb", "mysql"])
def test_a_query_of_pymysql_is_interrupted(
    engine: str, request: pytest.FixtureRequest, start: Start
) -> None:
    assert lose(start, request.getfixturevalue(f"{engine}_url"), "pymysql") < SECONDS


def test_a_loss_is_raised_when_a_query_of_psycopg2_ends(postgres_url: str, start: Start) -> None:
    assert lose(start, postgres_url, "psycopg2") < 8 + SECONDS


def test_a_loss_is_raised_when_a_query_of_mysqlclient_ends(mariadb_url: str, start: Start) -> None:
    assert lose(start, mariadb_url, "mysqlclient") < 8 + SECONDS


def lose_in_django(start: Start, url: str, driver: str, where: str) -> str:
    """What the application's next query answers after a loss in the middle of one."""
    program = start([sys.executable, LOSING_DJANGO, url, driver, where])
    program.expect("held")
    program.silent(0.5)
    dblock("release", "job", "--force", url=url)
    assert program.expect("lost") == "job"
    answer = program.expect("answer")
    assert program.wait() == 0, program.stderr
    return answer


@pytest.mark.parametrize("where", ["plain", "around", "inside", "swallowed"])
@pytest.mark.parametrize("driver", ["psycopg3", "pymysql"])
def test_a_connection_that_a_loss_interrupted_works_after_the_block(
    driver: str, where: str, request: pytest.FixtureRequest, start: Start
) -> None:
    engine = "postgres" if driver == "psycopg3" else "mariadb"
    url = request.getfixturevalue(f"{engine}_url")
    assert lose_in_django(start, url, driver, where) == "1"


@pytest.mark.parametrize("driver", ["psycopg2", "mysqlclient"])
def test_a_connection_works_after_a_loss_that_arrives_when_its_query_ends(
    driver: str, request: pytest.FixtureRequest, start: Start
) -> None:
    engine = "postgres" if driver == "psycopg2" else "mysql"
    url = request.getfixturevalue(f"{engine}_url")
    assert lose_in_django(start, url, driver, "plain") == "1"


def test_a_connection_works_after_a_loss_in_another_thread(mariadb_url: str, start: Start) -> None:
    assert lose_in_django(start, mariadb_url, "mysqlclient", "thread") == "1"
