"""Refusal of real locks in tests that have no access to the database.

Django's `SimpleTestCase` and pytest-django refuse every query of such a test. A lock has a connection
of its own, which neither of them sees, so it is refused here by what they left on Django's side: the
methods that `SimpleTestCase` replaces on a connection, and ``BaseDatabaseWrapper.ensure_connection``,
which pytest-django and newer versions of Django replace for all threads.
"""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

from django.core.exceptions import SynchronousOnlyOperation
from django.db.backends.base.base import BaseDatabaseWrapper

#: The modules of the test frameworks that replace `ensure_connection` in tests.
_FRAMEWORKS = ("django.test.", "pytest_django.")

_ADVICE = (
    "Use the pytest fixture `locks` or database_locks.testing.LocksTestMixin for locks in memory, or "
    "give the test access to the database: TestCase, TransactionTestCase, `databases`, or "
    "pytest.mark.django_db."
)


class _Allowed(Exception):
    """Django's own method was reached."""


class _Probe:
    """A connection that is not open yet. Opening it raises `_Allowed`."""

    connection = None
    wrap_database_errors = contextlib.nullcontext()

    def __init__(self, alias: str, vendor: str) -> None:
        self.alias = alias
        self.vendor = vendor

    def connect(self) -> NoReturn:
        raise _Allowed

    @property
    def in_atomic_block(self) -> NoReturn:
        raise _Allowed

    def ensure_connection(self) -> None:
        """What Django's refusal names."""


def require(connection: Any) -> None:
    """Raise what the test's framework raises for a query where this test has no access.

    Costs next to nothing outside of tests, and does no I/O.
    """
    connect = vars(connection).get("connect")
    if connect is not None and type(connect).__name__ == "_DatabaseFailure":
        try:
            connect()
        except Exception as refused:  # noqa: BLE001 - an AssertionError of Django's own kind
            _refuse(connection.alias, refused)
    ensure: Any = BaseDatabaseWrapper.ensure_connection
    if not ensure.__module__.startswith(_FRAMEWORKS):
        return
    try:
        ensure(_Probe(connection.alias, connection.vendor))
    except (_Allowed, SynchronousOnlyOperation):
        # The latter in a task: Django's own method refuses those, which locks serve.
        return
    except (AssertionError, RuntimeError) as refused:
        _refuse(connection.alias, refused)


def _refuse(alias: str, refused: Exception) -> NoReturn:
    # Not a `LockException`: code under test that handles those must not hide it.
    raise type(refused)(
        f"A lock in database {alias!r} was asked for in a test that may not use that database. {_ADVICE}"
    ) from None
