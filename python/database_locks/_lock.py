"""`lock`: the context manager."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from . import (
    _arguments,
    _contention,
    _core,
    _logging,
    _naming,
    _project,
    _shared,
    _status_file,
    _tasks,
)
from ._arguments import NOTSET, AcquireRequest, Seconds
from ._held import Held
from ._registry import held_here, is_of_this_process, kept_here
from ._wait import wait_until_done, wait_until_done_async
from ._wrap import Skip, decorate
from .django import open_transactions, signal_dispatch, transactions
from .exceptions import LockAlreadyRan, LockConfigError, LockLost, LockTimeout

if TYPE_CHECKING:
    from types import TracebackType

    from ._client import Client
    from ._typing import Attempt, Loss

logger = logging.getLogger("database_locks.locks")
F = TypeVar("F", bound=Callable[..., Any])
_permit_numbers = itertools.count(1)


class lock(_core.Scope):
    """A lock as a context manager (``with`` and ``async with``) and as a decorator.

    :param lock_name: unique name in the database, 1 to 255 characters; by default that of the decorated
        or calling function. The name of a decorator may have fields, which the arguments of each call
        fill: ``"tenant-{tenant_id}"``
    :param timeout: how many seconds to wait; 0 (the default): without limit. On a cluster with
        several primaries every wait, even a single try, goes on while the holder looks dead, until its
        lease was observed for its whole length
    :param lock_ttl: seconds until the lock is free again if its holder dies; ``None``: never
    :param locked_by: owner id. Another process with the same id takes the lock over at once. Within
        one process the id makes no difference
    :param auto_renew: renew the lease in the background while the block runs
    :param retry: the longest pause between two tries, in seconds; ``None`` or 0: try once
    :param lost_lock_cb: called with two arguments, like a signal handler, when the lock is lost,
        instead of raising `LockLost` in the block. Called in the main thread if the block runs there, in
        the thread of the event loop for a task, in a new greenlet for a greenlet, else in a new thread
    :param lock_ttl_renew: renew at least this many seconds before the lease ends; by default when a
        third of it has passed
    :param on_busy: ``"wait"``: wait for ``timeout``, then raise `LockTimeout`; ``"raise"``: the same,
        but a ``timeout`` of 0 is one try; ``"skip"`` (decorated functions only): as ``"raise"``, but
        the function is not called and ``None`` returned, also where ``once_per`` refuses the lock
    :param at_least: for how many seconds from its grant on the lock cannot be acquired again, even if
        it is released before. It then *rests*: no holder has it, and only a release by force ends
        the rest. For a short job that several machines start at about the same time
    :param once_per: acquire the lock only once in each period of so many seconds, less a tolerance of
        a tenth of it, at most a minute. If its latest grant began more recently, raises
        `LockAlreadyRan`, a `LockTimeout`, without waiting. A grant counts whether its block succeeded
        or not
    :param shared: share the lock with all other holders that share it, and with no exclusive one (a
        *reader-writer lock*). An exclusive caller goes first: once it has asked, no further shared one
        gets in, and it waits for those that are there. ``locked_by`` is then a name for lists and
        messages, and nothing else: no hold is taken over. Not for a lock that legacy
        (django-database-locks 0.5) uses, which does not see shared holders
    :param until: ``"commit"`` (the default): if the block ends within a Django transaction
        (``ATOMIC_REQUESTS``, ``transaction.atomic()``), the lock is kept until the outermost open
        transaction of the thread has committed or rolled back. If the lock is lost before that, the
        transaction is rolled back and raises `LockLost`. ``"exit"``: released at the end of the block
    :param until_using: the alias in ``DATABASES`` whose transactions count for ``until``; by default
        all
    :param meta: a mapping, written as JSON, that ``dblock show`` and the admin page display
    :param ticket: resume a lock that another program handed over (`Held.hand_over`,
        ``dblock acquire``) instead of acquiring one. The ticket has the name. Raises `LockLost` if the
        lock was resumed already or its lease has ended. Never waits

    Numbers of seconds may be `datetime.timedelta`. In one thread, task or greenlet the same lock
    nests: only the outermost block releases it. ``as held`` gives a `Held`.

    Raises `LockTimeout`, `LockLost`, `LockUnavailable`, and `LockConfigError` for arguments that
    are out of range, for a wait that would stop the event loop of this thread, and for one that
    could never end because the holder waits for this thread or task.
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
        at_least: Seconds = 0,
        once_per: Seconds | None = None,
        shared: bool = False,
        until: Literal["commit", "exit"] = "commit",
        until_using: str | None = None,
        meta: Mapping[str, Any] | None = None,
        ticket: str | None = None,
    ) -> None:
        """See the class."""
        self._is_permit = False
        """Whether it does not nest, since other blocks of the same name acquire other permits."""
        is_shared = False
        if ticket is not None:
            lock_name, self._is_permit, is_shared = _parts_of_ticket(ticket, lock_name)
            _refuse_with_ticket(at_least=at_least or None, once_per=once_per)
        if lock_name is not None and not isinstance(lock_name, str):
            raise LockConfigError(
                f"`lock_name` is {lock_name!r}, must be a text; to decorate a function without "
                "arguments use @locked"
            )
        _arguments.one_of("on_busy", on_busy, ("wait", "skip", "raise"))
        _arguments.one_of("until", until, ("exit", "commit"))
        self._name = None if lock_name is None else _arguments.text("lock_name", lock_name)
        self._caller = _naming.caller(1) if lock_name is None else None
        self._timeout = _arguments.timeout_of(timeout)
        self._retry = _arguments.retry_of(retry)
        self._lock_ttl = lock_ttl if lock_ttl is NOTSET else _arguments.ttl_of(lock_ttl)
        self._renew: float | None = NOTSET
        if lock_ttl_renew is not NOTSET:
            self._renew = _arguments.renew_of(lock_ttl_renew)
        self._locked_by = None if locked_by is None else _arguments.text("locked_by", locked_by)
        self._auto_renew = _arguments.flag("auto_renew", auto_renew)
        self._callback = _arguments.callback_of(lost_lock_cb)
        self._on_busy: str = on_busy
        self._at_least = _arguments.at_least_of(at_least)
        self._once_per = _arguments.once_per_of(once_per)
        self._shared = _arguments.flag("shared", shared) or is_shared
        if shared:
            _shared.refuse_options(self._at_least, self._once_per, ticket)
        self._until: str = until
        self._until_using = until_using
        self._meta = _arguments.meta_of(meta)
        self._ticket = ticket
        self._client: Client | None = None
        self._decorates = False
        self._optional = False
        self._acquired: Held | None = None

    _current_task = staticmethod(_tasks.current)

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
            _arguments.refuse_foreign(words)
            return super().__new__(cls)

    def __call__(self, func: F) -> F:
        """Decorate a function, as `locked` does."""
        return cast("F", decorate(func, self))

    def try_(self) -> Attempt:
        """A block that also runs if another holder has the lock, or if ``once_per`` refuses it: ``as
        held`` is ``None`` then.

        Tries once, or for ``timeout`` seconds if that is given.

        >>> import database_locks
        >>> locks = database_locks.connect("memory:")
        >>> with locks.lock("report").try_() as held:
        ...     if held is not None:
        ...         print("held")
        held
        """
        copy = self._copy()
        copy._optional = True
        if copy._on_busy == "wait":
            copy._on_busy = "raise"
        return cast("Attempt", copy)

    def acquire(self) -> Held:
        """Acquire without a block, and renew until `release`.

        For a lock that is released elsewhere: in another method, thread or task. It excludes its
        own thread too, and nests nowhere. A loss raises no exception: use ``lost_lock_cb``,
        `Held.lost`, or the `LockLost` of `release`. If this object is dropped without a release,
        renewal stops and the lock stays held until its lease ends. The normal end of the process
        releases it. Raises the errors of a block.
        """
        self._check_not_acquired()
        entry = _core.Entry()
        try:
            request = self._resolve()
            if self._resumes_kept(request):
                return cast("Held", self._acquired)
            guard = None if request.client is None else self._acquire(entry, request)
            return self._make_detached(entry, guard, request)
        except BaseException:
            entry.give_back()
            raise

    def release(self) -> None:
        """Release what `acquire` has acquired. A second call does nothing.

        In a transaction the lock is kept until its end: see ``until``. Raises `LockLost` if the
        lock was lost.
        """
        held, self._acquired = self._acquired, None
        if held is not None:
            held.release()

    async def aacquire(self) -> Held:
        """`acquire` for a task."""
        self._check_not_acquired()
        entry = _core.Entry()
        try:
            request = self._resolve()
            if self._resumes_kept(request):
                return cast("Held", self._acquired)
            guard = None if request.client is None else await self._aacquire(entry, request)
            return self._make_detached(entry, guard, request)
        except BaseException:
            entry.give_back()
            raise

    async def arelease(self) -> None:
        """`release` for a task."""
        held, self._acquired = self._acquired, None
        if held is not None:
            await held.arelease()

    def _check_not_acquired(self) -> None:
        self._check_skip()
        held = self._acquired
        if held is not None and held._detached and not held._ended:
            raise LockConfigError(
                f"lock `{held.name}` is acquired by this object already: release it first, "
                "or use another lock(…)"
            )

    def _resumes_kept(self, request: AcquireRequest) -> bool:
        """Acquire a lock that a transaction of this thread or task keeps, if there is one."""
        if self._ticket is None:
            self._refuse_kept(request)
        kept = kept_here(request.key)
        if kept is None or self._ticket is not None:
            return False
        _shared.refuse_upgrade(request, kept)
        self._acquired = kept._resume_detached()
        return True

    def _make_detached(
        self, entry: _core.Entry, guard: _core.Guard | None, request: AcquireRequest
    ) -> Held:
        held = Held(request.name, guard, request, entry.exception)
        held._detach()
        if guard is not None:
            guard.stay()
        self._acquired = held
        entry.keep()
        return held

    def _on(self, client: Client | None, caller: _naming.Caller | None = None) -> lock:
        self._client = client
        self._caller = caller
        return self

    def _copy(self) -> lock:
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._acquired = None
        return copy

    def _for_call(self, name: str) -> lock:
        """A copy for one call of the decorated function."""
        copy = self._copy()
        copy._name = name
        copy._decorates = True
        return copy

    def _resolve(self) -> AcquireRequest:
        name = self._name or ""
        if self._name is None and self._caller is not None:
            self._name = name = _naming.name_of_caller(self._caller)
        client, ttl, renew = self._client, self._lock_ttl, self._renew
        if client is None:
            conf = _project.conf()
            client = conf.locks() if conf.enabled() else None
            if ttl is NOTSET:
                ttl = _arguments.ttl_of(conf.default_ttl(), "DATABASE_LOCKS_DEFAULT_TTL")
            if renew is NOTSET:
                what = "DATABASE_LOCKS_DEFAULT_TTL_RENEW"
                renew = _arguments.renew_of(conf.default_ttl_renew(), what)
        transactions.install()
        if self._until != "exit":
            open_transactions.check(self._until_using)
        ttl = 10.0 if ttl is NOTSET else ttl
        renew = None if renew is NOTSET else renew
        once = not self._retry or (self._on_busy != "wait" and self._timeout <= 0)
        return AcquireRequest(
            client=client,
            key=(
                _core.generation(),
                id(client),
                name,
                next(_permit_numbers) if self._is_permit else 0,
            ),
            name=name,
            ttl=ttl,
            wait=0.0 if once else self._timeout if self._timeout > 0 else None,
            timeout=self._timeout,
            poll=self._retry or None,
            renew_every=_arguments.renew_every(ttl, renew) if self._auto_renew else None,
            auto_renew=self._auto_renew,
            holder=self._locked_by,
            at_least=self._at_least,
            once_per=self._once_per,
            shared=self._shared,
            meta=self._meta,
            on_busy=self._on_busy,
            until=self._until,
            until_using=self._until_using,
            callback=self._callback,
            status_file=_project.status_file(),
        )

    def _held_already(self, request: AcquireRequest, entry: _core.Entry) -> Held | None:
        """The lock without asking the database: locks are off, or this thread or task holds it
        already.
        """
        if request.client is None:
            logger.warning(
                "database_locks currently disabled in settings, adjust DATABASE_LOCKS_ENABLED if "
                "not intended"
            )
            return Held(request.name, None, request, entry.exception)
        if self._ticket is not None:
            return None
        self._refuse_kept(request)
        held = held_here(request.key)
        if held is None:
            return None
        _shared.refuse_upgrade(request, held)
        return held._enter_again()._part((request.name,))

    def _refuse_kept(self, request: AcquireRequest) -> None:
        """Raise `LockAlreadyRan` if a transaction of this thread or task keeps the lock.

        Its block has ended: unlike one within another block, this one does not belong to it.
        """
        kept = None if request.once_per is None else kept_here(request.key)
        if kept is not None:
            raise LockAlreadyRan(name=request.name, holder=kept.holder, once_per=request.once_per)

    def _ask(self, request: AcquireRequest) -> _core.Pending[_core.Guard | None]:
        if request.client is None:
            raise LockConfigError("locks are switched off")
        _logging.follow()
        what = "lock" if request.permits is None else "a permit of"
        logger.info("acquiring %s %s", what, request.name)
        _status_file.write(request.status_file, "1")
        if self._ticket is not None:
            return request.client._core.resume(
                self._ticket,
                ttl=request.ttl,
                auto_renew=request.auto_renew,
                renew_every=request.renew_every,
            )
        return request.client._core.acquire(
            request.name,
            ttl=request.ttl,
            wait=request.wait,
            auto_renew=request.auto_renew,
            renew_every=request.renew_every,
            holder=request.holder,
            poll=request.poll,
            at_least=request.at_least,
            once_per=request.once_per,
            meta=request.meta,
            permits=request.permits,
            shared=request.shared,
        )

    def _ask_again(
        self, request: AcquireRequest, began: float, guard: _core.Guard, loss: Loss
    ) -> AcquireRequest:
        """The request for the rest of the wait, if the lease ended before the body could begin.

        That happens if the thread waits long for the GIL, or the event loop is busy. The next
        `_core.Entry.ask` gives the grant back. Raises `LockLost` if no time is left.
        """
        lost = LockLost(token=dict(guard.tokens).get(loss["name"]), **loss)
        left = None
        if request.wait is not None:
            left = max(0.0, request.wait - (time.monotonic() - began))
        if left == 0.0 or self._ticket is not None:
            raise lost
        return replace(request, wait=left)

    def _begin(self, guard: _core.Guard, request: AcquireRequest, entry: _core.Entry) -> Held:
        held = Held(request.name, guard, request, entry.exception)
        held._start()
        return held

    def _report_acquired(self, request: AcquireRequest) -> None:
        """Called before the last check of the guard: a log handler may take long."""
        what = "lock" if request.permits is None else "a permit of"
        logger.debug("%s %s acquired/renewed", what, request.name)
        _status_file.write(request.status_file, "2")

    def _check_skip(self) -> None:
        if self._on_busy == "skip" and not self._decorates:
            raise LockConfigError(
                '`on_busy="skip"` is for decorated functions: a with block cannot be skipped; use '
                "lock(…).try_(), which gives None"
            )

    def _not_acquired(self, request: AcquireRequest, error: BaseException) -> None:
        _status_file.write(request.status_file, "0")
        if isinstance(error, LockTimeout) and not isinstance(error, LockConfigError):
            name = error.name or request.name
            error.in_this_process = is_of_this_process(name, error.holder)
            if self._on_busy == "skip":
                raise Skip from error
            if error.timeout is not None:
                # The time that was allowed, not the time that the wait took.
                error.timeout = request.timeout
                error.args = (error.args[0], request.timeout)

    def _acquire(self, entry: _core.Entry, request: AcquireRequest) -> _core.Guard:
        asked, began = request, time.monotonic()
        if self._until != "exit":
            open_transactions.check_in_task(self._until_using)
        stops_loop = (
            request.wait != 0.0 and _tasks.runs_event_loop() and not _contention.may_stop_loop()
        )
        while True:
            if stops_loop:
                # One try: a free lock takes a single round trip.
                asked = replace(asked, wait=0.0)
            pending = self._ask(asked)
            entry.ask(pending)
            wait_until_done(
                pending,
                _contention.check_of_wait(
                    request, asked, _contention.QUICK if stops_loop else None
                ),
            )
            guard = entry.take()
            if guard is None:
                if stops_loop:
                    _contention.would_stop_loop(request, _contention.holder_info(request))
                raise _contention.busy(request, _contention.holder_info(request))
            self._report_acquired(request)
            loss = guard.loss()
            if loss is None:
                return guard
            asked = self._ask_again(request, began, guard, loss)

    async def _aacquire(self, entry: _core.Entry, request: AcquireRequest) -> _core.Guard:
        asked, began = request, time.monotonic()
        if self._until != "exit":
            await open_transactions.acheck(self._until_using)
        while True:
            pending = self._ask(asked)
            entry.ask(pending)
            await wait_until_done_async(pending, _contention.check_of_wait(request, asked, None))
            guard = entry.take()
            if guard is None:
                raise _contention.busy(request, await _contention.aholder_info(request))
            self._report_acquired(request)
            loss = guard.loss()
            if loss is None:
                return guard
            asked = self._ask_again(request, began, guard, loss)

    def _enter(self, entry: _core.Entry) -> Held | None:
        """The part of `__enter__` that an exception may interrupt: see `_core.Scope`."""
        self._check_skip()
        request = self._resolve()
        _status_file.write(request.status_file, "0")
        held = self._held_already(request, entry)
        if held is not None:
            return held
        try:
            guard = self._acquire(entry, request)
        except BaseException as error:
            self._not_acquired(request, error)
            if self._optional and type(error) in (LockTimeout, LockAlreadyRan):
                return None
            raise
        return self._begin(guard, request, entry)

    async def _aenter(self, entry: _core.Entry) -> Held | None:
        self._check_skip()
        request = self._resolve()
        _status_file.write(request.status_file, "0")
        held = self._held_already(request, entry)
        if held is not None:
            return held
        try:
            guard = await self._aacquire(entry, request)
        except BaseException as error:
            self._not_acquired(request, error)
            if self._optional and type(error) in (LockTimeout, LockAlreadyRan):
                return None
            raise
        return self._begin(guard, request, entry)

    def _leave(self, held: Held, raised: BaseException | None) -> bool:
        """The part of `__exit__` that an exception may interrupt. Returns whether the lock is kept."""
        held = held._outermost()
        raised = held._close_scope(raised)
        if held._kept_by_transaction(raised):
            return True
        held._finish(raised)
        return False

    async def _aleave(self, held: Held, raised: BaseException | None) -> bool:
        held = held._outermost()
        raised = held._close_scope(raised)
        if held._kept_by_transaction(raised):
            return True
        await held._afinish(raised)
        return False


signal_dispatch.sender = lock

# `help` would show the signature of `__new__`.
lock.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    functools.partial(lock.__init__, cast("lock", None))
)


def _refuse_with_ticket(**options: Seconds | None) -> None:
    for what, value in options.items():
        if value is not None:
            raise LockConfigError(
                f"`{what}` is given with a `ticket`, must be left out: a lock that is held already "
                "is resumed, and not acquired"
            )


def _parts_of_ticket(ticket: str, lock_name: str | None) -> tuple[str, bool, bool]:
    """The name, and whether it is a permit, and a shared hold."""
    named, slot, is_shared = _core.ticket_parts(_arguments.ticket(ticket))
    if lock_name not in (None, named):
        raise LockConfigError(
            f"`lock_name` is {lock_name!r}, and the ticket is for {named!r}: leave out `lock_name`"
        )
    return named, slot is not None, is_shared
