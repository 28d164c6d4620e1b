"""`lock`, `locked` and `DBLock`: the names and meanings of django-database-locks 0.5."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from . import _core, _log, _loss, _names, _settings, _transactions
from ._held import TTL, Held, Seconds, Wanted, holds, ttl_of
from ._wait import current_task, wait, wait_async
from ._wrap import Skip, decorate
from .exceptions import (
    LockConfigError,
    LockException,
    LockLost,
    LockTimeout,
    LockUnavailable,
)

if TYPE_CHECKING:
    from types import TracebackType

    from ._manager import Locks

__all__ = [
    "NOTSET",
    "DBLock",
    "Held",
    "LockConfigError",
    "LockException",
    "LockLost",
    "LockTimeout",
    "LockUnavailable",
    "lock",
    "locked",
]

logger = logging.getLogger(__name__)
NOTSET: Any = object()
"""Stands for: what the settings say."""

_RENEW = "a number of seconds, at least 0, or a timedelta"


class lock(_core.Scope):
    """A lock as a context manager (``with`` and ``async with``) and as a decorator.

    :param lock_name: unique name in the database, 1 to 255 characters; by default that of what is
        decorated, or of the calling function
    :param timeout: how many seconds to wait; 0 (the default): without limit. On a cluster with
        several primaries any wait, one try too, goes on where the holder looks dead, until its lease
        has been watched for its length
    :param lock_ttl: seconds after which the lock is free again if its holder dies; ``None``: never
    :param locked_by: owner id. Whoever comes with the same one from another process takes the lock
        over at once; within a process it excludes like any other
    :param auto_renew: renew the lease in the background for as long as the block runs
    :param retry: the longest pause between two tries, in seconds; ``None`` or 0: try once
    :param lost_lock_cb: called with two arguments, as a signal handler is, when the lock is lost,
        instead of raising `LockLost` in the block
    :param lock_ttl_renew: how many seconds before the end of the lease it is renewed at the latest;
        by default when a third of it has passed
    :param on_busy: ``"wait"``: wait for ``timeout``, then raise `LockTimeout`; ``"raise"``: the same,
        but a ``timeout`` of 0 is one try; ``"skip"`` (decorated functions only): as ``"raise"``, but
        the function is not called and ``None`` returned
    :param until: ``"commit"`` (the default): if the block ends inside of a transaction of Django's
        (``ATOMIC_REQUESTS``, ``transaction.atomic()``), the lock is kept until the outermost one that
        the thread has open has committed or rolled back. If the lock is lost before that, the
        transaction is rolled back and raises `LockLost`. ``"exit"``: freed at the end of the block
    :param until_using: only transactions on this one of ``DATABASES`` count for ``until``; by default
        those on all of them
    :param meta: what ``dblock show`` and the admin page are to show besides: a mapping that JSON can
        hold
    :param ticket: go on with a lock that somebody handed over (`Held.hand_over`, ``dblock acquire``)
        instead of acquiring one; its name is in the ticket. `LockLost` where it was taken up
        already, or its lease has ended. Never waits

    Numbers of seconds may be `datetime.timedelta`. In one thread, or one task, the same lock nests:
    only the outermost block frees it. ``as held`` gives a `Held`.

    Raises `LockTimeout`, `LockLost`, `LockUnavailable`, and `LockConfigError` for arguments that are
    out of range.
    """

    def __init__(
        self,
        lock_name: str | None = None,
        timeout: Seconds = 0,
        lock_ttl: Seconds | None = NOTSET,
        locked_by: str | None = None,
        auto_renew: bool = True,
        retry: Seconds | None = 0.5,
        lost_lock_cb: Callable[[int, Any], Any] | None = None,
        lock_ttl_renew: Seconds | None = NOTSET,
        *,
        on_busy: str = "wait",
        until: Literal["commit", "exit"] = "commit",
        until_using: str | None = None,
        meta: Mapping[str, Any] | None = None,
        ticket: str | None = None,
    ) -> None:
        if ticket is not None:
            named = _core.ticket_name(ticket)
            if lock_name not in (None, named):
                raise LockConfigError(
                    f"`lock_name` is {lock_name!r}, and the ticket is for {named!r}"
                )
            lock_name = named
        if lock_name is not None and not isinstance(lock_name, str):
            raise LockConfigError(
                f"`lock_name` is {lock_name!r}, must be a text; to decorate a function without "
                "arguments use @locked"
            )
        if lost_lock_cb is not None and not callable(lost_lock_cb):
            raise LockConfigError(f"`lost_lock_cb` is {lost_lock_cb!r}, must be callable")
        for what, value, allowed in (
            ("on_busy", on_busy, ("wait", "skip", "raise")),
            ("until", until, ("exit", "commit")),
        ):
            if value not in allowed:
                raise LockConfigError(f"`{what}` is {value!r}, must be one of {', '.join(allowed)}")
        self._name = lock_name
        self._caller = _names.caller(1) if lock_name is None else None
        self._timeout = (
            0.0
            if timeout is None
            else _names.seconds(
                "timeout", timeout, allowed="a number of seconds or a timedelta; 0: without limit"
            )
        )
        self._retry = (
            None
            if retry is None
            else _names.seconds(
                "retry", retry, least=0, allowed="a number of seconds, or None or 0: try once"
            )
        )
        self._lock_ttl = lock_ttl if lock_ttl is NOTSET else ttl_of(lock_ttl)
        self._renew: float | None = NOTSET
        if lock_ttl_renew is None:
            self._renew = None
        elif lock_ttl_renew is not NOTSET:
            self._renew = _names.seconds("lock_ttl_renew", lock_ttl_renew, least=0, allowed=_RENEW)
        self._locked_by = locked_by
        self._auto_renew = auto_renew
        self._callback = lost_lock_cb
        self._on_busy = on_busy
        if until_using is not None and not isinstance(until_using, str):
            raise LockConfigError(
                f"`until_using` is {until_using!r}, must be one of DATABASES, or None: all of them"
            )
        self._until: str = until
        self._until_using = until_using
        try:
            self._meta = None if meta is None else json.dumps(dict(meta))
        except (TypeError, ValueError) as error:
            raise LockConfigError(f"`meta` cannot be written as JSON: {error}") from None
        self._ticket = ticket
        self._locks: Locks | None = None
        self._decorates = False
        self._open: list[tuple[Any, Held]] = []

    def _on(self, locks: Locks | None, caller: _names.Caller | None = None) -> lock:
        self._locks = locks
        self._caller = caller
        return self

    def _for_call(self, name: str) -> lock:
        """The same for one call of what it decorates."""
        twin = lock.__new__(lock)
        twin.__dict__.update(self.__dict__)
        twin._name = self._name or name
        twin._decorates = True
        twin._open = []
        return twin

    def __call__(self, func: Any) -> Any:
        """Decorate: `locked`."""
        return decorate(func, self)

    def _resolve(self) -> Wanted:
        name = self._name or ""
        if self._name is None and self._caller is not None:
            self._name = name = _names.name_of_caller(self._caller)
        locks, ttl, renew = self._locks, self._lock_ttl, self._renew
        enabled = True
        if locks is None:
            conf = _settings.django()
            enabled = conf.enabled()
            locks = conf.locks() if enabled else None
            if ttl is NOTSET:
                ttl = ttl_of(conf.default_ttl(), "DATABASE_LOCKS_DEFAULT_TTL")
            if renew is NOTSET:
                renew = conf.default_ttl_renew()
                if renew is not None:
                    what = "DATABASE_LOCKS_DEFAULT_TTL_RENEW"
                    renew = _names.seconds(what, renew, least=0, allowed=_RENEW)
        if self._until != "exit":
            _transactions.check(self._until_using)
        ttl = 10.0 if ttl is NOTSET else ttl
        renew = None if renew is NOTSET else renew
        once = not self._retry or (self._on_busy != "wait" and self._timeout <= 0)
        return Wanted(
            locks=locks,
            key=(_core.generation(), id(locks), name),
            name=name,
            ttl=ttl,
            wait=0.0 if once else self._timeout if self._timeout > 0 else None,
            timeout=self._timeout,
            poll=self._retry or None,
            renew_every=_renew_every(ttl, renew) if self._auto_renew else None,
            auto_renew=self._auto_renew,
            holder=self._locked_by,
            meta=self._meta,
            on_busy=self._on_busy,
            until=self._until,
            until_using=self._until_using,
            callback=self._callback,
        )

    def _already(self, wanted: Wanted) -> Held | None:
        """Without asking the database: switched off, or held by this thread or task already."""
        if wanted.locks is None:
            logger.warning(
                "database_locks currently disabled in settings, adjust DATABASE_LOCKS_ENABLED if "
                "not intended"
            )
            return Held(wanted.name, None, wanted)
        if self._ticket is not None:
            return None
        held = holds().get(wanted.key)
        return None if held is None else held._enter_again()

    def _ask(self, wanted: Wanted) -> _core.Pending[_core.Guard | None]:
        if wanted.locks is None:
            raise LockConfigError("locks are switched off")
        _log.follow()
        logger.info("acquiring lock %s", wanted.name)
        _settings.status("1")
        if self._ticket is not None:
            return wanted.locks._core.resume(
                self._ticket,
                ttl=wanted.ttl,
                auto_renew=wanted.auto_renew,
                renew_every=wanted.renew_every,
            )
        return wanted.locks._core.acquire(
            wanted.name,
            ttl=wanted.ttl,
            wait=wanted.wait,
            auto_renew=wanted.auto_renew,
            renew_every=wanted.renew_every,
            holder=wanted.holder,
            poll=wanted.poll,
            meta=wanted.meta,
        )

    def _ask_again(
        self, wanted: Wanted, began: float, guard: _core.Guard, loss: _loss.Loss
    ) -> Wanted:
        """What is left to be asked for where trust in ``guard`` ended before the body could begin.

        The thread may have waited long for the GIL, or the loop been busy. What is left of the grant is
        given back when the guard is dropped. Raises `LockLost` where the wait is over.
        """
        lost = LockLost(name=wanted.name, token=guard.token, **loss)
        left = None
        if wanted.wait is not None:
            left = max(0.0, wanted.wait - (time.monotonic() - began))
        if left == 0.0 or self._ticket is not None:
            raise lost
        return replace(wanted, wait=left)

    def _begin(self, guard: _core.Guard, wanted: Wanted) -> Held:
        held = Held(wanted.name, guard, wanted)
        held._start()
        return held

    def _was_acquired(self, wanted: Wanted) -> None:
        """Before the last look at the guard: a log handler may take its time."""
        logger.debug("lock %s acquired/renewed", wanted.name)
        _settings.status("2")

    def _enters(self, held: Held) -> Held:
        # A task is told where it waits, which cannot be in the middle of leaving a block.
        self._opened(held._alarm if held._task is None and held._depth == 1 else None)
        self._open.append((held._task or threading.get_ident(), held))
        return held

    def _may_skip(self) -> None:
        if self._on_busy == "skip" and not self._decorates:
            raise LockConfigError(
                '`on_busy="skip"` is for decorated functions: a with block cannot be skipped'
            )

    def _not_acquired(self, wanted: Wanted, error: BaseException) -> None:
        _settings.status("0")
        if isinstance(error, LockTimeout):
            if self._on_busy == "skip":
                raise Skip from error
            if error.timeout is not None:
                # What was allowed rather than what it took.
                error.timeout = wanted.timeout
                error.args = (error.args[0], wanted.timeout)

    def _enter(self) -> Held:
        _settings.status("0")
        wanted = self._resolve()
        held = self._already(wanted)
        if held is None:
            try:
                asked, began = wanted, time.monotonic()
                while True:
                    guard = wait(self._ask(asked))
                    if guard is None:
                        raise _busy(wanted, _info(wanted))
                    self._was_acquired(wanted)
                    loss = guard.loss()
                    if loss is None:
                        break
                    asked = self._ask_again(wanted, began, guard, loss)
                    del guard
            except BaseException as error:
                self._not_acquired(wanted, error)
                raise
            held = self._begin(guard, wanted)
        return held

    def __enter__(self) -> Held:
        self._may_skip()
        held = self._enter()
        try:
            return self._enters(held)
        except BaseException:
            if held._leaves():
                held._finish()
            raise

    def _pop(self) -> Held:
        owner = current_task() or threading.get_ident()
        for i in range(len(self._open) - 1, -1, -1):
            if self._open[i][0] == owner:
                return self._open.pop(i)[1]
        # Ended elsewhere than it began: a generator that the collector closes.
        return self._open.pop()[1]

    def _leave(
        self, kind: type[BaseException] | None, raised: BaseException | None, _: Any
    ) -> bool:
        """The rest of `__exit__`, which is in the extension: see `_core.Scope`."""
        held = self._pop()
        try:
            if held._leaves():
                held._finish()
        except LockLost as lost:
            _instead_of(raised, lost)
        if held._depth <= 0:
            _uncancel(held, raised)
        return False

    async def _aenter(self) -> Held:
        _settings.status("0")
        wanted = self._resolve()
        held = self._already(wanted)
        if held is None:
            try:
                asked, began = wanted, time.monotonic()
                while True:
                    guard = await wait_async(self._ask(asked))
                    if guard is None:
                        raise _busy(wanted, await _ainfo(wanted))
                    self._was_acquired(wanted)
                    loss = guard.loss()
                    if loss is None:
                        break
                    asked = self._ask_again(wanted, began, guard, loss)
                    del guard
            except BaseException as error:
                self._not_acquired(wanted, error)
                raise
            held = self._begin(guard, wanted)
        return held

    async def __aenter__(self) -> Held:
        self._may_skip()
        return self._enters(await self._aenter())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        held = self._pop()
        try:
            if held._leaves():
                await held._afinish()
        except LockLost as lost:
            _instead_of(raised, lost)
        if held._depth <= 0:
            _uncancel(held, raised)
        return False


def _renew_every(ttl: float | None, before_end: float | None) -> float | None:
    """Each third, or as early as ``lock_ttl_renew`` wants it if that is earlier."""
    if ttl is None or before_end is None:
        return None
    third = ttl / 3
    period = ttl - before_end
    # Longer than the lease itself, which 0.5 took: as often as makes sense.
    return min(period, third) if period >= 0.01 else max(ttl / 10, 0.01)


def _instead_of(raised: BaseException | None, lost: LockLost) -> None:
    """A loss that the body was not told of. What it raised itself goes first."""
    if raised is None:
        raise lost
    if not isinstance(raised, LockLost):
        logger.warning("%s; what the body raised goes on: %r", lost, raised)


def _uncancel(held: Held, raised: BaseException | None) -> None:
    """The cancellation by which a task was told becomes what it was told."""
    if not held._cancelled or not isinstance(raised, asyncio.CancelledError):
        return
    held._cancelled = False
    task = held._task
    # Before Python 3.11 a task does not count.
    if task is not None and hasattr(task, "uncancel") and task.uncancel() > 0:
        # Somebody else has cancelled it too.
        return
    raise _loss.error_of(held) from None


def _busy(wanted: Wanted, info: Mapping[str, Any] | None) -> LockTimeout:
    info = info or {}
    return LockTimeout(name=wanted.name, holder=info.get("holder"), held_for=info.get("held_for"))


def _info(wanted: Wanted) -> Mapping[str, Any] | None:
    if wanted.on_busy == "skip" or wanted.locks is None:
        return None
    try:
        return wanted.locks.show(wanted.name)
    except LockException:
        return None


async def _ainfo(wanted: Wanted) -> Mapping[str, Any] | None:
    if wanted.on_busy == "skip" or wanted.locks is None:
        return None
    try:
        return await wanted.locks.ashow(wanted.name)
    except LockException:
        return None


def locked(func_or_name: Any = None, *, _locks: Locks | None = None, **lock_kwargs: Any) -> Any:
    """Run a function, or a Django management command, under a lock.

    ``@locked``, ``@locked("name")`` and ``@locked(timeout=5, …)``, with the arguments of `lock`; the
    name is by default ``module.qualname`` of what is decorated. For functions, coroutine functions,
    generators of both kinds (the lock covers the body), methods, and subclasses of Django's
    ``BaseCommand``. Other classes: `NotImplementedError`.
    """
    if func_or_name is not None and not isinstance(func_or_name, str):
        return decorate(func_or_name, _template(None, _locks, lock_kwargs))
    if isinstance(func_or_name, str):
        if "lock_name" in lock_kwargs:
            raise LockConfigError("the name of the lock is given twice")
        lock_kwargs["lock_name"] = func_or_name
    template = _template(lock_kwargs.pop("lock_name", None), _locks, lock_kwargs)
    return functools.partial(decorate, template=template)


def _template(name: str | None, locks: Locks | None, words: Mapping[str, Any]) -> lock:
    return lock(name, **words)._on(locks)


class DBLock:
    """A lock without a block: acquired and released by hand, and not renewed in between.

    ``locked_by`` as for `lock`. Two objects exclude each other, within one thread too.
    """

    def __init__(self, name: str, locked_by: str | None = None) -> None:
        self._name = name
        self._locked_by = locked_by
        self._guard: _core.Guard | None = None

    @property
    def name(self) -> str:
        return self._name

    def acquire(self, lock_ttl: Seconds | None = 10) -> bool:
        """Try once; for ``lock_ttl`` seconds, ``None``: without end. Whether it is ours.

        Where this object holds it already, it holds it for ``lock_ttl`` seconds from now. A
        ``lock_ttl`` of zero or less lets it expire at once.
        """
        conf = _settings.django()
        ttl = None
        if lock_ttl is not None:
            ttl = _names.seconds("lock_ttl", lock_ttl, allowed=TTL)
        at_once = ttl is not None and ttl <= 0
        if self._guard is not None:
            if at_once:
                self.release()
                return True
            try:
                wait(self._guard.extend(ttl_of(ttl)))
                logger.debug("lock %s acquired/renewed", self._name)
                return True
            except LockLost:
                self._guard = None
        _log.follow()
        guard = wait(
            conf.locks()._core.acquire(
                self._name,
                ttl=10.0 if at_once else ttl_of(ttl),
                wait=0.0,
                auto_renew=False,
                holder=self._locked_by,
            )
        )
        if guard is None:
            return False
        logger.debug("lock %s acquired/renewed", self._name)
        if guard.loss() is not None:
            return False
        if at_once:
            wait(guard.release())
        else:
            self._guard = guard
        return True

    def release(self) -> None:
        """Release it, if this object holds it."""
        logger.debug("releasing lock %s", self._name)
        guard, self._guard = self._guard, None
        if guard is None:
            return
        try:
            wait(guard.release())
        except LockLost:
            return
        logger.debug("released lock %s", self._name)
