"""Lose a lock in a Django query, and use the connection again.

``lock_loss_django.py URL DRIVER WHERE``: acquires ``job``, prints ``held``, runs a long query, prints
``lost`` when `LockLost` has arrived, and queries the same connection again: ``answer 1``.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import django
from django.conf import settings

from database_locks import LockLost, connect

SECONDS = {"psycopg3": 60, "pymysql": 60, "psycopg2": 8, "mysqlclient": 8}
"""How long the query lasts: the latter two give in only when it ends."""


def configure(url: str, driver: str) -> None:
    if driver == "pymysql":
        import pymysql

        pymysql.version_info = (2, 2, 1, "final", 0)
        pymysql.install_as_MySQLdb()
    if driver == "psycopg2":
        # Django prefers the newer one.
        sys.modules["psycopg"] = None  # type: ignore[assignment]
    parts = urlsplit(url)
    postgres = driver.startswith("psycopg")
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": f"django.db.backends.{'postgresql' if postgres else 'mysql'}",
                "HOST": parts.hostname,
                "PORT": parts.port,
                "USER": parts.username or "root",
                "NAME": parts.path.lstrip("/"),
                "CONN_MAX_AGE": None,
            }
        }
    )
    django.setup()


def ask(sql: str) -> Any:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def loses(url: str, query: Callable[[], Any], swallow: bool) -> None:
    with connect(url).lock("job", lock_ttl=2):
        print("held", flush=True)
        try:
            query()
        except Exception:
            if not swallow:
                raise
        if not swallow:
            print("was not told", flush=True)


def work(url: str, driver: str, where: str) -> None:
    from django.db import transaction

    seconds = SECONDS[driver]
    sleep = f"SELECT {'pg_sleep' if driver.startswith('psycopg') else 'SLEEP'}({seconds})"
    assert ask("SELECT 1") == 1

    def query() -> None:
        ask(sleep)
        # Where the query has ended first, the exception is on its way.
        time.sleep(1)

    def in_transaction() -> None:
        with transaction.atomic():
            query()

    try:
        if where == "around":
            with transaction.atomic():
                loses(url, query, swallow=False)
        elif where == "inside":
            loses(url, in_transaction, swallow=False)
        else:
            loses(url, query, swallow=where == "swallowed")
    except LockLost as lost:
        print(f"lost {lost.name}", flush=True)
    print(f"answer {ask('SELECT 1')}", flush=True)


def main() -> None:
    url, driver, where = sys.argv[1:]
    configure(url, driver)
    if where == "thread":
        thread = threading.Thread(target=work, args=(url, driver, where))
        thread.start()
        thread.join()
    else:
        work(url, driver, where)


if __name__ == "__main__":
    main()
