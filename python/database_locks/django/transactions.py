"""Locks and transactions: a lock that ends inside of a transaction is kept until that has ended.

What is written under a lock can be seen by others only after the commit. If the lock were free before,
the next holder would read what was there before, and its commit would undo the first one.

Django has no signal for the end of a transaction: `on_commit` callbacks are not called after a
rollback, nor in a test, and one that raises keeps the later ones from being called. So `install` puts
`_core.Undisturbed` in the place of the two methods of ``Atomic``, once a process. It calls `_enter` and
`_leave`, which call Django's own.

Connections of Django belong to a thread. All that is here is called in the thread of the connection,
but for `mark_lost`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _core, _loss, _owner, _settings, _signals
from ._wait import wait
from .exceptions import LockConfigError, LockLost, LockUnavailable

if TYPE_CHECKING:
    from ._held import Held

logger = logging.getLogger("database_locks.locks")


@dataclass(eq=False)
class _Kept:
    """A lock that is kept until a block of `atomic` ends. Blocks are counted from the outermost, 0."""

    held: Held
    innermost: int
    """The block within which the lock's own ended. If that is rolled back, so is all that was written
    under the lock."""
    outermost: int
    """The block whose end frees the lock."""


@dataclass(eq=False)
class _Work:
    """To be called when that block ends, before locks are freed."""

    call: Callable[[], None]
    outermost: int


@dataclass
class _State:
    """What depends on the transactions of one connection."""

    kept: list[_Kept] = field(default_factory=list)
    works: list[_Work] = field(default_factory=list)
    leaving: bool = False
    """A block is ending just now, and whether it commits is settled."""


_states: weakref.WeakKeyDictionary[Any, _State] = weakref.WeakKeyDictionary()
"""Of each connection. Weakly: a thread that ends within a transaction frees its locks."""

_SEEN = "_database_locks_see_its_end"
"""Set on a block of `atomic` that began after `install`."""

_QUICK = 2.0
"""Seconds at most that a question may stop an event loop."""

_settled = threading.Lock()
"""A loss is marked before the end of a transaction is settled, or not at all."""


def install() -> None:
    """See to it that the end of each transaction is seen that begins from now on."""
    from django.db.transaction import Atomic

    from . import _held

    present: object = vars(Atomic)["__exit__"]
    if isinstance(present, _core.Undisturbed):
        return
    for name, call, mark in (("__enter__", _enter, None), ("__exit__", _leave, _SEEN)):
        method = _core.Undisturbed(getattr(Atomic, name), _held._here, call, mark)
        setattr(Atomic, name, method)


def _connections() -> Any:
    """Those of Django, if there are any here."""
    if "django.db" not in sys.modules:
        return None
    from django.conf import settings
    from django.db import connections

    return connections if settings.configured else None


def check(using: str | None) -> None:
    """Raise `LockConfigError` where the end of a transaction could not be seen. No I/O.

    ``using``: the alias that the lock is restricted to.
    """
    connections = _connections()
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
            manual = _is_manual(connection)
        else:
            manual = not connections.settings[alias].get("AUTOCOMMIT", True)
        if manual:
            raise _unseen_end(alias)


async def acheck(using: str | None) -> None:
    """Raise `LockConfigError` in a task that `async_to_sync` runs for a thread with an open transaction.

    Queries of the task run in that thread, and so within its transaction, whose end is not seen from the
    thread of the task.
    """
    executor = _caller()
    if executor is not None:
        _refuse(await asyncio.wrap_future(executor.submit(_open_alias, using)))


def check_in_task(using: str | None) -> None:
    """`acheck` for a task that takes the lock without ``await``: it may stop the loop for a moment."""
    executor = _caller() if _owner.runs_event_loop() else None
    if executor is None:
        return
    try:
        _refuse(executor.submit(_open_alias, using).result(_QUICK))
    except FutureTimeoutError:
        raise LockConfigError(
            "the thread that called async_to_sync is busy, and whether it has a transaction open could not "
            "be asked: use `async with`, or take the lock in that thread"
        ) from None


def _caller() -> Any:
    """What runs calls in the thread that called `async_to_sync` for this task."""
    asgiref = sys.modules.get("asgiref.sync")
    if asgiref is None or _connections() is None:
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
    """A database on which this thread has a transaction open."""
    connections = _connections()
    for connection in connections.all(initialized_only=True):
        if using in (None, connection.alias) and _outermost(connection) is not None:
            alias: str = connection.alias
            return alias
    return None


def _is_manual(connection: Any) -> bool:
    """Whether transactions are begun and ended by hand."""
    if connection.in_atomic_block:
        return not connection.commit_on_exit
    return connection.connection is not None and not connection.autocommit


def _unseen_end(alias: str) -> LockConfigError:
    return LockConfigError(
        f"autocommit is off on the database {alias!r}, where the end of a transaction cannot be seen: "
        '`until` must be "exit", which frees the lock at the end of its block, so commit before that '
        "(or name another database with `until_using`)"
    )


def _outermost(connection: Any) -> int | None:
    """The outermost block that is open there; that of a `TestCase` does not count."""
    for depth, block in enumerate(connection.atomic_blocks):
        if not block._from_testcase:
            return depth
    return None


def keep(held: Held, raised: BaseException | None) -> bool:
    """Keep a lock that is released until the transactions that this thread has open have ended.

    `False` where none is open. ``raised``: what is on its way out of its block. Raises `LockLost` where
    the lock is lost, as the end of a block does, and `LockConfigError`, with the lock freed, where
    autocommit was switched off within the block.
    """
    connections = _connections()
    if connections is None:
        return False
    using = held._wanted.until_using
    found = []
    for connection in connections.all(initialized_only=True):
        if using not in (None, connection.alias):
            continue
        if _is_manual(connection):
            held._finish()
            raise _unseen_end(connection.alias)
        depth = _outermost(connection)
        if depth is not None:
            found.append((connection, depth))
    for connection, depth in found:
        _add(connection, held, depth)
    if found:
        aliases = ", ".join(connection.alias for connection, _ in found)
        logger.debug("lock %s is kept until the transaction on %s ends", held.name, aliases)
        if held.lost:
            mark_lost(held)
        held._goes_on(raised)
    return bool(found)


def _add(connection: Any, held: Held, outermost: int) -> None:
    state = _states.setdefault(connection, _State())
    innermost = len(connection.atomic_blocks) - 1
    for kept in state.kept:
        if kept.held is held:
            # Its block was entered again.
            kept.innermost = min(kept.innermost, innermost)
            return
    kept = _Kept(held, innermost, outermost)
    with _settled:
        state.kept.append(kept)
        held._kept_on.append(weakref.ref(connection))
    _see_the_end(connection, kept)


def at_end(connection: Any, work: Callable[[], None], *, of_test_case: bool = False) -> bool:
    """Have `work` called when the outermost transaction there has ended, and before locks are freed.

    `False` where none is open. ``of_test_case``: that of a `TestCase` counts as one.
    """
    depth = _outermost(connection)
    if of_test_case and connection.atomic_blocks:
        depth = 0
    if depth is None:
        return False
    item = _Work(work, depth)
    _states.setdefault(connection, _State()).works.append(item)
    _see_the_end(connection, item)
    return True


class _End:
    """Ends what depends on a transaction that had begun before `install`.

    Django calls what waits for the commit, and forgets it on a rollback and where the connection is
    closed. So being forgotten has to do as well.
    """

    def __init__(self, connection: Any, item: _Kept | _Work) -> None:
        self._connection = weakref.ref(connection)
        self._item = item

    def __call__(self) -> None:
        connection = self._connection()
        if connection is not None:
            _free(connection, lambda item: item is self._item)

    def __del__(self) -> None:
        self()


def _see_the_end(connection: Any, item: _Kept | _Work) -> None:
    if not getattr(connection.atomic_blocks[item.outermost], _SEEN, False):
        # What a savepoint has registered is forgotten when that is rolled back, and the empty set of
        # savepoints says that this is in none.
        connection.run_on_commit.append((set(), _End(connection, item), False))


def mark_lost(held: Held) -> None:
    """A lock is lost: what depends on it is not committed. Called in any thread."""
    if held._callback is not None or not held._kept_on:
        return
    error = _loss.error_of(held)
    with _settled:
        for ref in held._kept_on:
            connection = ref()
            if connection is None:
                continue
            state = _states.get(connection)
            if state is not None and not state.leaving:
                connection.rollback_exc = error
                connection.needs_rollback = True


def _enter(original: Callable[..., Any], args: tuple[Any], paused: list[Held]) -> Any:
    """``Atomic.__enter__``. The alarms of the locks in ``paused`` are paused."""
    entered = original(*args)
    for held in paused:
        if held.lost and held._callback is not None:
            _tell_again(held)
        elif _forbids(held) and held._alarm.told_in_pause():
            lost = _loss.error_of(held)
            args[0].__exit__(LockLost, lost, None)
            raise lost
    return entered


def _leave(
    original: Callable[..., Any], args: tuple[Any, Any, Any, Any], paused: list[Held]
) -> Any:
    """``Atomic.__exit__``. The alarms of the locks in ``paused`` are paused."""
    from django.db import DEFAULT_DB_ALIAS, connections

    atomic, _, raised, _ = args
    connection = connections[atomic.using or DEFAULT_DB_ALIAS]
    state = _states.setdefault(connection, _State()) if paused else _states.get(connection)
    if state is None:
        return original(*args)
    leaving = _Leaving(connection, state, paused)
    leaving.begin(raised)
    try:
        original(*args)
    finally:
        leaving.end()
    leaving.tell(raised)
    return None


def _forbids(held: Held) -> bool:
    """Whether nothing may be committed any more that depends on that lock."""
    return held._callback is None and not held._ended and held.lost


class _Leaving:
    """The end of one block of `atomic`."""

    def __init__(self, connection: Any, state: _State, paused: list[Held]) -> None:
        self._connection = connection
        self._state = state
        self._paused = paused
        self._depth = len(connection.atomic_blocks) - 1
        self._lost: list[Held] = []
        self._error: LockLost | None = None

    def begin(self, raised: BaseException | None) -> None:
        """Settle whether it may commit."""
        connection, state = self._connection, self._state
        with _settled:
            state.leaving = True
            self._lost = self._losses()
            if self._lost:
                self._error = _loss.error_of(self._lost[0])
                connection.needs_rollback = connection.in_atomic_block
        commits = raised is None and not connection.needs_rollback
        if commits and not connection.savepoint_ids and (state.kept or self._paused):
            # Before the callbacks of the application, which may raise, or take their time.
            connection.run_on_commit.insert(0, (set(), self._committed, False))

    def _losses(self) -> list[Held]:
        """The locks without which it must not commit, and which are lost."""
        lost = [
            kept.held
            for kept in self._state.kept
            if kept.innermost >= self._depth and _forbids(kept.held)
        ]
        # A body that is about to be told does not get that far.
        return lost + [held for held in self._paused if _forbids(held) and held not in lost]

    def _committed(self) -> None:
        self._free()
        for held in self._paused:
            if held not in self._lost and not held._ended:
                held._alarm.resume()

    def _free(self) -> None:
        _free(self._connection, lambda item: item.outermost >= self._depth, self._lost)

    def end(self) -> None:
        """It has ended, however it did."""
        connection, state = self._connection, self._state
        undone = not (connection.in_atomic_block and connection.needs_rollback)
        for kept in state.kept:
            if kept.held in self._lost and kept.innermost >= self._depth:
                # Without a savepoint it is for the block around this one to roll back.
                kept.innermost = self._depth - 1
                if undone:
                    kept.outermost = self._depth
        self._free()
        state.leaving = False
        if not state.kept and not state.works:
            _states.pop(connection, None)

    def tell(self, raised: BaseException | None) -> None:
        """Raise `LockLost`, unless something else goes on its way."""
        for held in self._paused:
            if held._ended or not held.lost:
                continue
            if raised is not None or held._callback is not None:
                _tell_again(held)
            elif held._alarm.told_in_pause():
                self._error = self._error or _loss.error_of(held)
        if self._error is not None and raised is None:
            raise self._error
        for held in self._lost:
            if _loss.is_own_cancellation(held, raised):
                raise _loss.error_of(held) from None


def _tell_again(held: Held) -> None:
    """Of a loss that came while the alarm was paused."""
    held._alarm.resume()
    _loss._teller(held)(held)


def _forget(connection: Any, held: Held) -> None:
    """What becomes of this connection's transaction does not concern that lock any more."""
    held._kept_on = [ref for ref in held._kept_on if ref() not in (None, connection)]


def _free(
    connection: Any, is_over: Callable[[_Kept | _Work], bool], told: Sequence[Held] = ()
) -> None:
    """Do what waited for the end of a transaction: free the locks that no other one keeps.

    ``told``: those that are lost, as the caller will say.
    """
    state = _states.get(connection)
    if state is None:
        return
    works, state.works = state.works, []
    for work in works:
        if is_over(work):
            work.call()
        else:
            state.works.append(work)
    with _settled:
        over = [kept.held for kept in state.kept if is_over(kept)]
        state.kept = [kept for kept in state.kept if not is_over(kept)]
        for held in over:
            _forget(connection, held)
    # One that was entered or acquired again ends with its block, or its release.
    _free_these([held for held in over if not held._kept_on and not held._is_used()], told)


def _free_these(locks: Sequence[Held], told: Sequence[Held]) -> None:
    pendings = [(held, held._guard.release()) for held in locks if held._ends()]
    for held, pending in pendings:
        try:
            lost = wait(pending)
        except LockUnavailable as failed:
            held._unreleased(failed)
            continue
        finally:
            _settings.status(held._wanted.status_file, "0")
        if lost is None:
            logger.debug("released lock %s", held.name)
            _signals.released(held)
        elif held not in told:
            _lost_too_late(held, lost)


def _lost_too_late(held: Held, lost: _loss.Loss) -> None:
    """Its transaction has ended. What was committed cannot be taken back, so that nothing is raised."""
    held._loss = held._loss or lost
    _signals.lost(held, held._loss)
    if held._alarm.was_told:
        return
    error = _loss.error_of(held)
    logger.warning("lock %s was lost before its transaction had ended: %s", held.name, error)
    if held._callback is None:
        return
    try:
        held._callback(_loss._signum or 0, None)
    except Exception:
        logger.exception("lost_lock_cb of lock %s", held.name)
