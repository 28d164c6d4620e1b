"""Refuses real locks in tests that have no access to the database.

Django's `SimpleTestCase` and pytest-django refuse every query of such a test. They do not see the
connections of locks, so this module looks for what they replace: methods of a connection
(`SimpleTestCase`), and ``BaseDatabaseWrapper.ensure_connection`` (pytest-django and newer Django).
"""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

from django.core.exceptions import SynchronousOnlyOperation
from django.db.backends.base.base import BaseDatabaseWrapper

#: Modules of test frameworks that replace `ensure_connection`.
_FRAMEWORKS = ("django.test.", "pytest_django.")

_ADVICE = (
    "Use the pytest fixture `locks` or database_locks.testing.LocksTestMixin for locks in memory, or "
    "give the test access to the database: TestCase, TransactionTestCase, `databases`, or "
    "pytest.mark.django_db."
)


class _Allowed(Exception):
    """Django's own method was called: the test has access."""


class _Probe:
    """Stands for a closed connection. Opening it raises `_Allowed`."""

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
        """Exists because Django's error message names it."""


def require(connection: Any) -> None:
    """Raise the error of the test framework if this test has no access to the database.

    Without I/O, and cheap outside tests.
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
        # `SynchronousOnlyOperation`: Django's own method refuses tasks, in which locks work.
        return
    except (AssertionError, RuntimeError) as refused:
        _refuse(connection.alias, refused)


def _refuse(alias: str, refused: Exception) -> NoReturn:
    # Not a `LockException`, which the code under test might handle.
    raise type(refused)(
        f"A lock in database {alias!r} was used in a test without access to that database. {_ADVICE}"
    ) from None
