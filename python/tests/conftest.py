"""Fixtures: databases and child processes, from ``support``.

Every test gets an empty table. ``url`` runs a test on each engine; ``postgres_url``,
``mariadb_url``, ``mysql_url``, ``sqlite_url`` and ``memory_url`` are one engine each. Tests share the
servers: ``servers`` breaks them, and repairs them after the test.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support import Child, Holder, Program, Server, Servers, dblock, holder, sql

SERVERS = ["postgres", "mariadb", "mysql"]
ENGINES = ["memory", "sqlite", *SERVERS]

#: The environment of Django 4.2, for the tests marked ``django``, has no Celery.
collect_ignore = [] if find_spec("celery") else ["test_celery_beat.py"]


#: Tests of processes and threads. MySQL has the drivers of MariaDB and is left out.
OF_PROCESSES = {
    "test_celery",
    "test_celery_beat",
    "test_busy_interpreter",
    "test_gunicorn",
    "test_leaks",
    "test_multiprocessing",
}


def _is_spared(item: pytest.Item) -> bool:
    """Whether the run of the same test on MariaDB is enough."""
    params = (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
    # The command and the crate send the same statements.
    other_face = params.get("kind") in ("dblock", "rust")
    return "mysql" in params.values() and (other_face or item.path.stem in OF_PROCESSES)


#: Parts of the ids of tests that only ``make prove`` runs: torture, and second drivers of an engine.
PROVE = (
    "test_torture.py::",
    "[sqlite-memory]",
    "[postgres-psycopg2]",
    "[mariadb-pymysql]",
    "[mysql-pymysql]",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of Django, which run with each version of it, and those of ``make prove``."""
    spared = [item for item in items if _is_spared(item)]
    config.hook.pytest_deselected(items=spared)
    items[:] = [item for item in items if item not in spared]
    for item in items:
        if item.path.name.startswith("test_django") or "django" in item.path.parent.name:
            item.add_marker(pytest.mark.django)
        if any(part in item.nodeid for part in PROVE):
            item.add_marker(pytest.mark.prove)


def pytest_configure() -> None:
    import database_locks

    # A shell has its background jobs ignore SIGINT, and so their children, which tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A signal that is caught has its default again in a child.
        signal.signal(signal.SIGINT, lambda *_: None)
    # The tests use the installed package. The source has no extension, or an old one.
    source = Path(__file__).parents[1] / "database_locks"
    found = Path(database_locks.__file__).parent
    assert found != source, (
        f"{found} is not installed: run `make test-python`, or pytest of scripts/python-env"
    )


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[Servers]:
    """The servers, not repaired after each test, for fixtures of wider scope."""
    servers = Servers(*SERVERS)
    yield servers
    servers.close()


@pytest.fixture
def servers(shared_servers: Servers) -> Iterator[Servers]:
    """The servers, which a test can stop (``servers.postgres.stop()``) and put behind a proxy."""
    yield shared_servers
    shared_servers.mend()


@pytest.fixture(scope="session")
def _tables() -> dict[str, str]:
    """The database of each server that tests share."""
    return {}


def _empty_table(server: Server, tables: dict[str, str]) -> str:
    url = tables.get(server.name)
    if url is None:
        url = tables[server.name] = server.database()
        dblock("init", url=url)
    try:
        sql(url, "DELETE FROM database_locks_lock")
        sql(url, "DELETE FROM database_locks_permit")
    except Exception:  # noqa: BLE001 - each driver has its own, and a test may have dropped the table
        dblock("init", url=url)
    return url


@pytest.fixture
def postgres_url(shared_servers: Servers, _tables: dict[str, str]) -> str:
    """A PostgreSQL database with an empty table."""
    return _empty_table(shared_servers.postgres, _tables)


@pytest.fixture
def mariadb_url(shared_servers: Servers, _tables: dict[str, str]) -> str:
    """A MariaDB database with an empty table."""
    return _empty_table(shared_servers.mariadb, _tables)


@pytest.fixture
def mysql_url(shared_servers: Servers, _tables: dict[str, str]) -> str:
    """A database of Oracle's MySQL with an empty table."""
    return _empty_table(shared_servers.mysql, _tables)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A file with an empty table."""
    url = f"sqlite://{tmp_path / 'locks.sqlite3'}"
    dblock("init", url=url)
    return url


_memories = itertools.count()


@pytest.fixture
def memory_url() -> str:
    """Locks in the memory of this process."""
    return f"memory:test-{next(_memories)}"


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest) -> str:
    """An empty table on each engine."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=ENGINES[1:])
def shared_url(request: pytest.FixtureRequest) -> str:
    """An empty table on each engine that several processes can use."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=SERVERS)
def server_url(request: pytest.FixtureRequest) -> str:
    """An empty table on each engine that has a server."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def fresh_database(shared_servers: Servers) -> Callable[[str], str]:
    """``fresh_database("postgres")``: an empty database, without a table; its URL."""
    return lambda engine: getattr(shared_servers, engine).database()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for a lock, after the test."""
    return str(request.node.name)[:255]


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """``start([program, argument])``: a child process, ended after the test."""
    started: list[Program] = []

    def start(argv: list[str], **how: Any) -> Program:
        started.append(Program(argv, **how))
        return started[-1]

    yield start
    for program in reversed(started):
        program.close()


@pytest.fixture
def hold() -> Iterator[Callable[..., Holder]]:
    """``hold("python", url)``: a process that takes locks; the kinds are in ``support.holder``."""
    holders: list[Holder] = []

    def start(kind: str, url: str) -> Holder:
        holders.append(holder(kind, url))
        return holders[-1]

    yield start
    for one in reversed(holders):
        one.close()


@pytest.fixture
def child(hold: Callable[..., Holder]) -> Callable[[str], Child]:
    """``child(url)``: this package in another process, which can be frozen and killed."""
    return lambda url: hold("python", url)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("DATABASE_LOCKS_")]:
        monkeypatch.delenv(variable)
