"""Locks and transactions: released at the end of one, and fenced writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _End:
    """Calls something once, when a transaction ends however it ends.

    Django calls what waits for the commit, and forgets it on a rollback, at the end of a test and
    where the connection is closed. So being forgotten has to do as well.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work

    def __call__(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work()

    def __del__(self) -> None:
        self()


def at_transaction_end(work: Callable[[], None], using: str | None = None) -> bool:
    """Have `work` called when the outermost transaction has committed or rolled back.

    `False` where no transaction is open. ``using``: which of ``DATABASES``, by default the locks' own.
    """
    connection = _connection(using)
    if not connection.in_atomic_block:
        return False
    # Not `on_commit`: what a savepoint has registered is forgotten when that is rolled back, and
    # the empty set of savepoints says that this is in none.
    connection.run_on_commit.append((set(), _End(work), False))
    return True


def _connection(using: str | None) -> Any:
    from django.db import DEFAULT_DB_ALIAS, connections

    from . import conf

    return connections[using or conf.alias() or DEFAULT_DB_ALIAS]
