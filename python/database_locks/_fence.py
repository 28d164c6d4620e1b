"""Fenced writes: transactions that commit only while a lock is held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import _core, _transactions
from ._wait import wait
from .exceptions import LockConfigError, LockUnavailable

if TYPE_CHECKING:
    from ._held import Held


def _connection(using: str | None) -> Any:
    from django.db import DEFAULT_DB_ALIAS, connections

    from . import conf

    return connections[using or conf.alias() or DEFAULT_DB_ALIAS]


class _NotPassed(Exception):
    """The fence did not pass; raised so that the transaction is rolled back before it is asked why."""

    def __init__(self, conflict: bool) -> None:
        super().__init__()
        self.conflict = conflict


def pass_fence(fence: _core.Fence, cursor: Any) -> None:
    """Run what a fenced transaction begins with, on a cursor in it. `_NotPassed` where it may not go on."""
    try:
        for sql, is_query in ((fence.before, True), (fence.sql, fence.is_query)):
            if sql is None:
                continue
            cursor.execute(sql, fence.params)
            if not fence.passes(len(cursor.fetchall()) if is_query else cursor.rowcount):
                raise _NotPassed(conflict=False)
    except _NotPassed:
        raise
    except Exception as error:
        conflict = _core.is_fence_conflict(*_codes(error))
        if conflict is None:
            raise
        raise _NotPassed(conflict) from error


def _codes(error: BaseException) -> tuple[str | None, int | None]:
    """What a driver calls its error: PostgreSQL's code, MySQL's number. Django wraps the driver's."""
    cause = error.__cause__ or error
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if isinstance(state, str):
        return state, None
    number = cause.args[0] if cause.args else None
    return None, number if isinstance(number, int) and 0 <= number < 1 << 16 else None


def why(held: Held, not_passed: _NotPassed) -> None:
    """Raise what it means that the fence did not pass."""
    original = not_passed.__cause__
    try:
        held._confirmed(wait(held._guard.fence_failed(not_passed.conflict)))
    except LockUnavailable:
        # Ours all the same: a conflict of the transaction itself, in the database's own words.
        if original is not None:
            raise original from None
        raise


def _same_database(held: Held, connection: Any) -> None:
    """What can be seen of it without asking; the fence itself finds the rest."""
    locks = held._wanted.locks
    vendor = {"postgres": "postgresql", "mysql": "mysql"}.get(locks.engine if locks else "")
    if vendor not in (None, connection.vendor):
        raise LockConfigError(
            f"`using` is {connection.alias!r}, must be one on the database of the lock"
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
    fence = held._confirmed(wait(held._guard.fence(lasting)))
    try:
        with transaction.atomic(using=connection.alias):
            with connection.cursor() as cursor:
                pass_fence(fence, cursor)
            yield held
    except _NotPassed as not_passed:
        why(held, not_passed)
        raise
    finally:
        # An outer transaction goes on with what was written in this one, and the row of the lock stays
        # locked until its end, that of a test case too. In a file or in memory the fence is a lock
        # apart, which need not outlast what the application itself has begun.
        rows = fence.sql is not None
        if not _transactions.at_end(connection, fence.close, of_test_case=rows):
            fence.close()


@contextmanager
def fenced(held: Held, cursor: Any, lasting: float | None) -> Iterator[Held]:
    """`Held.fence`."""
    if held._guard is None:
        yield held
        return
    fence = held._confirmed(wait(held._guard.fence(lasting)))
    try:
        pass_fence(fence, cursor)
        yield held
    except _NotPassed as not_passed:
        why(held, not_passed)
        raise
    finally:
        fence.close()
