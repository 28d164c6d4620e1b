"""`lock`, `locked` and `DBLock`: the names and meanings of django-database-locks 0.5."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from . import _busy, _core, _log, _loss, _names, _owner, _settings, _transactions, _wanted
from ._held import Held, held_here, is_of_this_process, kept_here
from ._wait import until, until_async
from ._wanted import NOTSET, Seconds, Wanted
from ._wrap import Skip, decorate
from .exceptions import (
    LockConfigError,
    LockException,
    LockLost,
    LockReleased,
    LockTimeout,
    LockUnavailable,
)

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

    from ._manager import Locks
    from ._typing import Attempt, Decorator, Options, SkippingDecorator

__all__ = [
    "NOTSET",
    "DBLock",
    "Held",
    "LockConfigError",
    "LockException",
    "LockLost",
    "LockReleased",
    "LockTimeout",
    "LockUnavailable",
    "is_locked",
    "lock",
    "locked",
]

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])


class lock(_core.Scope):
    """A lock as a context manager (``with`` and ``async with``) and as a decorator.

    :param lock_name: unique name in the database, 1 to 255 characters; by default that of what is
        decorated, or of the calling function. Of what is decorated it may have fields that are filled
        from the arguments of the call: ``"tenant-{tenant_id}"``
    :param timeout: how many seconds to wait; 0 (the default): without limit. On a cluster with
        several primaries any wait, one try too, goes on where the holder looks dead, until its lease
        has been watched for its length
    :param lock_ttl: seconds after which the lock is free again if its holder dies; ``None``: never
    :param locked_by: owner id. Another process that comes with the same one takes the lock over at
        once; within a process it excludes like any other
    :param auto_renew: renew the lease in the background for as long as the block runs
    :param retry: the longest pause between two tries, in seconds; ``None`` or 0: try once
    :param lost_lock_cb: called with two arguments, as a signal handler is, when the lock is lost,
        instead of raising `LockLost` in the block. In the main thread if the block is there, in the
        thread of the event loop for a task, in a greenlet of its own for a greenlet, else in a thread
        of its own
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
    :param ticket: resume a lock that another program handed over (`Held.hand_over`,
        ``dblock acquire``) instead of acquiring one; its name is in the ticket. `LockLost` where it
        was resumed already, or its lease has ended. Never waits

    Numbers of seconds may be `datetime.timedelta`. In one thread, task or greenlet the same lock
    nests: only the outermost block frees it. ``as held`` gives a `Held`.

    Raises `LockTimeout`, `LockLost`, `LockUnavailable`, and `LockConfigError` for arguments that are
    out of range, for a wait that would stop the event loop of this thread, and for one that could
    never end since the holder waits for this very thread or task.
    """

    def __init__(
        self,
        lock_name: str | None = None,
        timeout: Seconds | None = 0,
        lock_ttl: Seconds | None = NOTSET,
        locked_by: str | None = None,
        auto_renew: bool = True,
        retry: Seconds | None = 0.5,
        lost_lock_cb: Callable[[int, Any], Any] | None = None,
        lock_ttl_renew: Seconds | None = NOTSET,
        *,
        on_busy: Literal["wait", "raise", "skip"] = "wait",
        until: Literal["commit", "exit"] = "commit",
        until_using: str | None = None,
        meta: Mapping[str, Any] | None = None,
        ticket: str | None = None,
    ) -> None:
        """See the class."""
        if ticket is not None:
            lock_name = _name_of_ticket(ticket, lock_name)
        if lock_name is not None and not isinstance(lock_name, str):
            raise LockConfigError(
                f"`lock_name` is {lock_name!r}, must be a text; to decorate a function without "
                "arguments use @locked"
            )
        _wanted.one_of("on_busy", on_busy, ("wait", "skip", "raise"))
        _wanted.one_of("until", until, ("exit", "commit"))
        self._name = None if lock_name is None else _wanted.text("lock_name", lock_name)
        self._caller = _names.caller(1) if lock_name is None else None
        self._timeout = _wanted.timeout_of(timeout)
        self._retry = _wanted.retry_of(retry)
        self._lock_ttl = lock_ttl if lock_ttl is NOTSET else _wanted.ttl_of(lock_ttl)
        self._renew: float | None = NOTSET
        if lock_ttl_renew is not NOTSET:
            self._renew = _wanted.renew_of(lock_ttl_renew)
        self._locked_by = None if locked_by is None else _wanted.text("locked_by", locked_by)
        self._auto_renew = _wanted.flag("auto_renew", auto_renew)
        self._callback = _wanted.callback_of(lost_lock_cb)
        self._on_busy: str = on_busy
        self._until: str = until
        self._until_using = until_using
        self._meta = _wanted.meta_of(meta)
        self._ticket = ticket
        self._locks: Locks | None = None
        self._decorates = False
        self._optional = False
        self._acquired: Held | None = None

    if TYPE_CHECKING:

        def __enter__(self) -> Held: ...
        async def __aenter__(self) -> Held: ...
        def __exit__(
            self,
            kind: type[BaseException] | None,
            raised: BaseException | None,
            traceback: TracebackType | None,
            /,
        ) -> None: ...
        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            raised: BaseException | None,
            traceback: TracebackType | None,
            /,
        ) -> None: ...

    else:

        def __new__(cls, *args: Any, **words: Any) -> lock:
            _wanted.refuse_foreign(words)
            return super().__new__(cls)

    def __call__(self, func: F) -> F:
        """Decorate: `locked`."""
        return cast("F", decorate(func, self))

    def try_(self) -> Attempt:
        """A block that runs without the lock if another holder has it: ``as held`` gives ``None`` then.

        One try, or as many as ``timeout`` allows.

        >>> import database_locks
        >>> locks = database_locks.connect("memory:")
        >>> with locks.lock("report").try_() as held:
        ...     if held is not None:
        ...         print("held")
        held
        """
        twin = self._twin()
        twin._optional = True
        if twin._on_busy == "wait":
            twin._on_busy = "raise"
        return cast("Attempt", twin)

    def acquire(self) -> Held:
        """Acquire without a block, and renew until `release`.

        For a lock that is released elsewhere: in another method, thread or task. It excludes the
        thread that has acquired it like any other, and nests nowhere. No exception tells of a loss:
        ``lost_lock_cb`` does, `Held.lost`, and the `LockLost` of `release`. If this object is dropped
        without a release, the lease is renewed no more, and the lock stays held until it ends; at the
        normal end of the process it is free. Raises as a block does.
        """
        self._may_acquire()
        entry = _core.Entry()
        try:
            wanted = self._resolve()
            kept = kept_here(wanted.key)
            if kept is not None and self._ticket is None:
                self._acquired = kept._resume_detached()
                return kept
            guard = None if wanted.locks is None else self._acquire(entry, wanted)
            return self._has_acquired(entry, guard, wanted)
        except BaseException:
            entry.give_back()
            raise

    def release(self) -> None:
        """Release what `acquire` has acquired; does nothing where that was released already.

        Inside of a transaction it is kept until that has ended: see ``until``. Raises `LockLost` if it was lost.
        """
        held, self._acquired = self._acquired, None
        if held is not None:
            held.release()

    async def aacquire(self) -> Held:
        """`acquire` for a task."""
        self._may_acquire()
        entry = _core.Entry()
        try:
            wanted = self._resolve()
            kept = kept_here(wanted.key)
            if kept is not None and self._ticket is None:
                self._acquired = kept._resume_detached()
                return kept
            guard = None if wanted.locks is None else await self._aacquire(entry, wanted)
            return self._has_acquired(entry, guard, wanted)
        except BaseException:
            entry.give_back()
            raise

    async def arelease(self) -> None:
        """`release` for a task."""
        held, self._acquired = self._acquired, None
        if held is not None:
            await held.arelease()

    def _may_acquire(self) -> None:
        self._may_skip()
        held = self._acquired
        if held is not None and held._detached and not held._ended:
            raise LockConfigError(
                f"lock `{held.name}` is acquired by this object already: release it first, "
                "or use another lock(…)"
            )

    def _has_acquired(self, entry: _core.Entry, guard: _core.Guard | None, wanted: Wanted) -> Held:
        held = Held(wanted.name, guard, wanted, entry.alarm)
        held._detach()
        if guard is not None:
            guard.stay()
        self._acquired = held
        entry.keep()
        return held

    def _on(self, locks: Locks | None, caller: _names.Caller | None = None) -> lock:
        self._locks = locks
        self._caller = caller
        return self

    def _twin(self) -> lock:
        twin = lock.__new__(lock)
        twin.__dict__.update(self.__dict__)
        twin._acquired = None
        return twin

    def _for_call(self, name: str) -> lock:
        """The same for one call of what it decorates."""
        twin = self._twin()
        twin._name = name
        twin._decorates = True
        return twin

    def _resolve(self) -> Wanted:
        name = self._name or ""
        if self._name is None and self._caller is not None:
            self._name = name = _names.name_of_caller(self._caller)
        locks, ttl, renew = self._locks, self._lock_ttl, self._renew
        if locks is None:
            conf = _settings.django()
            locks = conf.locks() if conf.enabled() else None
            if ttl is NOTSET:
                ttl = _wanted.ttl_of(conf.default_ttl(), "DATABASE_LOCKS_DEFAULT_TTL")
            if renew is NOTSET:
                what = "DATABASE_LOCKS_DEFAULT_TTL_RENEW"
                renew = _wanted.renew_of(conf.default_ttl_renew(), what)
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
            renew_every=_wanted.renew_every(ttl, renew) if self._auto_renew else None,
            auto_renew=self._auto_renew,
            holder=self._locked_by,
            meta=self._meta,
            on_busy=self._on_busy,
            until=self._until,
            until_using=self._until_using,
            callback=self._callback,
            status_file=_settings.status_file(),
        )

    def _already(self, wanted: Wanted, entry: _core.Entry) -> Held | None:
        """Without asking the database: switched off, or held by this thread or task already."""
        if wanted.locks is None:
            logger.warning(
                "database_locks currently disabled in settings, adjust DATABASE_LOCKS_ENABLED if "
                "not intended"
            )
            return Held(wanted.name, None, wanted, entry.alarm)
        if self._ticket is not None:
            return None
        held = held_here(wanted.key)
        return None if held is None else held._enter_again()

    def _ask(self, wanted: Wanted) -> _core.Pending[_core.Guard | None]:
        if wanted.locks is None:
            raise LockConfigError("locks are switched off")
        _log.follow()
        logger.info("acquiring lock %s", wanted.name)
        _settings.status(wanted.status_file, "1")
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
        given back by the next `_core.Entry.ask`. Raises `LockLost` where the wait is over.
        """
        lost = LockLost(name=wanted.name, token=guard.token, **loss)
        left = None
        if wanted.wait is not None:
            left = max(0.0, wanted.wait - (time.monotonic() - began))
        if left == 0.0 or self._ticket is not None:
            raise lost
        return replace(wanted, wait=left)

    def _begin(self, guard: _core.Guard, wanted: Wanted, entry: _core.Entry) -> Held:
        held = Held(wanted.name, guard, wanted, entry.alarm)
        held._start()
        return held

    def _was_acquired(self, wanted: Wanted) -> None:
        """Before the last look at the guard: a log handler may take its time."""
        logger.debug("lock %s acquired/renewed", wanted.name)
        _settings.status(wanted.status_file, "2")

    def _may_skip(self) -> None:
        if self._on_busy == "skip" and not self._decorates:
            raise LockConfigError(
                '`on_busy="skip"` is for decorated functions: a with block cannot be skipped; use '
                "lock(…).try_(), which gives None"
            )

    def _not_acquired(self, wanted: Wanted, error: BaseException) -> None:
        _settings.status(wanted.status_file, "0")
        if isinstance(error, LockTimeout) and not isinstance(error, LockConfigError):
            error.in_this_process = is_of_this_process(wanted.name, error.holder)
            if self._on_busy == "skip":
                raise Skip from error
            if error.timeout is not None:
                # What was allowed rather than what it took.
                error.timeout = wanted.timeout
                error.args = (error.args[0], wanted.timeout)

    def _acquire(self, entry: _core.Entry, wanted: Wanted) -> _core.Guard:
        asked, began = wanted, time.monotonic()
        if self._until != "exit":
            _transactions.check_in_task(self._until_using)
        stops_loop = wanted.wait != 0.0 and _owner.runs_event_loop() and not _busy.may_stop_loop()
        while True:
            if stops_loop:
                # A lock that is free takes one round trip.
                asked = replace(asked, wait=0.0)
            pending = self._ask(asked)
            entry.ask(pending)
            until(pending, _busy.looks(wanted, asked, _busy.QUICK if stops_loop else None))
            guard = entry.take()
            if guard is None:
                if stops_loop:
                    _busy.would_stop_loop(wanted, _busy.info(wanted))
                raise _busy.busy(wanted, _busy.info(wanted))
            self._was_acquired(wanted)
            loss = guard.loss()
            if loss is None:
                return guard
            asked = self._ask_again(wanted, began, guard, loss)

    async def _aacquire(self, entry: _core.Entry, wanted: Wanted) -> _core.Guard:
        asked, began = wanted, time.monotonic()
        if self._until != "exit":
            await _transactions.acheck(self._until_using)
        while True:
            pending = self._ask(asked)
            entry.ask(pending)
            await until_async(pending, _busy.looks(wanted, asked, None))
            guard = entry.take()
            if guard is None:
                raise _busy.busy(wanted, await _busy.ainfo(wanted))
            self._was_acquired(wanted)
            loss = guard.loss()
            if loss is None:
                return guard
            asked = self._ask_again(wanted, began, guard, loss)

    def _enter(self, entry: _core.Entry) -> Held | None:
        """The part of `__enter__` that may be interrupted: see `_core.Scope`."""
        self._may_skip()
        wanted = self._resolve()
        _settings.status(wanted.status_file, "0")
        held = self._already(wanted, entry)
        if held is not None:
            return held
        try:
            guard = self._acquire(entry, wanted)
        except BaseException as error:
            self._not_acquired(wanted, error)
            if self._optional and type(error) is LockTimeout:
                return None
            raise
        return self._begin(guard, wanted, entry)

    async def _aenter(self, entry: _core.Entry) -> Held | None:
        self._may_skip()
        wanted = self._resolve()
        _settings.status(wanted.status_file, "0")
        held = self._already(wanted, entry)
        if held is not None:
            return held
        try:
            guard = await self._aacquire(entry, wanted)
        except BaseException as error:
            self._not_acquired(wanted, error)
            if self._optional and type(error) is LockTimeout:
                return None
            raise
        return self._begin(guard, wanted, entry)

    def _leave(self, held: Held, raised: BaseException | None) -> bool:
        """The part of `__exit__` that may be interrupted; whether the lock is kept."""
        raised = held._left(raised)
        if held._stays(raised):
            return True
        held._finish(raised)
        return False

    async def _aleave(self, held: Held, raised: BaseException | None) -> bool:
        raised = held._left(raised)
        if held._stays(raised):
            return True
        await held._afinish(raised)
        return False


# For `help`, which would show that of `__new__`.
lock.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    functools.partial(lock.__init__, cast("lock", None))
)


def _name_of_ticket(ticket: str, lock_name: str | None) -> str:
    named = _core.ticket_name(_wanted.ticket(ticket))
    if lock_name not in (None, named):
        raise LockConfigError(f"`lock_name` is {lock_name!r}, and the ticket is for {named!r}")
    return named


@overload
def locked(func: F, /) -> F: ...
@overload
def locked(
    lock_name: str | Callable[..., str] | None = None,
    *,
    on_busy: Literal["skip"],
    **options: Unpack[Options],
) -> SkippingDecorator: ...
@overload
def locked(
    lock_name: str | Callable[..., str] | None = None,
    *,
    on_busy: Literal["wait", "raise"] = "wait",
    **options: Unpack[Options],
) -> Decorator: ...
def locked(func_or_name: Any = None, /, **options: Any) -> Any:
    """Run a function, or a Django management command, under a lock.

    ``@locked``, ``@locked("name")`` and ``@locked(timeout=5, …)``, with the arguments of `lock`; the
    name is by default ``module.qualname`` of what is decorated. For functions, coroutine functions,
    generators of both kinds (the lock covers the body), methods, and subclasses of Django's
    ``BaseCommand``. Other classes: `NotImplementedError`.

    A name may have fields, which the arguments of each call fill: ``@locked("tenant-{tenant_id}")``.
    A brace is written twice, ``{{``. For more than that ``lock_name=`` takes a function that is called
    with the same arguments and returns the name.
    """
    return make_locked(None, func_or_name, options)


def make_locked(locks: Locks | None, func_or_name: Any, options: dict[str, Any]) -> Any:
    if func_or_name is not None and not isinstance(func_or_name, str):
        return decorate(func_or_name, lock(**options)._on(locks))
    if isinstance(func_or_name, str):
        if "lock_name" in options:
            raise LockConfigError("the name of the lock is given twice")
        options["lock_name"] = func_or_name
    name = options.pop("lock_name", None)
    naming = name if callable(name) else None
    template = lock(None if naming is not None else name, **options)._on(locks)

    def decorator(func: Any) -> Any:
        return decorate(func, template, naming)

    return decorator


def is_locked(lock_name: str) -> bool:
    """Whether any holder has this lock now, by the clock of the database of the project.

    It may be otherwise by the time that this returns. Raises `LockUnavailable`, and `LockConfigError`
    for a bad name.
    """
    locks: Locks = _settings.django().locks()
    return locks.is_locked(lock_name)


from ._dblock import DBLock  # noqa: E402 - where 0.5 has it
