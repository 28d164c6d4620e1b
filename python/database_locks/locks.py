"""`lock`, `locked` and `DBLock`: the names and meanings of django-database-locks 0.5."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import _core, _log, _loss, _names
from ._wait import current_task, wait, wait_async
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

Seconds = float | timedelta

_Key = tuple[int, int, str]
"""Of which process, of which `Locks`, which name."""


class _Here(threading.local):
    """The locks that this thread holds outside of any task."""

    def __init__(self) -> None:
        self.holds: dict[_Key, Held] = {}


_here = _Here()
_tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], dict[_Key, Held]] = (
    weakref.WeakKeyDictionary()
)


def _holds() -> dict[_Key, Held]:
    # By the task itself and not by its context, which its children copy.
    task = current_task()
    return _here.holds if task is None else _tasks.setdefault(task, {})


class Held:
    """A held lock, as ``with lock(…) as held`` gives it.

    Where locks are switched off (``DATABASE_LOCKS_ENABLED``) ``token`` is ``None`` and it is never
    lost.
    """

    def __init__(self, name: str, guard: _core.Guard | None, wanted: _Wanted) -> None:
        self.name = name
        self._guard: Any = guard
        self._wanted = wanted
        self._callback = wanted.callback
        self._task = current_task()
        self._alarm = _core.Alarm()
        self._holds = _holds()
        self._depth = 1
        self._ended = False
        self._cancelled = False
        self._loss: tuple[str, str] | None = None

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
        return self._loss is not None or (not self._ended and self._guard.lost_reason() is not None)

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
            self._told(lambda: wait(self._guard.extend(_ttl(lock_ttl))))

    async def aextend(self, lock_ttl: Seconds | None) -> None:
        """`extend` for a task."""
        if self._guard is not None:
            await wait_async(self._guard.extend(_ttl(lock_ttl)))

    def hand_over(self) -> str | None:
        """Stop renewing, and answer with the ticket by which somebody else goes on with it.

        It stays held until its present lease ends; the end of the block then releases nothing.
        """
        if self._guard is None:
            return None
        ticket: str | None = self._guard.hand_over()
        self._forget()
        return ticket

    def _told(self, ask: Callable[[], Any]) -> None:
        """What answers with `LockLost` has told the body."""
        try:
            ask()
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
        if self._wanted.until == "commit" and self._guard is not None:
            from ._atomic import at_transaction_end

            return not at_transaction_end(self._finish)
        return True

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
            _status("0")

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
            _status("0")

    def _ends(self) -> bool:
        if self._ended:
            return False
        told = not self._alarm.armed
        self._forget()
        self._told_of_loss = told
        if self._guard is None:
            _status("0")
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
            self._loss = (lost.reason or "expired", lost.detail or "")
        if self._told_of_loss:
            return
        if self._callback is not None:
            self._callback(_loss._signum or 0, None)
            return
        raise _loss.error_of(self) from None


@dataclass(frozen=True)
class _Wanted:
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
    callback: Callable[[int, Any], Any] | None


_TTL = "a number of seconds from 0.1 to 315576000 (ten years), a timedelta, or None (without end)"


def _ttl(value: Seconds | None, what: str = "lock_ttl") -> float | None:
    return None if value is None else _names.seconds(what, value, least=0.1, allowed=_TTL)


class lock(_core.Scope):  # noqa: N801 - the name of 0.5, and that of a context manager
    """A lock as a context manager (``with`` and ``async with``) and as a decorator.

    :param lock_name: unique name in the database, 1 to 255 characters; by default that of what is
        decorated, or of the calling function
    :param timeout: how many seconds to wait; 0 (the default): without limit
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
    :param until: ``"exit"``; or ``"commit"``: inside of ``transaction.atomic()`` the lock is kept
        until the outermost transaction has committed or rolled back
    :param meta: what ``dblock show`` and the admin page are to show besides: a mapping that JSON can
        hold

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
        until: str = "exit",
        meta: Mapping[str, Any] | None = None,
    ) -> None:
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
        self._timeout = 0.0 if timeout is None else _names.seconds(
            "timeout", timeout, allowed="a number of seconds or a timedelta; 0: without limit"
        )
        self._retry = None if retry is None else _names.seconds(
            "retry", retry, least=0, allowed="a number of seconds, or None or 0: try once"
        )
        self._lock_ttl = lock_ttl if lock_ttl is NOTSET else _ttl(lock_ttl)
        self._renew = lock_ttl_renew
        if lock_ttl_renew is not NOTSET and lock_ttl_renew is not None:
            self._renew = _names.seconds(
                "lock_ttl_renew", lock_ttl_renew, least=0, allowed="a number of seconds, at least 0"
            )
        self._locked_by = locked_by
        self._auto_renew = auto_renew
        self._callback = lost_lock_cb
        self._on_busy = on_busy
        self._until = until
        try:
            self._meta = None if meta is None else json.dumps(dict(meta))
        except (TypeError, ValueError) as error:
            raise LockConfigError(f"`meta` cannot be written as JSON: {error}") from None
        self._locks: Locks | None = None
        self._open: list[tuple[Any, Held]] = []

    def _on(self, locks: Locks | None, caller: _names.Caller | None = None) -> lock:
        self._locks = locks
        self._caller = caller
        return self

    def _named(self, name: str) -> lock:
        """The same for one call of what it decorates."""
        twin = lock.__new__(lock)
        twin.__dict__.update(self.__dict__)
        twin._name = self._name or name
        twin._open = []
        return twin

    def __call__(self, func: Any) -> Any:
        """Decorate: `locked`."""
        return _decorate(func, self)

    # What is wanted

    def _resolve(self) -> _Wanted:
        name = self._name
        if name is None:
            assert self._caller is not None
            self._name = name = _names.name_of_caller(self._caller)
        locks, ttl, renew = self._locks, self._lock_ttl, self._renew
        enabled = True
        if locks is None:
            conf = _django()
            enabled = conf.enabled()
            locks = conf.locks() if enabled else None
            if ttl is NOTSET:
                ttl = _ttl(conf.default_ttl(), "DATABASE_LOCKS_DEFAULT_TTL")
            if renew is NOTSET and (renew := conf.default_ttl_renew()) is not None:
                renew = _names.seconds(
                    "DATABASE_LOCKS_DEFAULT_TTL_RENEW",
                    renew,
                    least=0,
                    allowed="a number of seconds, at least 0",
                )
        ttl = 10.0 if ttl is NOTSET else ttl
        renew = None if renew is NOTSET else renew
        once = not self._retry or (self._on_busy != "wait" and self._timeout <= 0)
        return _Wanted(
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
            callback=self._callback,
        )

    def _already(self, wanted: _Wanted) -> Held | None:
        """Without asking the database: switched off, or held by this thread or task already."""
        if wanted.locks is None:
            logger.warning(
                "database_locks currently disabled in settings, adjust DATABASE_LOCKS_ENABLED if "
                "not intended"
            )
            return Held(wanted.name, None, wanted)
        held = _holds().get(wanted.key)
        return None if held is None else held._enter_again()

    def _ask(self, wanted: _Wanted) -> _core.Pending:
        assert wanted.locks is not None
        _log.follow()
        logger.info("acquiring lock %s", wanted.name)
        _status("1")
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

    def _begin(self, guard: _core.Guard, wanted: _Wanted) -> Held:
        held = Held(wanted.name, guard, wanted)
        held._start()
        logger.debug("lock %s acquired/renewed", wanted.name)
        _status("2")
        return held

    def _enters(self, held: Held) -> Held:
        # A task is told where it waits, which cannot be in the middle of leaving a block.
        self._opened(held._alarm if held._task is None and held._depth == 1 else None)
        self._open.append((held._task or threading.get_ident(), held))
        return held

    # with

    def _enter(self) -> Held:
        _status("0")
        wanted = self._resolve()
        held = self._already(wanted)
        if held is None:
            try:
                guard = wait(self._ask(wanted))
                if guard is None:
                    raise _busy(wanted, _info(wanted))
            except BaseException:
                _status("0")
                raise
            held = self._begin(guard, wanted)
        return held

    def __enter__(self) -> Held:
        if self._on_busy == "skip":
            raise LockConfigError(
                '`on_busy="skip"` is for decorated functions: a with block cannot be skipped'
            )
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
        if not held._leaves():
            return False
        try:
            held._finish()
        except LockLost as lost:
            _instead_of(raised, lost)
        _uncancel(held, raised)
        return False

    # async with

    async def _aenter(self) -> Held:
        _status("0")
        wanted = self._resolve()
        held = self._already(wanted)
        if held is None:
            try:
                guard = await wait_async(self._ask(wanted))
                if guard is None:
                    raise _busy(wanted, await _ainfo(wanted))
            except BaseException:
                _status("0")
                raise
            held = self._begin(guard, wanted)
        return held

    async def __aenter__(self) -> Held:
        if self._on_busy == "skip":
            raise LockConfigError(
                '`on_busy="skip"` is for decorated functions: a with block cannot be skipped'
            )
        return self._enters(await self._aenter())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        held = self._pop()
        if not held._leaves():
            return False
        try:
            await held._afinish()
        except LockLost as lost:
            _instead_of(raised, lost)
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


def _busy(wanted: _Wanted, info: Mapping[str, Any] | None) -> LockTimeout:
    return LockTimeout(
        name=wanted.name,
        holder=info and info.get("holder"),
        held_for=info and info.get("held_for"),
    )


def _info(wanted: _Wanted) -> Mapping[str, Any] | None:
    if wanted.on_busy == "skip" or wanted.locks is None:
        return None
    try:
        return wanted.locks.show(wanted.name)
    except LockException:
        return None


async def _ainfo(wanted: _Wanted) -> Mapping[str, Any] | None:
    if wanted.on_busy == "skip" or wanted.locks is None:
        return None
    try:
        return await wanted.locks.ashow(wanted.name)
    except LockException:
        return None


def _django() -> Any:
    """The settings of the project."""
    try:
        from . import conf
    except ImportError as error:
        raise LockConfigError(
            f"there is no Django here ({error}): use database_locks.connect(url).lock(…)"
        ) from error
    if not conf.is_configured():
        raise LockConfigError(
            "Django's settings are not configured: set DJANGO_SETTINGS_MODULE, or use "
            "database_locks.connect(url).lock(…)"
        )
    return conf


def _status(text: str) -> None:
    """Write the status file of the settings, if there is one: '0', '1' trying, '2' held."""
    if "django" not in sys.modules:
        return
    from . import conf

    path = conf.status_file() if conf.is_configured() else None
    if path is None:
        return
    try:
        with open(path, "w", encoding="ascii") as file:  # noqa: PTH123 - any kind of path
            file.write(text)
    except OSError:
        logger.exception("failed to update lock status file %s", path)


def locked(func_or_name: Any = None, *, _locks: Locks | None = None, **lock_kwargs: Any) -> Any:
    """Run a function, or a Django management command, under a lock.

    ``@locked``, ``@locked("name")`` and ``@locked(timeout=5, …)``, with the arguments of `lock`; the
    name is by default ``module.qualname`` of what is decorated. For functions, coroutine functions,
    generators of both kinds (the lock covers the body), methods, and subclasses of Django's
    ``BaseCommand``. Other classes: `NotImplementedError`.
    """
    if func_or_name is not None and not isinstance(func_or_name, str):
        return _decorate(func_or_name, _template(None, _locks, lock_kwargs))
    if isinstance(func_or_name, str):
        if "lock_name" in lock_kwargs:
            raise LockConfigError("the name of the lock is given twice")
        lock_kwargs["lock_name"] = func_or_name
    template = _template(lock_kwargs.pop("lock_name", None), _locks, lock_kwargs)
    return functools.partial(_decorate, template=template)


def _template(name: str | None, locks: Locks | None, words: Mapping[str, Any]) -> lock:
    return lock(name, **words)._on(locks)


def _decorate(func: Any, template: lock) -> Any:
    if isinstance(func, classmethod | staticmethod):
        return type(func)(_decorate(func.__func__, template))
    if inspect.isclass(func):
        return _decorate_command(func, template)
    if not callable(func):
        raise TypeError(f"only what can be called can be locked, and {func!r} cannot")
    inner = func.func if isinstance(func, functools.partial) else func
    name = template._name or _names.name_of(inner)
    return _wrapped(func, lambda: template._named(name))


def _decorate_command(command: type, template: lock) -> type:
    base = sys.modules.get("django.core.management.base")
    if base is None or not issubclass(command, base.BaseCommand):
        raise NotImplementedError("only django BaseCommand subclasses are supported for now")
    name = template._name or _names.name_of(command)
    command.handle = _wrapped(command.handle, lambda: template._named(name))  # type: ignore[attr-defined]
    return command


class _Skip(Exception):
    """Somebody else has it, and then the function is not to be called."""


def _under(scope: lock) -> lock:
    """The scope of one call; `_Skip` instead of `LockTimeout` where the call is to be skipped."""
    if scope._on_busy == "skip":
        return _Skipping.of(scope)
    return scope


class _Skipping(lock):
    @classmethod
    def of(cls, scope: lock) -> lock:
        twin = cls.__new__(cls)
        twin.__dict__.update(scope.__dict__)
        return twin

    def __enter__(self) -> Held:
        try:
            return self._enters(self._enter())
        except LockTimeout as busy:
            raise _Skip from busy

    async def __aenter__(self) -> Held:
        try:
            return self._enters(await self._aenter())
        except LockTimeout as busy:
            raise _Skip from busy


def _wrapped(func: Callable[..., Any], scope: Callable[[], lock]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(func):
        return _async_generator(func, scope)
    if inspect.iscoroutinefunction(func):
        return _coroutine(func, scope)
    if inspect.isgeneratorfunction(func):
        return _generator(func, scope)

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            with _under(scope()):
                return func(*args, **kwargs)
        except _Skip as skipped:
            return _skipped(skipped)

    return wrapper


def _skipped(skipped: _Skip) -> None:
    logger.info("skipped: %s", skipped.__cause__)


def _coroutine(func: Callable[..., Awaitable[Any]], scope: Callable[[], lock]) -> Any:
    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            async with _under(scope()):
                return await func(*args, **kwargs)
        except _Skip as skipped:
            return _skipped(skipped)

    return wrapper


def _generator(func: Callable[..., Generator[Any, Any, Any]], scope: Callable[[], lock]) -> Any:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        try:
            with _under(scope()) as held:
                return (yield from _paused_between(func(*args, **kwargs), held))
        except _Skip as skipped:
            return _skipped(skipped)

    return wrapper


def _paused_between(body: Generator[Any, Any, Any], held: Held) -> Generator[Any, Any, Any]:
    """Its steps one by one: between them other code runs in this thread, which a loss does not
    concern."""
    step, value = body.send, None
    try:
        while True:
            if held.lost and held._alarm.told():
                value, step = _loss.error_of(held), body.throw
            try:
                item = step(value)  # type: ignore[arg-type]
            except StopIteration as done:
                return done.value
            held._alarm.pause()
            try:
                value, step = (yield item), body.send
            except GeneratorExit:
                raise
            except BaseException as thrown:
                value, step = thrown, body.throw
            finally:
                held._alarm.resume()
    finally:
        body.close()


def _async_generator(func: Callable[..., AsyncGenerator[Any, Any]], scope: Callable[[], lock]) -> Any:
    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        try:
            async with _under(scope()) as held:
                body = func(*args, **kwargs)
                try:
                    step, value = body.asend, None
                    while True:
                        held._task = current_task()
                        if held.lost and held._alarm.told():
                            value, step = _loss.error_of(held), body.athrow
                        try:
                            item = await step(value)  # type: ignore[arg-type]
                        except StopAsyncIteration:
                            return
                        held._alarm.pause()
                        try:
                            value, step = (yield item), body.asend
                        except GeneratorExit:
                            raise
                        except BaseException as thrown:
                            value, step = thrown, body.athrow
                        finally:
                            held._alarm.resume()
                finally:
                    await body.aclose()
        except _Skip as skipped:
            _skipped(skipped)

    return wrapper


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
        conf = _django()
        ttl = None
        if lock_ttl is not None:
            ttl = _names.seconds("lock_ttl", lock_ttl, allowed=_TTL)
        at_once = ttl is not None and ttl <= 0
        if self._guard is not None:
            if at_once:
                self.release()
                return True
            try:
                wait(self._guard.extend(_ttl(ttl)))
                logger.debug("lock %s acquired/renewed", self._name)
                return True
            except LockLost:
                self._guard = None
        _log.follow()
        guard = wait(
            conf.locks()._core.acquire(
                self._name,
                ttl=10.0 if at_once else _ttl(ttl),
                wait=0.0,
                auto_renew=False,
                holder=self._locked_by,
            )
        )
        if guard is None:
            return False
        logger.debug("lock %s acquired/renewed", self._name)
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
