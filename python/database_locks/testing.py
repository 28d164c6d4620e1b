"""Test kit for applications: locks in memory, which a test can lose, expire, or hold elsewhere.

pytest has the fixture ``locks``, `unittest` the mixin `LocksTestMixin`. Both direct every ``lock``
and ``locked`` of the test to memory, whatever the settings say, and fail a test that leaves a lock
held.

>>> import database_locks
>>> from database_locks.testing import memory_locks
>>> with memory_locks() as locks:
...     with locks.lock("report"):
...         locks.assert_locked("report")
...         try:
...             with locks.lock("import"):
...                 locks.lose("import")
...                 print("does not get here")
...         except database_locks.LockLost as lost:
...             print(lost.name, lost.reason)
import forced
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from . import _core
from ._connect import Locks
from ._registry import all_held_here
from ._tasks import current as current_task
from ._wait import wait
from .exceptions import LockException, LockLost

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType
    from unittest import TestCase

    from typing_extensions import Self

    _Case = TestCase
else:
    _Case = object

#: Seconds that a release in the background may take before a lock counts as left behind.
_TIMEOUT = 5.0

_numbers = itertools.count(1)


class Busy:
    """A lock that another holder has, returned by `MemoryLocks.busy`.

    The holder stands for another process, so the lock excludes the test's own thread too.
    """

    def __init__(self, name: str, guard: _core.Guard) -> None:
        self.name = name
        self._guard: _core.Guard | None = guard

    def __repr__(self) -> str:
        return f"<Busy `{self.name}`>"

    def release(self) -> None:
        """Release the lock, as its holder would. A second call does nothing."""
        guard, self._guard = self._guard, None
        if guard is not None:
            with suppress(LockLost):
                wait(guard.release())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class MemoryLocks(Locks):
    """`database_locks.Locks` in memory, which a test can lose, expire and query."""

    def __init__(self) -> None:
        super().__init__(f"memory:test-{os.getpid()}-{next(_numbers)}")
        self._busy: list[Busy] = []

    def busy(self, name: str, holder: str = "another holder", *, shared: bool = False) -> Busy:
        """Let another holder have the lock until the `Busy` is released or the test ends.

        >>> from database_locks import LockTimeout
        >>> with memory_locks() as locks, locks.busy("report"):
        ...     try:
        ...         with locks.lock("report", on_busy="raise"):
        ...             print("does not get here")
        ...     except LockTimeout as busy:
        ...         print(busy.holder)
        another holder

        ``holder``: the id that ``LockTimeout.holder`` and `held` show. ``shared``: it shares the lock,
        so only an exclusive caller finds it busy. Raises `AssertionError` if the lock is held already,
        by a holder that does not let this one in.
        """
        asked = self._core.acquire(
            name, ttl=None, wait=0.0, auto_renew=False, holder=holder, shared=shared
        )
        guard = wait(asked)
        if guard is None:
            raise AssertionError(f"lock `{name}` is held by {self.held().get(name)}")
        busy = Busy(name, guard)
        self._busy.append(busy)
        return busy

    def held(self) -> dict[str, str | None]:
        """The holder of each held lock, by the lock's name."""
        return {row["name"]: row["holder"] for row in self.list() if row["state"] == "held"}

    def lose(self, name: str) -> bool:
        """Release a lock by force. Its holder, or all that share it, get ``LockLost`` or their
        callback at once.

        Raises `AssertionError` if the lock is not held.
        """
        if not super().lose(name):
            raise AssertionError(self._not_held(name))
        # If this thread is the holder, `LockLost` is raised here and not at some later line.
        until = time.monotonic() + _TIMEOUT
        while current_task() is None and self._is_ours(name) and time.monotonic() < until:
            time.sleep(0.001)
        return True

    def _is_ours(self, name: str) -> bool:
        return any(
            key[1:3] == (id(self), name) and not held._exception.was_delivered
            for key, held in all_held_here().items()
        )

    def expire(self, name: str) -> bool:
        """End a lease now, or those of all that share the lock: another client can acquire it, and
        its holders get ``LockLost`` or their callback at once.

        Raises `AssertionError` if the lock is not held.
        """
        if not super().expire(name):
            raise AssertionError(self._not_held(name))
        return True

    def assert_locked(self, name: str) -> None:
        """Fail unless the lock is held."""
        if name not in self.held():
            raise AssertionError(self._not_held(name))

    def assert_not_locked(self, name: str) -> None:
        """Fail if the lock is held."""
        held = self.held()
        if name in held:
            raise AssertionError(f"lock `{name}` is held by {held[name]}")

    def _not_held(self, name: str) -> str:
        held = ", ".join(f"`{other}`" for other in self.held()) or "none"
        message = f"lock `{name}` is not held; held are: {held}"
        return (
            message if _enabled() else f"{message}; DATABASE_LOCKS_ENABLED is False in the settings"
        )

    def left_behind(self) -> str | None:
        """End the test: release all locks that are still held, and return a message that names
        them.

        Locks of this thread or task are released silently: a `LockLost` would be raised in the next
        test. Other threads lose their locks, so that they stop.
        """
        for busy in self._busy:
            busy.release()
        until = time.monotonic() + _TIMEOUT
        while (held := self.held()) and time.monotonic() < until:
            time.sleep(0.005)
        if not held:
            return None
        for key, ours in list(all_held_here().items()):
            if key[1] == id(self):
                ours._forget()
                with suppress(LockException):
                    wait(ours._guard.release())
        for row in self.list(free=False):
            if row.get("slot") is None:
                super().lose(row["name"])
            else:
                self.force_release(row["name"], row["slot"])
        which = ", ".join(f"`{name}` (held by {holder})" for name, holder in held.items())
        return f"locks are still held at the end of the test: {which}"


@contextmanager
def memory_locks() -> Iterator[MemoryLocks]:
    """A block whose locks are all in memory, those of ``lock`` and ``locked`` in a Django project
    too.

    Raises `AssertionError` if the block leaves a lock held, unless it has failed already.
    """
    locks = MemoryLocks()
    with _instead(locks):
        try:
            yield locks
        except BaseException:
            locks.left_behind()
            raise
        message = locks.left_behind()
    if message is not None:
        raise AssertionError(message)


class LocksTestMixin(_Case):
    """A mixin for `unittest.TestCase` and Django's test cases: ``self.locks``, new for each test.

    >>> import unittest
    >>> class ReportTests(LocksTestMixin, unittest.TestCase):
    ...     def test_is_locked(self):
    ...         with self.locks.lock("report"):
    ...             self.locks.assert_locked("report")
    """

    locks: MemoryLocks

    def setUp(self) -> None:
        """Runs before the ``setUp`` of the test class if the mixin is its first base."""
        self.locks = MemoryLocks()
        instead = _instead(self.locks)
        instead.__enter__()
        # Cleanups run after `tearDown`, the last one first.
        self.addCleanup(instead.__exit__, None, None, None)
        self.addCleanup(self._nothing_left)
        super().setUp()

    def _nothing_left(self) -> None:
        message = self.locks.left_behind()
        if message is not None:
            self.fail(message)


def _conf() -> Any:
    """The project's settings, or ``None`` without Django."""
    try:
        from .django import conf
    except ImportError:
        return None
    return conf


def _instead(locks: Locks) -> AbstractContextManager[None]:
    conf = _conf()
    return nullcontext() if conf is None else conf.instead(locks)


def _enabled() -> bool:
    conf = _conf()
    return conf is None or not conf.is_configured() or conf.enabled()
