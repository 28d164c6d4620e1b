"""Queries of a database by its URL, with other drivers than those under test."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


def sql(url: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    """Run a statement with ``%s`` in it, on a connection of its own; its rows."""
    with closing(_connect(url)) as connection:
        cursor = connection.cursor()
        if isinstance(connection, sqlite3.Connection):
            statement = statement.replace("%s", "?")
        cursor.execute(statement, params)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []


def _connect(url: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return sqlite3.connect(parts.path, timeout=20, isolation_level=None)
    if parts.scheme == "postgres":
        try:
            import psycopg
        except ImportError:  # where only the older driver is
            import psycopg2

            connection = psycopg2.connect(url)
            connection.autocommit = True
            return connection
        return psycopg.connect(url, autocommit=True)
    import pymysql

    return pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=parts.path.lstrip("/"),
        autocommit=True,
    )


def connect_and_migrate(url: str) -> None:
    """Make the table, or add the missing columns to one of legacy."""
    from database_locks import connect

    connect(url).migrate()


def django_database(url: str, **more: Any) -> dict[str, Any]:
    """The entry of Django's ``DATABASES`` for a URL; ``more`` is added to it."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": parts.path, **more}
    engine = {"postgres": "postgresql", "mysql": "mysql"}[parts.scheme]
    query = parse_qs(parts.query)
    # A directory of PostgreSQL's socket, the file of MariaDB's.
    host = (query.get("host") or query.get("socket") or [parts.hostname or ""])[0]
    return {
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or query.get("user", [""])[0]),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": str(parts.port or query.get("port", [""])[0]),
        **more,
    }
