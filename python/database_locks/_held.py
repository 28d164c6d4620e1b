"""`Held`: a held lock, and how it ends."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar, cast

from . import _core, _fence, _interrupt, _registry, _shared, _status_file, _tasks
from ._arguments import AcquireRequest, Seconds, lasting_of, ttl_of
from ._wait import wait, wait_async, wait_shielded
from .django import interrupted_connections, signal_dispatch, transactions
from .exceptions import LockConfigError, LockLost, LockReleased, LockUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ._arguments import Key
    from ._typing import Loss

logger = logging.getLogger("database_locks.locks")

T = TypeVar("T")


class Held:
    """A held lock: the value of ``with lock(…) as held``. Or several: that of ``with lock_all(…)``.

    Several are lost as soon as one is lost. ``name`` then is the list of their names.

    If ``DATABASE_LOCKS_ENABLED`` is ``False``, ``token`` is ``None`` and the lock is never lost.
    """

    def __init__(
        self,
        name: str,
        guard: _core.Guard | None,
        request: AcquireRequest,
        exception: _core.AsyncException,
    ) -> None:
        self.name = name
        self._guard: Any = guard
        self._request = request
        self._callback = request.callback
        self._task = _tasks.current()
        self._thread = threading.get_ident()
        self._exception = exception
        self._holds = _registry.holds_of(self._task)
        self._ended = False
        self._cancelled = False
        self._scope: Any = None
        self._detached = False
        """Acquired without a block, and not released yet."""
        self._released_blocks = 0
        """How many of the open blocks, the outermost first, were released before their end."""
        self._loss: Loss | None = None
        self._within: dict[Key, Held] = {}
        """The holds of the same locks, by this thread or task, around this one: see `_registry.add`."""
        self._interrupted: list[Any] = []
        self._kept_on: list[weakref.ReferenceType[Any]] = []
        """Django connections whose open transaction keeps the lock: see `django.transactions`."""

    def __repr__(self) -> str:
        return f"<Held `{self.name}` token={self.token} lost={self.lost}>"

    @property
    def token(self) -> int | None:
        """The fencing token of this grant, greater than that of every earlier grant of the same
        lock, or of the same permit: those of different permits cannot be compared. Of several locks
        ``None``: see `tokens`.
        """
        return self.tokens.get(self.name)

    @property
    def tokens(self) -> dict[str, int]:
        """The fencing token of each lock, by its name. Empty if locks are switched off."""
        return {} if self._guard is None else dict(self._guard.tokens)

    @property
    def slot(self) -> int | None:
        """The number of the permit: below the limit of the semaphore, and of no other holder at the
        same time. ``None`` for a lock.
        """
        return None if self._guard is None else self._guard.slot

    @property
    def shared(self) -> bool:
        """Whether other shared holders may hold the lock at the same time. A shared block within an
        exclusive one of the same thread or task has the hold of that, which is not shared.
        """
        return self._request.shared if self._guard is None else self._guard.is_shared

    @property
    def holder(self) -> str | None:
        """The holder's id: ``locked_by``, or one made from host and process."""
        return None if self._guard is None else self._guard.holder

    @property
    def ticket(self) -> str | None:
        """The ticket by which another program can renew or release the lock. It stays held here.

        Of several locks ``None``: see `tickets`.
        """
        return self.tickets.get(self.name)

    @property
    def tickets(self) -> dict[str, str]:
        """The ticket of each lock, by its name. Empty if locks are switched off."""
        self._not_ended()
        tickets = None if self._guard is None else self._guard.tickets()
        return dict(zip(self.tokens, tickets or (), strict=False))

    @property
    def lost(self) -> bool:
        """Whether the lock is known to be lost. Without I/O."""
        if self._guard is None:
            return False
        return self._loss is not None or (not self._ended and self._guard.loss() is not None)

    def remaining(self) -> float:
        """Seconds until the lease ends if no further renewal succeeds. Without I/O."""
        return float("inf") if self._guard is None else self._guard.trusted_for()

    def check(self) -> None:
        """Ask the database whether the lock is still held.

        Raises `LockLost` if it is not, `LockUnavailable` if the database does not answer (the lock
        stays held), and `LockReleased` after the block.
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
        """Renew for ``lock_ttl`` seconds at once and in later renewals; ``None``: without end.

        Never shortens the present lease. Raises `LockLost` if the lease ends before the database
        has confirmed the renewal, and `LockReleased` after the block.
        """
        self._not_ended()
        if self._guard is not None:
            self._confirmed(wait(self._guard.extend(ttl_of(lock_ttl))))

    async def aextend(self, lock_ttl: Seconds | None) -> None:
        """`extend` for a task."""
        self._not_ended()
        if self._guard is not None:
            self._confirmed(await wait_async(self._guard.extend(ttl_of(lock_ttl))))

    def downgrade(self) -> None:
        """Share the lock, which was held exclusively, without another exclusive holder in between:
        other shared callers get in from now on.

        `token` and `ticket` are new ones then. Losses are reported as before. There is no way back:
        release the lock, and acquire it without ``shared``.

        Raises `LockConfigError` for a hold that is shared already, for a permit and for several
        locks, in a block within another one of the same lock, and in a transaction that keeps the
        lock until its end (see ``until``), whose writes the others could not see yet; `LockLost`;
        and `LockUnavailable`, after which the lock is still held exclusively.
        """
        self._not_ended()
        _shared.check_downgrade(self)
        if self._guard is not None:
            self._confirmed(wait(self._guard.downgrade()))

    async def adowngrade(self) -> None:
        """`downgrade` for a task."""
        self._not_ended()
        _shared.check_downgrade(self)
        if self._guard is not None:
            self._confirmed(await wait_async(self._guard.downgrade()))

    def release(self) -> None:
        """Release the lock before the end of the block, even if blocks of this lock nest.

        In a transaction the lock is kept until its end, as at the end of the block, unless
        ``until="exit"`` was given. After this a second call, and the end of the block, do nothing.
        Raises `LockLost` if the lock was lost.
        """
        if not self._release_or_keep():
            self._finish()

    async def arelease(self) -> None:
        """`release` for a task."""
        if not self._release_or_keep():
            await self._afinish()

    def hand_over(self) -> str | None:
        """Stop renewing, and return the ticket by which another program resumes the lock.

        The lock stays held until its present lease ends. The end of the block releases nothing.
        Raises `LockConfigError` for several locks, which end together.
        """
        self._not_ended()
        if self._request.names:
            raise LockConfigError(
                f"locks {self.name} are held together, and cannot be handed over: acquire the one "
                "to be handed over by `lock`"
            )
        if self._guard is None:
            return None
        ticket: str = self._confirmed(self._guard.hand_over())
        self._forget()
        return ticket

    def atomic(
        self, using: str | None = None, lasting: Seconds | None = None
    ) -> AbstractContextManager[Held]:
        """A fenced ``transaction.atomic``: its writes commit only if the lock is still held.

        That is certain even if this process was frozen for an hour in between.

        ``using``: one of ``DATABASES``, by default that of the locks; it must be the database of
        the locks. ``lasting``: how many seconds the transaction may take, if that is longer than
        the lease. MySQL cannot renew a lease during a fenced transaction: the lease is extended to
        ``lasting`` before it.

        Raises `LockLost` if the lock is lost, `LockConfigError` for a transaction that cannot see
        the lock (another database, or a snapshot older than the lock), and the database's own error
        for a conflict of the transaction itself.
        """
        self._not_ended()
        return _fence.atomic(self, using, lasting_of(lasting))

    def fence(self, cursor: Any, lasting: Seconds | None = None) -> AbstractContextManager[Held]:
        """A fence for a plain DB-API connection: the first statement of its transaction.

        Commit or roll back within the block.

        >>> with held.fence(cursor):  # doctest: +SKIP
        ...     cursor.execute("UPDATE …")
        ...     connection.commit()

        ``cursor`` takes parameters as ``%s``: one of psycopg, psycopg2, mysqlclient or PyMySQL.
        With SQLite any cursor works. Raises the errors of `atomic`; roll back after one.
        """
        self._not_ended()
        return _fence.fenced(self, cursor, lasting_of(lasting))

    def _is_open(self) -> bool:
        """Whether a block, an object or a transaction of this process still holds the lock."""
        if self._ended or self._guard is None or self._guard.closed:
            return False
        return self._detached or self._guard.depth > 0 or bool(self._kept_on)

    def _is_used(self) -> bool:
        """Whether a block or an object holds the lock and has not released it yet."""
        return self._detached or self._guard.depth > self._released_blocks

    def _not_ended(self) -> None:
        if self._ended:
            if self.lost:
                raise self._error()
            raise LockReleased(name=self.name, token=self.token, slot=self.slot)

    def _confirmed(self, answer: T | Loss) -> T:
        """The answer of the guard; raises `LockLost` if the answer is a loss of this lock.

        A `LockLost` that the wait itself raises is about another lock.
        """
        if isinstance(answer, dict):
            if self._loss is None:
                self._loss = cast("Loss", answer)
            self._exception.mark_delivered()
            raise self._error()
        return answer

    def _forget(self) -> None:
        """This process does not hold the lock any more."""
        if self._guard is not None and self._loss is None:
            self._loss = self._guard.loss()
        self._ended = True
        self._exception.disarm()
        _interrupt.forget(self)
        _registry.remove(self)

    def _what(self) -> str:
        """What it is, for log records."""
        return f"lock {self.name}" if self.slot is None else f"permit {self.slot} of {self.name}"

    def _outermost(self) -> Held:
        """What the outermost block of this lock has acquired."""
        return self

    def _part(self, names: tuple[str, ...]) -> Held:
        """The locks of these names, as blocks of them nest in that of `lock_all`."""
        whole = self._outermost()
        return whole if names == (whole._request.names or (whole.name,)) else Part(whole, names)

    def _enter_again(self) -> Held:
        if self.lost:
            self._exception.mark_delivered()
            raise self._error()
        self._released_blocks = min(self._released_blocks, self._guard.depth)
        return self

    def _start(self) -> None:
        """A block holds the lock: a loss interrupts its body, and the same name nests in it."""
        if self._guard is not None:
            signal_dispatch.acquired(self)
            _registry.add(self)
            _interrupt.watch(self)
            self._watch(_interrupt.interrupter(self))
            _interrupt.open_scope(self)

    def _detach(self) -> None:
        """An object holds the lock: a loss interrupts no body, and nothing nests."""
        self._detached = True
        if self._guard is not None:
            signal_dispatch.acquired(self)
            _registry.add_to_process(self)
            self._watch(None)

    def _watch(self, interrupt: Callable[[Held], None] | None) -> None:
        """On a loss mark the transactions that depend on the lock, and call ``interrupt``.

        Without ``interrupt`` no body is interrupted, and ``lost_lock_cb`` gets a thread of its own.
        """
        # Weakly: the extension would keep this object alive, and with it the lock held for ever.
        ref = weakref.ref(self)

        def on_lost(loss: Loss) -> None:
            held = ref()
            if held is None:
                return
            held._loss = loss
            transactions.mark_lost(held)
            if interrupt is not None:
                interrupt(held)
            signal_dispatch.lost(held, loss)
            if interrupt is None:
                _interrupt.callback_in_thread(held)

        self._guard.on_lost(on_lost)

    def _error(self) -> LockLost:
        """The `LockLost` of this lock."""
        loss: Loss | None = self._loss or self._guard.loss()
        if loss is None:
            # Released since it was lost: the guard does not know any more how.
            return LockLost(name=self.name, token=self.token, slot=self.slot, reason="expired")
        return LockLost(token=self.tokens.get(loss["name"]), **loss)

    def _interrupt_again(self) -> None:
        """Report a loss that came while the interrupt was paused."""
        self._exception.resume()
        _interrupt.interrupter(self)(self)

    def _call_callback(self) -> None:
        if self._callback is not None:
            self._callback(_interrupt.signum(), None)

    def _is_own_cancellation(self, raised: BaseException | None) -> bool:
        return _interrupt.is_own_cancellation(self, raised)

    def _release_or_keep(self) -> bool:
        """Mark it released by a call. Returns whether that is all: it has ended, or a transaction
        keeps it.
        """
        if self._ended:
            return True
        if self._detached:
            self._detached = False
            # Until the transaction ends, the lock belongs to the calling thread or task, and nests
            # there.
            self._task, self._thread = _tasks.current(), threading.get_ident()
            self._holds = _registry.holds_of(self._task)
        else:
            self._released_blocks = 0 if self._guard is None else self._guard.depth
        if not self._kept_by_transaction(None):
            return False
        for key in self._request.keys:
            self._holds[key] = self
        return True

    def _resume_detached(self) -> Held:
        """Acquire a lock without a block that a transaction keeps: see `_registry.kept_here`."""
        self._enter_again()
        for key in self._request.keys:
            self._holds.pop(key, None)
        self._detached = True
        if self._callback is None:
            self._exception.disarm()
        return self

    def _close_scope(self, raised: BaseException | None) -> BaseException | None:
        """Close the cancel scope of trio. Returns the exception that leaves the block, without the
        cancellation by which trio reported a loss.
        """
        scope, self._scope = self._scope, None
        if scope is None:
            return raised
        traceback = None if raised is None else raised.__traceback__
        kind = None if raised is None else type(raised)
        return None if scope.__exit__(kind, raised, traceback) else raised

    def _kept_by_transaction(self, raised: BaseException | None) -> bool:
        """Whether a transaction keeps the lock beyond the end of its block."""
        if self._ended or self._request.until == "exit" or self._guard is None:
            return False
        return transactions.keep(self, raised)

    def _rearm_for_transaction(self, raised: BaseException | None) -> None:
        """Let a loss interrupt the thread until the end of the transaction that keeps the lock."""
        if not self.lost and self._guard.depth == 0:
            # The end of the block has disarmed the block's own.
            self._exception = _core.AsyncException()
        if self.lost:
            self._was_released(self._guard.loss(), raised)

    def _finish(self, raised: BaseException | None = None) -> None:
        """Release. Raises `LockLost` if the lock was lost, unless ``raised`` leaves the block
        already.
        """
        if not self._begin_release():
            return
        answer = None
        try:
            answer = wait(self._guard.release())
        except LockUnavailable as failed:
            self._unreleased(failed)
        finally:
            _status_file.write(self._request.status_file, "0")
        self._was_released(answer, raised)

    async def _afinish(self, raised: BaseException | None = None) -> None:
        if not self._begin_release():
            return
        answer = None
        try:
            answer = await wait_shielded(self._guard.release())
        except LockUnavailable as failed:
            self._unreleased(failed)
        finally:
            _status_file.write(self._request.status_file, "0")
        self._was_released(answer, raised)

    def _begin_release(self) -> bool:
        """Mark it released. Returns whether there is a grant to release in the database."""
        if self._ended:
            return False
        self._forget()
        if self._guard is None:
            _status_file.write(self._request.status_file, "0")
            return False
        logger.debug("releasing %s", self._what())
        return True

    def _unreleased(self, failed: LockUnavailable) -> None:
        # No error: the body ran while the lock was held, and the release goes on in the background.
        logger.warning("%s not released yet: %s", self._what(), failed)

    def _was_released(self, answer: Loss | None, raised: BaseException | None) -> None:
        if answer is not None and self._loss is None:
            self._loss = answer
        if self._loss is None:
            logger.debug("released %s", self._what())
            signal_dispatch.released(self)
            return
        signal_dispatch.lost(self, self._loss)
        interrupted_connections.close(self, raised)
        if self._callback is not None:
            if not self._exception.was_delivered:
                self._call_callback()
            return
        own = self._is_own_cancellation(raised)
        if raised is None or own:
            raise self._error() from None
        if not self._exception.was_delivered and not isinstance(raised, LockLost):
            logger.warning("%s; what the body raised goes on: %r", self._error(), raised)


class Part(Held):
    """Some of the locks that an outer block holds together by `lock_all`.

    It shares the state of the set, but for names, tokens and tickets. It releases nothing: the set
    ends as a whole.
    """

    # Apart from `__dict__`, which is that of the set.
    __slots__ = ("_names", "_whole")

    def __init__(self, whole: Held, names: tuple[str, ...]) -> None:
        self.__dict__ = whole.__dict__
        self._whole = whole
        self._names = names

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the lock; of several the list of their names."""
        return ", ".join(self._names)

    @property
    def tokens(self) -> dict[str, int]:
        """The fencing token of each lock, by its name. Empty if locks are switched off."""
        return self._only(self._whole.tokens)

    @property
    def tickets(self) -> dict[str, str]:
        """The ticket of each lock, by its name. Empty if locks are switched off."""
        return self._only(self._whole.tickets)

    def _only(self, of_all: dict[str, T]) -> dict[str, T]:
        return {name: value for name, value in of_all.items() if name in self._names}

    def release(self) -> None:
        """Nothing: the outer block of `lock_all` releases all of its locks together."""

    async def arelease(self) -> None:
        """Nothing: see `release`."""

    def _outermost(self) -> Held:
        return self._whole

    def _error(self) -> LockLost:
        # It may be another one of the locks that was lost.
        return self._whole._error()
