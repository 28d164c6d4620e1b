"""A case of the benchmark in Python: `peers.py KIND LOCATIONS NAME`.

LOCATIONS is JSON: where the servers are. It describes itself when it is ready, and answers the
requests on its standard input, as tools/bench/src/child.rs describes them.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

KIND = sys.argv[1]
AT = json.loads(sys.argv[2])
NAME = sys.argv[3]
clock = time.perf_counter_ns

POSTGRES = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": AT.get("old_db" if KIND.startswith("old") else "postgres_db"),
    "USER": "postgres",
    "HOST": AT.get("postgres_dir"),
    "PORT": AT.get("postgres_port"),
    "CONN_MAX_AGE": None,
}


def django(database: dict[str, Any], *apps: str, **settings: Any) -> None:
    import django as package
    from django.conf import settings as all_settings

    all_settings.configure(
        DATABASES={"default": database},
        INSTALLED_APPS=apps,
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        **settings,
    )
    package.setup()


def pair(manager: Callable[[], Any]) -> tuple[Callable[[], None], Callable[[], None]]:
    """The calls that enter a context manager and leave it."""
    entered: list[Any] = []

    def enter() -> None:
        one = manager()
        one.__enter__()
        entered.append(one)

    return enter, lambda: entered.pop().__exit__(None, None, None) and None


def subject(url: str) -> tuple[Any, Any, str]:
    in_memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    django(in_memory, "database_locks", DATABASE_LOCKS_URL=url)
    from database_locks import lock

    enter, leave = pair(lambda: lock(NAME))
    return enter, leave, "Python"


def old(auto_renew: bool) -> tuple[Any, Any, str]:
    django(POSTGRES, "database_locks")
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from database_locks import lock

    enter, leave = pair(lambda: lock(NAME, auto_renew=auto_renew))
    return enter, leave, "psycopg2, Unix socket"


def pglock() -> tuple[Any, Any, str]:
    # Prepared statements with parameters bound by the server are its fastest mode.
    options = {"prepare_threshold": 0, "server_side_binding": True}
    django({**POSTGRES, "OPTIONS": options})
    import pglock as package
    from django.db import connection

    connection.ensure_connection()
    enter, leave = pair(lambda: package.advisory(NAME))
    return (
        enter,
        leave,
        f"django-pglock {version('django-pglock')}, prepared statements, Unix socket",
    )


def redis(socket: str) -> tuple[Any, Any, str]:
    import redis as package

    one = package.Redis(unix_socket_path=socket).lock(NAME, timeout=30)
    hiredis = version("hiredis")
    return one.acquire, one.release, f"redis-py {package.__version__}, hiredis {hiredis}"


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


def baseline(acquire: str, release: str) -> tuple[Any, Any, str]:
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
    what = f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}), Unix socket"
    return (lambda: cursor.execute(acquire)), (lambda: cursor.execute(release)), what


def made() -> tuple[Any, Any, str]:
    match KIND.split("-"):
        case ["subject", engine]:
            return subject(AT[engine])
        case ["old", "postgres", *rest]:
            return old(auto_renew="off" not in rest)
        case ["pglock"]:
            return pglock()
        case ["redis", *_]:
            return redis(AT[KIND])
        case ["getlock"]:
            return get_lock()
        case ["baseline"]:
            return baseline(*AT["baseline"])
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
                while clock() < end or len(acquire) < 3:
                    t0 = clock()
                    enter()
                    t1 = clock()
                    leave()
                    t2 = clock()
                    acquire.append(t1 - t0)
                    release.append(t2 - t1)
                say(json.dumps({"acquire": acquire, "release": release}))
            case ["count", cycles]:
                for _ in range(int(cycles)):
                    os.getppid()
                    enter()
                    os.getppid()
                    leave()
                os.getppid()
                say("done")
            case ["acquire" | "release" as call]:
                before = time.monotonic_ns()
                (enter if call == "acquire" else leave)()
                say(f"{before} {time.monotonic_ns()}")


serve()
