"""Hold a lock, and write to the table that it guards when told to: by each of the ways that there are.

``guarded_writer.py URL TTL``: begins a transaction that shows the ticket, prints ``held``, waits for a line,
and then writes

- ``shown``: in that transaction, without a fence;
- ``fence``: by ``held.fence(cursor)``, on a connection of the driver;
- ``atomic``: by Django's ``held.atomic()``.

It prints the way, and ``wrote`` or the name and text of the exception.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import django
from django.conf import settings

from support.sql import django_database

WRITE = "UPDATE invoices SET amount = amount + 1"


def configure(url: str) -> None:
    if url.startswith("mysql:"):
        import pymysql

        # Django wants a mysqlclient of at least that version.
        pymysql.version_info = (2, 2, 1, "final", 0)
        pymysql.install_as_MySQLdb()
    settings.configure(
        DATABASES={"default": django_database(url)}, INSTALLED_APPS=["database_locks"]
    )
    django.setup()


def main() -> None:
    url, ttl = sys.argv[1], int(sys.argv[2])
    configure(url)
    from django.db import connection, connections, transaction

    from database_locks import lock

    show = (
        "SET @database_locks_ticket = %s"
        if url.startswith("mysql:")
        else "SELECT set_config('database_locks.ticket', %s, false)"
    )
    early = connections.create_connection("default")
    plain = connections.create_connection("default")
    plain.ensure_connection()
    # It is told of no loss: it trusts its lease.
    with lock("ledger", lock_ttl=ttl, lost_lock_cb=lambda *_: None) as held:
        early.set_autocommit(False)
        late = early.cursor()
        late.execute(show, [held.ticket])

        def shown() -> None:
            try:
                late.execute(WRITE)
            finally:
                early.rollback()

        def fence() -> None:
            raw: Any = plain.connection
            plain.set_autocommit(False)
            cursor = raw.cursor()
            try:
                with held.fence(cursor):
                    cursor.execute(WRITE)
                    raw.commit()
            finally:
                raw.rollback()

        def atomic() -> None:
            with held.atomic(), connection.cursor() as cursor:
                cursor.execute(WRITE)
            assert not transaction.get_connection().in_atomic_block

        print("held", flush=True)
        sys.stdin.readline()
        writes: list[Callable[[], None]] = [shown, fence, atomic]
        for write in writes:
            try:
                write()
            except Exception as error:  # noqa: BLE001 - the test reads which
                print(f"{write.__name__} {type(error).__name__}: {error}".replace("\n", " "))
            else:
                print(f"{write.__name__} wrote")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
