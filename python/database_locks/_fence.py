"""Fenced writes: transactions that commit only while a lock is held."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import _core
from ._wait import wait
from .django import transactions
from .exceptions import LockConfigError, LockUnavailable

if TYPE_CHECKING:
    from ._held import Held

logger = logging.getLogger("database_locks.locks")


def _connection(using: str | None) -> Any:
    from django.db import DEFAULT_DB_ALIAS, connections

    from .django import conf

    return connections[using or conf.alias() or DEFAULT_DB_ALIAS]


class _NotPassed(Exception):
    """The fence did not pass. Raised first, so that the transaction is rolled back before `why`
    asks.
    """

    def __init__(self, conflict: bool) -> None:
        super().__init__()
        self.conflict = conflict


def pass_fence(fence: _core.Fence, cursor: Any) -> None:
    """Run the first statements of a fenced transaction. Raises `_NotPassed` if it must not go on."""
    try:
        for sql in (fence.before, fence.sql):
            if sql is None:
                continue
            cursor.execute(sql, fence.params)
            if not fence.passes(len(cursor.fetchall()) if fence.is_query else cursor.rowcount):
                raise _NotPassed(conflict=False)
    except _NotPassed:
        raise
    except Exception as error:
        conflict = _core.is_fence_conflict(*_codes(error))
        if conflict is None:
            raise
        raise _NotPassed(conflict) from error


def _forget(connection: Any, fences: Iterable[_core.Fence]) -> None:
    """Show the grants of these fences no more, after the end of the transaction.

    On MySQL and MariaDB they are in a variable of the session, which outlives the transaction. Each
    is behind a semicolon; before the first is what the session shows by itself.
    """
    if connection.vendor != "mysql" or connection.connection is None or connection.needs_rollback:
        return
    grants = [f";{fence.params[2]}" for fence in fences]
    shown = "@database_locks_ticket"
    # SPACE(0), since an empty literal is NULL in MariaDB's EMPTY_STRING_IS_NULL.
    for _ in grants:
        shown = f"REPLACE({shown}, %s, SPACE(0))"
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SET @database_locks_ticket = NULLIF({shown}, SPACE(0))", grants)
    except Exception:
        logger.debug("the ticket of the session is not cleared", exc_info=True)


def close(fences: Iterable[_core.Fence]) -> None:
    """The transaction has ended."""
    for fence in fences:
        fence.close()


def _codes(error: BaseException) -> tuple[str | None, int | None]:
    """SQLSTATE (PostgreSQL) or error number (MySQL) of a driver's error, which Django may have
    wrapped.
    """
    cause = error.__cause__ or error
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if isinstance(state, str):
        return state, None
    number = cause.args[0] if cause.args else None
    return None, number if isinstance(number, int) and 0 <= number < 1 << 16 else None


def why(held: Held, not_passed: _NotPassed) -> None:
    """Raise the reason why the fence did not pass."""
    original = not_passed.__cause__
    try:
        held._confirmed(wait(held._guard.fence_failed(not_passed.conflict)))
    except LockUnavailable:
        # The lock is still held: the transaction itself has a conflict, which the driver reports.
        if original is not None:
            raise original from None
        raise


def _same_database(held: Held, connection: Any) -> None:
    """Compare the engines, without I/O. The fence's statement finds a wrong database of the same
    engine.
    """
    client = held._request.client
    vendor = {"postgres": "postgresql", "mysql": "mysql"}.get(client.engine if client else "")
    if vendor not in (None, connection.vendor):
        raise LockConfigError(
            f"`using` is {connection.alias!r} ({connection.vendor}), must be an alias of the database of "
            f"the lock ({vendor})"
        )


@contextmanager
def atomic(held: Held, using: str | None, lasting: float | None) -> Iterator[Held]:
    """`Held.atomic`."""
    from django.db import transaction

    connection = _connection(using)
    if held._guard is None:
        with transaction.atomic(using=connection.alias):
            yield held
        return
    _same_database(held, connection)
    fences = held._confirmed(wait(held._guard.fences(lasting)))
    try:
        with transaction.atomic(using=connection.alias):
            with connection.cursor() as cursor:
                for fence in fences:
                    pass_fence(fence, cursor)
            yield held
    except _NotPassed as not_passed:
        why(held, not_passed)
        raise
    finally:
        # If an outer transaction goes on, the row of the lock stays locked until its end, that of a
        # `TestCase` too. In a file or in memory the fence is a lock apart, which need not outlast
        # the transactions of the application.
        rows = any(fence.sql is not None for fence in fences)

        def end() -> None:
            close(fences)
            if rows:
                _forget(connection, fences)

        if not transactions.at_end(connection, end, of_test_case=rows):
            end()


@contextmanager
def fenced(held: Held, cursor: Any, lasting: float | None) -> Iterator[Held]:
    """`Held.fence`."""
    if held._guard is None:
        yield held
        return
    fences = held._confirmed(wait(held._guard.fences(lasting)))
    try:
        for fence in fences:
            pass_fence(fence, cursor)
        yield held
    except _NotPassed as not_passed:
        why(held, not_passed)
        raise
    finally:
        close(fences)
