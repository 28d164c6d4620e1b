"""Keeps a lock that ends within a Django transaction until the transaction has ended.

Other clients see the writes of a transaction only after its commit. If the lock were free before,
the next holder would read the old rows, and its commit would undo the first one.

Django has no signal for the end of a transaction: it does not call `on_commit` callbacks after a
rollback, nor in a test, and a callback that raises prevents the later ones. So `install` replaces
two methods of ``Atomic`` by `_core.UninterruptedMethod`, once a process. They call `_enter` and
`_leave`, which call Django's own.

A Django connection belongs to one thread. Everything here runs in the thread of the connection,
except `mark_lost`.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import _core, _registry, _status_file
from .._wait import wait
from ..exceptions import LockLost, LockUnavailable
from . import open_transactions, signal_dispatch

if TYPE_CHECKING:
    from .._held import Held
    from .._typing import Loss

logger = logging.getLogger("database_locks.locks")


@dataclass(eq=False)
class _Kept:
    """A lock that is kept until a block of `atomic` ends. Blocks are numbered from the outermost,
    0.
    """

    held: Held
    innermost: int
    """The block of `atomic` in which the lock's block ended. Its rollback undoes every write under
    the lock.
    """
    outermost: int
    """The block whose end releases the lock."""


@dataclass(eq=False)
class _Work:
    """A function to call when a block ends, before locks are released."""

    call: Callable[[], None]
    outermost: int


@dataclass
class _State:
    """The locks and functions that wait for the transactions of one connection."""

    kept: list[_Kept] = field(default_factory=list)
    works: list[_Work] = field(default_factory=list)
    leaving: bool = False
    """A block is ending, and the decision to commit is made."""


_states: weakref.WeakKeyDictionary[Any, _State] = weakref.WeakKeyDictionary()
"""By connection, weakly: a thread that ends within a transaction releases its locks."""

_SEEN = "_database_locks_see_its_end"
"""Attribute of an ``Atomic`` that began after `install`."""

_installing = threading.Lock()
_settled = threading.Lock()
"""Held while a loss is marked and while a commit is decided: one of the two comes first."""


def install() -> None:
    """Observe the end of every transaction that begins after this, if Django is imported.

    Called at each acquire: a second call is cheap.
    """
    if "django" not in sys.modules:
        return
    from django.db.transaction import Atomic

    if isinstance(vars(Atomic)["__exit__"], _core.UninterruptedMethod):
        return
    with _installing:
        present: object = vars(Atomic)["__exit__"]
        if isinstance(present, _core.UninterruptedMethod):
            return
        for name, call, mark in (("__enter__", _enter, None), ("__exit__", _leave, _SEEN)):
            method = _core.UninterruptedMethod(getattr(Atomic, name), _registry.here, call, mark)
            setattr(Atomic, name, method)


def keep(held: Held, raised: BaseException | None) -> bool:
    """Keep a released lock until the open transactions of this thread have ended.

    `False` if none is open. ``raised``: the exception that leaves the block. Raises `LockLost` if
    the lock is lost, as the end of a block does. Raises `LockConfigError`, and frees the lock, if
    autocommit was switched off within the block.
    """
    connections = open_transactions.django_connections()
    if connections is None:
        return False
    using = held._request.until_using
    found = []
    for connection in connections.all(initialized_only=True):
        if using not in (None, connection.alias):
            continue
        if open_transactions.is_manual(connection):
            held._finish()
            raise open_transactions.unobservable(connection.alias)
        depth = open_transactions.outermost(connection)
        if depth is not None:
            found.append((connection, depth))
    for connection, depth in found:
        _add(connection, held, depth)
    if found:
        aliases = ", ".join(connection.alias for connection, _ in found)
        logger.debug("lock %s is kept until the transaction on %s ends", held.name, aliases)
        if held.lost:
            mark_lost(held)
        held._rearm_for_transaction(raised)
    return bool(found)


def _add(connection: Any, held: Held, outermost: int) -> None:
    state = _states.setdefault(connection, _State())
    innermost = len(connection.atomic_blocks) - 1
    for kept in state.kept:
        if kept.held is held:
            # The block of the lock was entered again.
            kept.innermost = min(kept.innermost, innermost)
            return
    kept = _Kept(held, innermost, outermost)
    with _settled:
        state.kept.append(kept)
        held._kept_on.append(weakref.ref(connection))
    _see_the_end(connection, kept)


def at_end(connection: Any, work: Callable[[], None], *, of_test_case: bool = False) -> bool:
    """Call ``work`` when the outermost transaction has ended, before locks are released.

    `False` if none is open. ``of_test_case``: the transaction of a `TestCase` counts too.
    """
    depth = open_transactions.outermost(connection)
    if of_test_case and connection.atomic_blocks:
        depth = 0
    if depth is None:
        return False
    item = _Work(work, depth)
    _states.setdefault(connection, _State()).works.append(item)
    _see_the_end(connection, item)
    return True


class _End:
    """An `on_commit` callback for a transaction that had begun before `install`.

    Django calls it after a commit, and drops it on a rollback or when it closes the connection. So
    its destructor does the same work.
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
        # The empty set of savepoints: a rollback to a savepoint must not drop it.
        connection.run_on_commit.append((set(), _End(connection, item), False))


def mark_lost(held: Held) -> None:
    """A lock is lost: transactions that depend on it must not commit. Called in any thread."""
    if held._callback is not None or not held._kept_on:
        return
    error = held._error()
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
    """``Atomic.__enter__``. No loss of the locks in ``paused`` interrupts it."""
    entered = original(*args)
    for held in paused:
        if held.lost and held._callback is not None:
            held._interrupt_again()
        elif _forbids(held) and held._exception.mark_delivered_in_pause():
            lost = held._error()
            args[0].__exit__(LockLost, lost, None)
            raise lost
    return entered


def _leave(
    original: Callable[..., Any], args: tuple[Any, Any, Any, Any], paused: list[Held]
) -> Any:
    """``Atomic.__exit__``. No loss of the locks in ``paused`` interrupts it."""
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
    leaving.report(raised)
    return None


def _forbids(held: Held) -> bool:
    """Whether the loss of this lock forbids a commit."""
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
        """Decide whether it may commit."""
        connection, state = self._connection, self._state
        with _settled:
            state.leaving = True
            self._lost = self._losses()
            if self._lost:
                self._error = self._lost[0]._error()
                connection.needs_rollback = connection.in_atomic_block
        commits = raised is None and not connection.needs_rollback
        if commits and not connection.savepoint_ids and (state.kept or self._paused):
            # Before the callbacks of the application, which may raise or take long.
            connection.run_on_commit.insert(0, (set(), self._committed, False))

    def _losses(self) -> list[Held]:
        """The lost locks without which it must not commit."""
        lost = [
            kept.held
            for kept in self._state.kept
            if kept.innermost >= self._depth and _forbids(kept.held)
        ]
        # Of blocks that are still open: the body is interrupted before a commit.
        return lost + [held for held in self._paused if _forbids(held) and held not in lost]

    def _committed(self) -> None:
        self._free()
        for held in self._paused:
            if held not in self._lost and not held._ended:
                held._exception.resume()

    def _free(self) -> None:
        _free(self._connection, lambda item: item.outermost >= self._depth, self._lost)

    def end(self) -> None:
        """The block has ended, with or without an exception."""
        connection, state = self._connection, self._state
        undone = not (connection.in_atomic_block and connection.needs_rollback)
        for kept in state.kept:
            if kept.held in self._lost and kept.innermost >= self._depth:
                # Without a savepoint the surrounding block has to roll back.
                kept.innermost = self._depth - 1
                if undone:
                    kept.outermost = self._depth
        self._free()
        state.leaving = False
        if not state.kept and not state.works:
            _states.pop(connection, None)

    def report(self, raised: BaseException | None) -> None:
        """Raise `LockLost`, unless another exception leaves the block."""
        for held in self._paused:
            if held._ended or not held.lost:
                continue
            if raised is not None or held._callback is not None:
                held._interrupt_again()
            elif held._exception.mark_delivered_in_pause():
                self._error = self._error or held._error()
        if self._error is not None and raised is None:
            raise self._error
        for held in self._lost:
            if held._is_own_cancellation(raised):
                raise held._error() from None


def _forget(connection: Any, held: Held) -> None:
    """The lock does not wait for a transaction of this connection any more."""
    held._kept_on = [ref for ref in held._kept_on if ref() not in (None, connection)]


def _free(
    connection: Any, is_over: Callable[[_Kept | _Work], bool], told: Sequence[Held] = ()
) -> None:
    """Release the locks that waited for the end of a transaction, unless another one keeps them.

    ``told``: lost locks that the caller reports itself.
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
    # A lock that was entered or acquired again ends with that block, or its release.
    _free_these([held for held in over if not held._kept_on and not held._is_used()], told)


def _free_these(locks: Sequence[Held], told: Sequence[Held]) -> None:
    pendings = [(held, held._guard.release()) for held in locks if held._begin_release()]
    for held, pending in pendings:
        try:
            lost = wait(pending)
        except LockUnavailable as failed:
            held._unreleased(failed)
            continue
        finally:
            _status_file.write(held._request.status_file, "0")
        if lost is None:
            logger.debug("released lock %s", held.name)
            signal_dispatch.released(held)
        elif held not in told:
            _lost_too_late(held, lost)


def _lost_too_late(held: Held, lost: Loss) -> None:
    """Log a loss found after the end of the transaction: a commit cannot be undone, so nothing is
    raised.
    """
    held._loss = held._loss or lost
    signal_dispatch.lost(held, held._loss)
    if held._exception.was_delivered:
        return
    error = held._error()
    logger.warning("lock %s was lost before its transaction had ended: %s", held.name, error)
    try:
        held._call_callback()
    except Exception:
        logger.exception("lost_lock_cb of lock %s", held.name)
