"""A held lock: who holds it in this process, and how it ends."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar, cast

from . import _core, _interrupted, _loss, _owner, _settings, _signals, _transactions
from ._wait import wait, wait_async, wait_shielded
from ._wanted import Key, Seconds, Wanted, lasting_of, ttl_of
from .exceptions import LockLost, LockReleased, LockUnavailable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

logger = logging.getLogger("database_locks.locks")

T = TypeVar("T")


class _Here(threading.local):
    """The locks that this thread holds outside of any task."""

    def __init__(self) -> None:
        self.holds: dict[Key, Held] = {}


_here = _Here()
_tasks: weakref.WeakKeyDictionary[Any, dict[Key, Held]] = weakref.WeakKeyDictionary()
_MANY = 64
"""From so many on, what was interrupted on its way in is looked for, to be forgotten."""

_process: dict[Key, weakref.ref[Held]] = {}
"""Which locks this process holds, in any thread."""


def _of(task: Any) -> dict[Key, Held]:
    # By the task itself and not by its context, which its children copy.
    return _here.holds if task is None else _tasks.setdefault(task, {})


def _living(held: Held | None) -> Held | None:
    # One that was interrupted on its way in is known still, and its guard closed.
    return held if held is not None and held._is_open() else None


def held_here(key: Key) -> Held | None:
    """What this thread, or this task, holds."""
    return _living(_of(_owner.current()).get(key))


def kept_here(key: Key) -> Held | None:
    """What a transaction keeps for this thread or task, and nothing else holds."""
    held = held_here(key)
    return None if held is None or held._is_used() else held


def held_in_process(key: Key) -> Held | None:
    """What any thread or task of this process holds."""
    ref = _process.get(key)
    return None if ref is None else _living(ref())


def holds() -> dict[Key, Held]:
    """All that this thread, or this task, holds."""
    known = list(_of(_owner.current()).items())
    return {key: held for key, held in known if held._is_open()}


def is_of_this_process(name: str, holder: str | None) -> bool:
    """Whether the holder that the database names is in this process."""
    for key in list(_process):
        # What a fork has inherited is its parent's.
        held = held_in_process(key) if key[0] == _core.generation() else None
        if held is not None and (held.name, held.holder) == (name, holder):
            return True
    return False


class Held:
    """A held lock, as ``with lock(…) as held`` gives it.

    Where locks are switched off (``DATABASE_LOCKS_ENABLED``) ``token`` is ``None`` and it is never
    lost.
    """

    def __init__(
        self, name: str, guard: _core.Guard | None, wanted: Wanted, alarm: _core.Alarm
    ) -> None:
        self.name = name
        self._guard: Any = guard
        self._wanted = wanted
        self._callback = wanted.callback
        self._task = _owner.current()
        self._thread = threading.get_ident()
        self._alarm = alarm
        self._holds = _of(self._task)
        self._ended = False
        self._cancelled = False
        self._scope: Any = None
        self._detached = False
        """An object holds it, and has not released it."""
        self._released_blocks = 0
        """So many of its open blocks, the outermost, were released before their end."""
        self._loss: _loss.Loss | None = None
        self._interrupted: list[Any] = []
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
        self._not_ended()
        ticket: str | None = None if self._guard is None else self._guard.ticket()
        return ticket

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
        """Ask the database whether it is still held.

        Raises `LockLost` if it is not, `LockUnavailable` where there is no answer, which changes
        nothing, and `LockReleased` after the block.
        """
        self._not_ended()
        if self._guard is not None:
            self._confirmed(wait(self._guard.check()))

    async def acheck(self) -> None:
        """`check` for a task."""
        self._not_ended()
        if self._guard is not None:
            self._confirmed(await wait_async(self._guard.check()))

    def extend(self, lock_ttl: Seconds | None) -> None:
        """Renew to ``lock_ttl`` seconds at once, and to the same from now on; ``None``: without end.

        Never shortens what the database has. Raises `LockLost` if the lease ends before the
        database has confirmed it, and `LockReleased` after the block.
        """
        self._not_ended()
        if self._guard is not None:
            self._confirmed(wait(self._guard.extend(ttl_of(lock_ttl))))

    async def aextend(self, lock_ttl: Seconds | None) -> None:
        """`extend` for a task."""
        self._not_ended()
        if self._guard is not None:
            self._confirmed(await wait_async(self._guard.extend(ttl_of(lock_ttl))))

    def release(self) -> None:
        """Release the lock before the end of the block, also where blocks of this lock nest.

        Inside of a transaction it is kept until that has ended, as at the end of the block, unless
        ``until="exit"`` was given. A second call, and the end of the block, do nothing then. Raises
        `LockLost` if it was lost.
        """
        if not self._let_go():
            self._finish()

    async def arelease(self) -> None:
        """`release` for a task."""
        if not self._let_go():
            await self._afinish()

    def hand_over(self) -> str | None:
        """Stop renewing, and answer with the ticket by which another program resumes the lock.

        The lock stays held until its present lease ends; the end of the block releases nothing then.
        """
        self._not_ended()
        if self._guard is None:
            return None
        ticket: str = self._confirmed(self._guard.hand_over())
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
        self._not_ended()
        from ._atomic import atomic

        return atomic(self, using, lasting_of(lasting))

    def fence(self, cursor: Any, lasting: Seconds | None = None) -> AbstractContextManager[Held]:
        """The same for a plain DB-API connection: the first thing in its transaction, which is to be
        committed or rolled back within the block.

        >>> with held.fence(cursor):  # doctest: +SKIP
        ...     cursor.execute("UPDATE …")
        ...     connection.commit()

        ``cursor`` is one whose parameters are written ``%s``: of psycopg, psycopg2, mysqlclient or
        PyMySQL. With SQLite any cursor does. Raises as `atomic` does; roll back then.
        """
        self._not_ended()
        from ._atomic import fenced

        return fenced(self, cursor, lasting_of(lasting))

    def _is_open(self) -> bool:
        """Whether a block of it has begun, and the lock has not ended."""
        if self._ended or self._guard is None or self._guard.closed:
            return False
        return self._detached or self._guard.depth > 0 or bool(self._kept_on)

    def _is_used(self) -> bool:
        """Whether a block or an object holds it, which has not released it yet."""
        return self._detached or self._guard.depth > self._released_blocks

    def _not_ended(self) -> None:
        if self._ended:
            if self.lost:
                raise _loss.error_of(self)
            raise LockReleased(name=self.name, token=self.token)

    def _confirmed(self, answer: T | _loss.Loss) -> T:
        """An answer of the guard: a loss is one, and raised here.

        Any `LockLost` that is raised by waiting for it is another lock's.
        """
        if isinstance(answer, dict):
            if self._loss is None:
                self._loss = cast("_loss.Loss", answer)
            self._alarm.told()
            raise _loss.error_of(self)
        return answer

    def _forget(self) -> None:
        """It is not held here any more."""
        if self._guard is not None and self._loss is None:
            self._loss = self._guard.loss()
        self._ended = True
        self._alarm.off()
        _loss.forget(self)
        key = self._wanted.key
        if self._holds.get(key) is self:
            self._holds.pop(key, None)
        ref = _process.get(key)
        if ref is not None and ref() in (self, None):
            _process.pop(key, None)

    def _enter_again(self) -> Held:
        if self.lost:
            self._alarm.told()
            raise _loss.error_of(self)
        self._released_blocks = min(self._released_blocks, self._guard.depth)
        return self

    def _start(self) -> None:
        """It is held: from now on a loss is told, and the same name nests."""
        if self._guard is not None:
            if len(self._holds) >= _MANY:
                for key in [key for key, held in self._holds.items() if held._guard.closed]:
                    self._holds.pop(key, None)
            _signals.acquired(self)
            self._holds[self._wanted.key] = self
            _process[self._wanted.key] = weakref.ref(self)
            _loss.watch(self)

    def _detach(self) -> None:
        """It is held by an object and not by a block: nothing is told, and nothing nests."""
        self._detached = True
        if self._guard is not None:
            _signals.acquired(self)
            _process[self._wanted.key] = weakref.ref(self)
            _loss.watch_detached(self)

    def _let_go(self) -> bool:
        """It is released by a call: nothing is left to do, as it has ended, or is kept by a transaction."""
        if self._ended:
            return True
        if self._detached:
            self._detached = False
            # The rest of its transaction belongs to this thread or task, in which it nests.
            self._task, self._thread = _owner.current(), threading.get_ident()
            self._holds = _of(self._task)
        else:
            self._released_blocks = 0 if self._guard is None else self._guard.depth
        if not self._stays(None):
            return False
        self._holds[self._wanted.key] = self
        return True

    def _resume_detached(self) -> Held:
        """An object acquires what a transaction keeps for this thread: see `kept_here`."""
        self._enter_again()
        self._holds.pop(self._wanted.key, None)
        self._detached = True
        if self._callback is None:
            self._alarm.off()
        return self

    def _left(self, raised: BaseException | None) -> BaseException | None:
        """What is on its way out of the block, without what trio has sent to tell it."""
        scope, self._scope = self._scope, None
        if scope is None:
            return raised
        traceback = None if raised is None else raised.__traceback__
        kind = None if raised is None else type(raised)
        return None if scope.__exit__(kind, raised, traceback) else raised

    def _stays(self, raised: BaseException | None) -> bool:
        """Whether the lock outlives its block, until a transaction ends."""
        if self._ended or self._wanted.until == "exit" or self._guard is None:
            return False
        return _transactions.keep(self, raised)

    def _goes_on(self, raised: BaseException | None) -> None:
        """It is kept, and a loss is told, until the end of a transaction."""
        if not self.lost and self._guard.depth == 0:
            # That of the block went off with it.
            self._alarm = _core.Alarm()
        if self.lost:
            self._was_released(self._guard.loss(), raised)

    def _finish(self, raised: BaseException | None = None) -> None:
        """Release. Raises `LockLost` if the lock was lost, and nothing else is on its way."""
        if not self._ends():
            return
        answer = None
        try:
            answer = wait(self._guard.release())
        except LockUnavailable as failed:
            self._unreleased(failed)
        finally:
            _settings.status(self._wanted.status_file, "0")
        self._was_released(answer, raised)

    async def _afinish(self, raised: BaseException | None = None) -> None:
        if not self._ends():
            return
        answer = None
        try:
            answer = await wait_shielded(self._guard.release())
        except LockUnavailable as failed:
            self._unreleased(failed)
        finally:
            _settings.status(self._wanted.status_file, "0")
        self._was_released(answer, raised)

    def _ends(self) -> bool:
        if self._ended:
            return False
        self._forget()
        if self._guard is None:
            _settings.status(self._wanted.status_file, "0")
            return False
        logger.debug("releasing lock %s", self.name)
        return True

    def _unreleased(self, failed: LockUnavailable) -> None:
        # The body has done its work while the lock was held; the release goes on by itself.
        logger.warning("lock %s not released yet: %s", self.name, failed)

    def _was_released(self, answer: _loss.Loss | None, raised: BaseException | None) -> None:
        if answer is not None and self._loss is None:
            self._loss = answer
        if self._loss is None:
            logger.debug("released lock %s", self.name)
            _signals.released(self)
            return
        _signals.lost(self, self._loss)
        _interrupted.close(self, raised)
        if self._callback is not None:
            if not self._alarm.was_told:
                self._callback(_loss._signum or 0, None)
            return
        own = _loss.is_own_cancellation(self, raised)
        if raised is None or own:
            raise _loss.error_of(self) from None
        if not self._alarm.was_told and not isinstance(raised, LockLost):
            logger.warning("%s; what the body raised goes on: %r", _loss.error_of(self), raised)
