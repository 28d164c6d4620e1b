"""Guarded tables, written to by programs that know nothing of locks, and by late holders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from database_locks import LockConfigError, LockTimeout, LockUnavailable, _core, connect
from support import TIMEOUT, Program, dblock, environment, sql, tool

#: Connects, waits for the file `go`, and writes.
PROGRAM = """
import os, pathlib, sys, time
import psycopg
with psycopg.connect(sys.argv[1]) as connection:
    pathlib.Path("begun").touch()
    while len(sys.argv) > 2 and not os.path.exists("go"):
        time.sleep(0.02)
    connection.execute("UPDATE invoices SET amount = amount + 1")
"""


@pytest.fixture
def guarded_url(postgres_url: str) -> str:
    sql(postgres_url, "DROP TABLE IF EXISTS invoices")
    sql(postgres_url, "CREATE TABLE invoices (amount int)")
    sql(postgres_url, "INSERT INTO invoices VALUES (10)")
    connect(postgres_url).guard_table("invoices", "ledger")
    return postgres_url


def _run(url: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [tool("dblock"), "run", *words],
        cwd=folder, env=environment(DATABASE_LOCKS_URL=url), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _total(url: str) -> int:
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT sum(amount) FROM invoices").fetchone()
    assert row is not None
    return int(row[0])


def test_a_program_on_psycopg_writes_under_the_lock(guarded_url: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, guarded_url]
    with _run(guarded_url, tmp_path, "ledger", "--", *program) as refused:
        _, error = refused.communicate(timeout=TIMEOUT)
    assert refused.returncode == 1
    assert 'is guarded by lock "ledger", held by' in error
    with _run(guarded_url, tmp_path, "--pgoptions", "ledger", "--", *program) as done:
        _, error = done.communicate(timeout=TIMEOUT)
    assert (done.returncode, error) == (0, "")
    assert _total(guarded_url) == 11


def test_the_late_write_of_a_frozen_program_is_refused(guarded_url: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, guarded_url, "wait"]
    options = ["--pgoptions", "--ttl", "2s", "--grace", "500ms", "--on-lost", "ignore"]
    with _run(guarded_url, tmp_path, *options, "ledger", "--", *program) as frozen:
        until = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            # Another client gets the lock, and keeps it.
            dblock("acquire", "--wait", "30s", "ledger", url=guarded_url)
            (tmp_path / "go").touch()
            assert frozen.stderr is not None
            lines = iter(frozen.stderr.readline, "")
            assert any('is guarded by lock "ledger"' in line for line in lines)
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        frozen.communicate(timeout=60)
    assert _total(guarded_url) == 10


@pytest.fixture
def guarded_server_url(server_url: str) -> Iterator[str]:
    """The same on each server."""
    sql(server_url, "DROP TABLE IF EXISTS invoices")
    sql(server_url, "CREATE TABLE invoices (amount int)")
    sql(server_url, "INSERT INTO invoices VALUES (10)")
    connect(server_url).guard_table("invoices", "ledger")
    yield server_url
    sql(server_url, "DROP TABLE invoices")


def _holder(url: str, start: Callable[..., Program], ttl: int) -> Program:
    """A process that holds the lock and has begun a transaction; it writes when it gets a line."""
    program = Path(__file__).with_name("programs") / "guarded_writer.py"
    holder = start([sys.executable, str(program), url, str(ttl)])
    holder.expect("held")
    return holder


def _writes(holder: Program) -> dict[str, str]:
    holder.send("go")
    lines = [holder.expect("").partition(" ") for _ in range(3)]
    return {way: what for way, _, what in lines}


def test_the_holder_writes_in_each_way(
    guarded_server_url: str, start: Callable[..., Program]
) -> None:
    wrote = _writes(_holder(guarded_server_url, start, ttl=30))
    # What is shown by `shown` is rolled back.
    assert wrote == {"shown": "wrote", "fence": "wrote", "atomic": "wrote"}
    assert sql(guarded_server_url, "SELECT amount FROM invoices") == [(12,)]


def test_no_late_write_of_a_frozen_holder_is_done(
    guarded_server_url: str, start: Callable[..., Program]
) -> None:
    holder = _holder(guarded_server_url, start, ttl=2)
    holder.freeze()
    # Another client gets the lock, and keeps it.
    dblock("acquire", "--wait", "30s", "ledger", url=guarded_server_url)
    holder.thaw()
    wrote = _writes(holder)
    # The guard refuses what was begun in time. The fences find that the lock is lost.
    assert 'is guarded by lock "ledger"' in wrote["shown"], wrote
    assert wrote["fence"].startswith("LockLost: "), wrote
    assert wrote["atomic"].startswith("LockLost: "), wrote
    assert sql(guarded_server_url, "SELECT amount FROM invoices") == [(10,)]


def test_who_is_kept_out_by_a_transaction_that_hangs_is_told_its_session(guarded_url: str) -> None:
    import psycopg

    locks = connect(guarded_url)
    dblock("acquire", "--ttl", "1s", "ledger", url=guarded_url)
    with psycopg.connect(guarded_url) as hangs:
        hangs.execute("SELECT id FROM database_locks_lock WHERE name = 'ledger' FOR UPDATE")
        time.sleep(1.5)
        session = f"the session of pid {hangs.info.backend_pid} "
        with pytest.raises(LockTimeout, match=session) as caught, locks.lock("ledger", timeout=3):
            pass
        assert session in str(caught.value.row_locker)
        with pytest.raises(LockUnavailable, match=session):
            locks.force_release("ledger")
    with locks.lock("ledger", timeout=TIMEOUT):
        pass


def test_locks_guard_tables(guarded_url: str) -> None:
    locks = connect(guarded_url)
    locks.guard_table("invoices", "ledger")
    assert locks.guarded_tables() == [
        {"table": "invoices", "lock": "ledger", "intact": True, "gaps": [], "bypasses": []}
    ]
    with pytest.raises(LockUnavailable, match='guarded by the lock "ledger" already'):
        locks.guard_table("invoices", "bank")
    with pytest.raises(LockUnavailable, match="there is no table nothing"):
        locks.guard_table("nothing", "bank")
    assert locks.unguard_table("invoices")
    assert not locks.unguard_table("invoices")


def test_engines_without_guards_say_why(sqlite_url: str) -> None:
    for url in (sqlite_url, "memory:"):
        locks = connect(url)
        with pytest.raises(LockUnavailable, match="no trigger of a table can read them"):
            locks.guard_table("invoices", "ledger")
        assert locks.guarded_tables() == []


@pytest.mark.parametrize("name", ["", "x" * 300])
def test_a_migration_guards_by_no_impossible_lock(name: str) -> None:
    with pytest.raises(LockConfigError, match="must be 1 to 255 characters"):
        _core.guard_script('"invoices"', name)
    with pytest.raises(LockConfigError, match="must be 1 to 255 characters"):
        _core.guard_triggers("invoices", name, mariadb=True, cluster=False)
