"""The transactions that the calling thread has open, and locks that could not follow them."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from .. import _tasks
from ..exceptions import LockConfigError

_QUICK = 2.0
"""Seconds at most that `check_in_task` may stop an event loop."""


def django_connections() -> Any:
    """Django's connections, or ``None`` without Django."""
    if "django.db" not in sys.modules:
        return None
    from django.conf import settings
    from django.db import connections

    return connections if settings.configured else None


def check(using: str | None) -> None:
    """Raise `LockConfigError` if the end of a transaction could not be observed. Without I/O.

    ``using``: the alias that the lock is restricted to.
    """
    connections = django_connections()
    aliases = {} if connections is None else connections.settings
    if using is not None and using not in aliases:
        known = ", ".join(sorted(aliases)) or "none here"
        raise LockConfigError(f"`until_using` is {using!r}, must be one of DATABASES: {known}")
    if connections is None:
        return
    used = {connection.alias: connection for connection in connections.all(initialized_only=True)}
    for alias in connections.settings if using is None else [using]:
        connection = used.get(alias)
        if connection is not None and connection.connection is not None:
            manual = is_manual(connection)
        else:
            manual = not connections.settings[alias].get("AUTOCOMMIT", True)
        if manual:
            raise unobservable(alias)


async def acheck(using: str | None) -> None:
    """Raise `LockConfigError` in a task that `async_to_sync` runs for a thread with an open
    transaction.

    The task's queries run in that thread and so within its transaction, whose end cannot be
    observed from the thread of the task.
    """
    executor = _caller()
    if executor is not None:
        _refuse(await asyncio.wrap_future(executor.submit(_open_alias, using)))


def check_in_task(using: str | None) -> None:
    """`acheck` for a task that acquires without ``await``. May stop the event loop for a moment."""
    executor = _caller() if _tasks.runs_event_loop() else None
    if executor is None:
        return
    try:
        _refuse(executor.submit(_open_alias, using).result(_QUICK))
    except FutureTimeoutError:
        raise LockConfigError(
            "the thread that called async_to_sync is busy, so whether it has an open transaction is not "
            "known: use `async with`, or take the lock in that thread"
        ) from None


def _caller() -> Any:
    """The executor of the thread that called `async_to_sync` for this task."""
    asgiref = sys.modules.get("asgiref.sync")
    if asgiref is None or django_connections() is None:
        return None
    return getattr(asgiref.AsyncToSync.executors, "current", None)


def _refuse(alias: str | None) -> None:
    if alias is not None:
        raise LockConfigError(
            f"the thread that called async_to_sync has a transaction open on the database {alias!r}, and a "
            "lock of the task could not be kept until that ends: take the lock in that thread, with "
            '`with lock(…)` around the call of async_to_sync, or give until="exit", which frees it at the '
            "end of its block, before the commit"
        )


def _open_alias(using: str | None) -> str | None:
    """The alias of a database on which this thread has an open transaction."""
    connections = django_connections()
    for connection in connections.all(initialized_only=True):
        if using in (None, connection.alias) and outermost(connection) is not None:
            alias: str = connection.alias
            return alias
    return None


def is_manual(connection: Any) -> bool:
    """Whether the application begins and ends transactions by hand."""
    if connection.in_atomic_block:
        return not connection.commit_on_exit
    return connection.connection is not None and not connection.autocommit


def unobservable(alias: str) -> LockConfigError:
    return LockConfigError(
        f"autocommit is off on the database {alias!r}, so the end of a transaction cannot be observed: "
        'give until="exit", which frees the lock at the end of its block, and commit before that '
        "(or name another database with `until_using`)"
    )


def outermost(connection: Any) -> int | None:
    """The number of the outermost open block; that of a `TestCase` does not count."""
    for depth, block in enumerate(connection.atomic_blocks):
        if not block._from_testcase:
            return depth
    return None
