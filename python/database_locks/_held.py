"""A held lock: who holds it in this process, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from . import _core, _loss, _names, _settings, _transactions
from ._wait import current_task, wait, wait_async
from .exceptions import LockLost, LockUnavailable

if TYPE_CHECKING:
    from ._manager import Locks

logger = logging.getLogger("database_locks.locks")

Seconds = float | timedelta

T = TypeVar("T")

_Key = tuple[int, int, str]
"""Of which process, of which `Locks`, which name."""


@dataclass(frozen=True)
class Wanted:
    """What a lock is to be like, all of it checked."""

    locks: Locks | None
    key: _Key
    name: str
    ttl: float | None
    wait: float | None
    timeout: float
    poll: float | None
    renew_every: float | None
    auto_renew: bool
    holder: str | None
    meta: str | None
    on_busy: str
    until: str
    until_using: str | None
    callback: Callable[[int, Any], Any] | None


TTL = "a number of seconds from 0.1 to 315576000 (ten years), a timedelta, or None (without end)"


def ttl_of(value: Seconds | None, what: str = "lock_ttl") -> float | None:
    return None if value is None else _names.seconds(what, value, least=0.1, allowed=TTL)


def _lasting(value: Seconds | None) -> float | None:
    allowed = "a number of seconds, at least 0, or a timedelta"
    return None if value is None else _names.seconds("lasting", value, least=0, allowed=allowed)


class _Here(threading.local):
    """The locks that this thread holds outside of any task."""

    def __init__(self) -> None:
        self.holds: dict[_Key, Held] = {}


_here = _Here()
_tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], dict[_Key, Held]] = weakref.WeakKeyDictionary()


def holds() -> dict[_Key, Held]:
    # By the task itself and not by its context, which its children copy.
    task = current_task()
    return _here.holds if task is None else _tasks.setdefault(task, {})


def leave_all(patience: float) -> None:
    """Release what this thread has left open, at its very end; each within so many seconds.

    It is not left to the collector: what is released while the interpreter ends would race with the
    end of the process. What a parent of this process holds is its own.
    """
    for (generation, _, _), held in list(_here.holds.items()):
        if held._guard is not None and generation == _core.generation():
            pending = held._guard.release()
            if not pending.wait(patience):
                pending.cancel()


class Held:
    """A held lock, as ``with lock(…) as held`` gives it.

    Where locks are switched off (``DATABASE_LOCKS_ENABLED``) ``token`` is ``None`` and it is never
    lost.
    """

    def __init__(self, name: str, guard: _core.Guard | None, wanted: Wanted) -> None:
        self.name = name
        self._guard: Any = guard
        self._wanted = wanted
        self._callback = wanted.callback
        self._task = current_task()
        self._alarm = _core.Alarm()
        self._holds = holds()
        self._depth = 1
        self._ended = False
        self._cancelled = False
        self._loss: _loss.Loss | None = None
        self._kept_on: list[weakref.ReferenceType[Any]] = []
        """The Django connections in whose transaction its block has ended: see `_transactions`."""

    def __repr__(self) -> str:
        return f"<Held `{self.name}` token={self.token} lost={self.lost}>"

    @property
    def token(self) -> int | None:
        """The fencing number of this grant: greater than that of every earlier one of this name."""
        return None if self._guard is None else self._guard.token

    @property
    def holder(self) -> str | None:
        """Who holds it, as ``locked_by`` says."""
        return None if self._guard is None else self._guard.holder

    @property
    def ticket(self) -> str | None:
        """What it takes to renew or release this lock elsewhere; it goes on being held here."""
        return None if self._guard is None else self._guard.ticket()

    @property
    def lost(self) -> bool:
        """Whether it is known to be lost. Never waits, asks nobody."""
        if self._guard is None:
            return False
        return self._loss is not None or (not self._ended and self._guard.loss() is not None)

    def remaining(self) -> float:
        """How many seconds it would be held if no renewal got through from now on. Never waits."""
        return float("inf") if self._guard is None else self._guard.trusted_for()

    def check(self) -> None:
        """Ask the database whether it is still ours.

        Raises `LockLost` if it is not, `LockUnavailable` where there is no answer, which changes
        nothing.
        """
        if self._guard is not None:
            self._told(lambda: wait(self._guard.check()))

    async def acheck(self) -> None:
        """`check` for a task."""
        if self._guard is not None:
            await wait_async(self._guard.check())

    def extend(self, lock_ttl: Seconds | None) -> None:
        """Renew to ``lock_ttl`` seconds at once, and to the same from now on; ``None``: without end.

        Never shortens what the database has. Raises `LockLost` if the lease ends before the
        database has confirmed it.
        """
        if self._guard is not None:
            self._told(lambda: wait(self._guard.extend(ttl_of(lock_ttl))))

    async def aextend(self, lock_ttl: Seconds | None) -> None:
        """`extend` for a task."""
        if self._guard is not None:
            await wait_async(self._guard.extend(ttl_of(lock_ttl)))

    def hand_over(self) -> str | None:
        """Stop renewing, and answer with the ticket by which somebody else goes on with it.

        It stays held until its present lease ends; the end of the block then releases nothing.
        """
        if self._guard is None:
            return None
        ticket: str | None = self._guard.hand_over()
        self._forget()
        return ticket

    def atomic(
        self, using: str | None = None, lasting: Seconds | None = None
    ) -> AbstractContextManager[Held]:
        """A fenced ``transaction.atomic``: what is written in it commits only while the lock is
        really still held, even if this process was frozen for an hour in between.

        ``using``: which of ``DATABASES``, by default the locks' own; it must be the database of the
        locks. ``lasting``: how many seconds it may take, if that may be longer than the lease: on
        MySQL a lease is not renewed during a fenced transaction, so it is renewed to that before.

        Raises `LockLost` where the lock is gone, `LockConfigError` for a transaction that does not
        see it (another database, or a snapshot older than the lock), and the database's own error
        for a conflict of the transaction itself.
        """
        from ._atomic import atomic

        return atomic(self, using, _lasting(lasting))

    def fence(self, cursor: Any, lasting: Seconds | None = None) -> AbstractContextManager[Held]:
        """The same for a plain DB-API connection: the first thing in its transaction, which is to be
        committed or rolled back within the block.

        >>> with held.fence(cursor):  # doctest: +SKIP
        ...     cursor.execute("UPDATE …")
        ...     connection.commit()

        ``cursor`` is one whose parameters are written ``%s``: of psycopg, psycopg2, mysqlclient or
        PyMySQL. With SQLite any cursor does. Raises as `atomic` does; roll back then.
        """
        from ._atomic import fenced

        return fenced(self, cursor, _lasting(lasting))

    def _told(self, ask: Callable[[], T]) -> T:
        """What answers with `LockLost` has told the body."""
        try:
            return ask()
        except LockLost as lost:
            self._alarm.told()
            lost.token = self.token
            raise

    def _forget(self) -> None:
        """It is nobody's any more who holds it here."""
        self._ended = True
        self._alarm.off()
        if self._holds.get(self._wanted.key) is self:
            del self._holds[self._wanted.key]

    def _enter_again(self) -> Held:
        if self.lost:
            self._alarm.told()
            raise _loss.error_of(self)
        self._depth += 1
        return self

    def _start(self) -> None:
        """It is ours: from now on a loss is told, and the same name nests."""
        if self._guard is not None:
            self._holds[self._wanted.key] = self
            _loss.watch(self)

    def _leaves(self) -> bool:
        """A block ends; whether the lock ends with it."""
        self._depth -= 1
        if self._depth > 0 or self._ended:
            return False
        if self._wanted.until == "exit" or self._guard is None:
            return True
        return not _transactions.keep(self)

    def _goes_on(self) -> None:
        """It is kept, and a loss is told, until the end of a transaction."""
        if self._alarm.was_told:
            return
        # That of the block went off with it.
        self._alarm = _core.Alarm()
        if self.lost and self._alarm.told():
            if self._callback is None:
                raise _loss.error_of(self)
            self._callback(_loss._signum or 0, None)

    def _finish(self) -> None:
        """Release. Raises `LockLost` where that finds a loss that nobody was told of."""
        if not self._ends():
            return
        try:
            wait(self._guard.release())
        except LockLost as lost:
            self._unprotected(lost)
        except LockUnavailable as failed:
            self._unreleased(failed)
        else:
            self._was_released()
        finally:
            _settings.status("0")

    async def _afinish(self) -> None:
        if not self._ends():
            return
        try:
            await wait_async(self._guard.release())
        except LockLost as lost:
            self._unprotected(lost)
        except LockUnavailable as failed:
            self._unreleased(failed)
        else:
            self._was_released()
        finally:
            _settings.status("0")

    def _ends(self) -> bool:
        if self._ended:
            return False
        self._forget()
        if self._guard is None:
            _settings.status("0")
            return False
        logger.debug("releasing lock %s", self.name)
        return True

    def _was_released(self) -> None:
        logger.debug("released lock %s", self.name)

    def _unreleased(self, failed: LockUnavailable) -> None:
        # The body has done its work while the lock was held; the release goes on by itself.
        logger.warning("lock %s not released yet: %s", self.name, failed)

    def _unprotected(self, lost: LockLost) -> None:
        """The body ended before it could be told."""
        if self._loss is None:
            self._loss = _loss.of(lost)
        if self._alarm.was_told:
            return
        if self._callback is not None:
            self._callback(_loss._signum or 0, None)
            return
        raise _loss.error_of(self) from None
