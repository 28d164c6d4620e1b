"""A process that takes locks from Python and says how long that took: `peers.py KIND PLACES`.

PLACES is JSON: where the servers are. It says what it is made of when it is ready, and answers the
lines of its standard input:

- `cycles MS`: as many cycles as fit: `{"acquire": [ns, ...], "release": [ns, ...]}`
- `acquire`, `release`: the monotonic clock when it was acquired, and before it was released
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

KIND = sys.argv[1]
AT = json.loads(sys.argv[2])
NAME = f"bench {KIND}" if len(sys.argv) < 4 else sys.argv[3]
clock = time.perf_counter_ns

POSTGRES = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": AT.get("postgres_db"),
    "USER": "postgres",
    "HOST": AT.get("postgres_dir"),
    "PORT": AT.get("postgres_port"),
    "CONN_MAX_AGE": None,
}
MARIADB = {
    "ENGINE": "django.db.backends.mysql",
    "NAME": AT.get("mariadb_db"),
    "USER": "root",
    "HOST": AT.get("mariadb_socket"),
    "CONN_MAX_AGE": None,
}


def django(database: dict[str, Any], **settings: Any) -> None:
    import django as package
    from django.conf import settings as all_settings

    all_settings.configure(
        DATABASES={"default": database},
        INSTALLED_APPS=["database_locks"],
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        **settings,
    )
    package.setup()


def pair(manager: Callable[[], Any]) -> tuple[Callable[[], None], Callable[[], None]]:
    """What enters a context manager, and what leaves it."""
    entered: list[Any] = []

    def enter() -> None:
        one = manager()
        one.__enter__()
        entered.append(one)

    return enter, lambda: entered.pop().__exit__(None, None, None) and None


def ours(url: str, auto_renew: bool) -> tuple[Any, Any, str]:
    django({"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}, DATABASE_LOCKS_URL=url)
    import database_locks
    from database_locks import lock

    enter, leave = pair(lambda: lock(NAME, auto_renew=auto_renew))
    return enter, leave, f"database_locks {database_locks.__version__}"


def old(database: dict[str, Any], auto_renew: bool) -> tuple[Any, Any, str]:
    django(database)
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from database_locks import lock

    enter, leave = pair(lambda: lock(NAME, auto_renew=auto_renew))
    driver = "psycopg2" if "postgresql" in database["ENGINE"] else "mysqlclient"
    return enter, leave, f"django-database-locks 0.5, {driver}, Unix socket"


def pglock() -> tuple[Any, Any, str]:
    # Prepared at once, and parameters bound by the server: what makes it fastest.
    options = {"prepare_threshold": 0, "server_side_binding": True}
    django({**POSTGRES, "OPTIONS": options})
    import pglock as package
    from django.db import connection

    connection.ensure_connection()
    enter, leave = pair(lambda: package.advisory(NAME))
    return enter, leave, "django-pglock, session lock, prepared statements, Unix socket"


def redis(plain: bool) -> tuple[Any, Any, str]:
    if plain:
        # As `pip install redis` alone leaves it: no hiredis to be imported.
        sys.modules["hiredis"] = None  # type: ignore[assignment]
    import redis as package
    from redis.utils import HIREDIS_AVAILABLE

    if plain:
        client = package.Redis(host="127.0.0.1", port=AT["redis_port"])
        place = "TCP"
    else:
        client = package.Redis(unix_socket_path=AT["redis_socket"])
        place = "Unix socket"
    parser = "with hiredis" if HIREDIS_AVAILABLE else "without hiredis"
    one = client.lock(NAME, timeout=30)
    return one.acquire, one.release, f"redis {package.__version__} {parser}, {place}"


def get_lock() -> tuple[Any, Any, str]:
    import MySQLdb

    connection = MySQLdb.connect(unix_socket=AT["mariadb_socket"], user="root", db=AT["mariadb_db"])
    cursor = connection.cursor()

    def run(sql: str) -> None:
        cursor.execute(sql, (NAME,))
        if cursor.fetchone() != (1,):
            raise RuntimeError(sql)

    def enter() -> None:
        run("SELECT GET_LOCK(%s, 60)")

    return (
        enter,
        lambda: run("SELECT RELEASE_LOCK(%s)"),
        f"mysqlclient {version('mysqlclient')}, Unix socket",
    )


def floor(sql: list[str]) -> tuple[Any, Any, str]:
    import psycopg

    connection = psycopg.connect(
        host=AT["postgres_dir"],
        port=AT["postgres_port"],
        dbname=AT["postgres_db"],
        user="postgres",
        autocommit=True,
        prepare_threshold=0,
    )
    cursor = connection.cursor()
    first, second = (lambda: cursor.execute(sql[0])), (lambda: cursor.execute(sql[1]))
    return first, second, f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}), Unix socket"


def made() -> tuple[Any, Any, str]:
    match KIND.split("-"):
        case ["ours", engine, *rest] if "async" not in rest:
            return ours(AT[engine], "unrenewed" not in rest)
        case ["old", "postgres", *rest]:
            return old({**POSTGRES, "NAME": AT["old_db"]}, "unrenewed" not in rest)
        case ["old", "mariadb", *rest]:
            return old({**MARIADB, "NAME": AT["old_db"]}, "unrenewed" not in rest)
        case ["pglock"]:
            return pglock()
        case ["redis"]:
            return redis(plain=False)
        case ["redis", "plain"]:
            return redis(plain=True)
        case ["getlock"]:
            return get_lock()
        case ["floor"]:
            return floor([AT["acquire_sql"], AT["release_sql"]])
        case ["trip"]:
            return floor(["SELECT 1", "SELECT 1"])
    raise SystemExit(f"no such kind: {KIND}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def serve() -> None:
    enter, leave, what = made()
    enter()
    leave()
    say(what)
    for line in sys.stdin:
        match line.split():
            case ["cycles", ms]:
                acquire, release = [], []
                end = clock() + int(ms) * 1_000_000
                while clock() < end:
                    t0 = clock()
                    enter()
                    t1 = clock()
                    leave()
                    t2 = clock()
                    acquire.append(t1 - t0)
                    release.append(t2 - t1)
                say(json.dumps({"acquire": acquire, "release": release}))
            case ["acquire"]:
                enter()
                say(str(time.monotonic_ns()))
            case ["release"]:
                at = time.monotonic_ns()
                leave()
                say(str(at))


async def serve_async() -> None:
    from database_locks import lock

    async def cycles(ms: int) -> tuple[list[int], list[int]]:
        acquire, release = [], []
        end = clock() + ms * 1_000_000
        while clock() < end:
            one = lock(NAME)
            t0 = clock()
            await one.__aenter__()
            t1 = clock()
            await one.__aexit__(None, None, None)
            t2 = clock()
            acquire.append(t1 - t0)
            release.append(t2 - t1)
        return acquire, release

    await cycles(1)
    say("asyncio")
    for line in sys.stdin:
        acquire, release = await cycles(int(line.split()[1]))
        say(json.dumps({"acquire": acquire, "release": release}))


if KIND.endswith("-async"):
    in_memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    django(in_memory, DATABASE_LOCKS_URL=AT[KIND.split("-")[1]])
    asyncio.run(serve_async())
else:
    serve()
