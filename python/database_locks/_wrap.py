"""Functions, coroutines, generators and commands that run under a lock."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

from . import _naming, _tasks
from .cli.formatting import on_one_line
from .exceptions import LockConfigError, LockException, LockTimeout, LockUnavailable

if TYPE_CHECKING:
    from ._held import Held
    from ._lock import lock

logger = logging.getLogger("database_locks.locks")

Scopes = Callable[[tuple[Any, ...], dict[str, Any]], "lock"]
"""Makes the lock for a call with these arguments."""

#: Exit codes of a command that does not get its lock, the same as those of ``dblock run``.
UNAVAILABLE = 69
BUSY = 75


def decorate(func: Any, template: lock, naming: Callable[..., str] | None = None) -> Any:
    if isinstance(func, classmethod | staticmethod):
        return type(func)(decorate(func.__func__, template, naming))
    if inspect.isclass(func):
        return _decorate_command(func, template, naming)
    if not callable(func):
        raise TypeError(f"{func!r} cannot be locked: it is not callable")
    made = _wrapped(func, _scopes(func, template, naming))
    if getattr(func, "__name__", "") == "handle":
        made = _handling(made)
    made.database_lock = template
    return made


def _scopes(func: Any, template: lock, naming: Callable[..., str] | None) -> Scopes:
    """The function that makes the lock for a call of ``func``."""
    if naming is not None:
        return lambda args, kwargs: template._for_call(_naming.called(naming, args, kwargs))
    name = template._name
    fields = None if name is None else _naming.fields(name, func)
    if name is not None and fields is not None:
        return lambda args, kwargs: template._for_call(fields(args, kwargs))
    known = _naming.name_of_function(func) if name is None else _naming.unescaped(name)
    return lambda args, kwargs: template._for_call(known)


def _decorate_command(command: Any, template: lock, naming: Callable[..., str] | None) -> Any:
    base = sys.modules.get("django.core.management.base")
    if base is None or not issubclass(command, base.BaseCommand):
        raise NotImplementedError("only django BaseCommand subclasses are supported for now")
    scopes = _scopes(command.handle, template, naming)
    if template._name is None and naming is None:
        own = _naming.name_of(command)
        scopes = lambda args, kwargs: template._for_call(own)  # noqa: E731
    command.handle = _handling(_wrapped(command.handle, scopes))
    return command


def _handling(handle: Any) -> Any:
    """For a method of a management command: if it does not get its lock, ``manage.py`` shows one
    line.
    """
    if inspect.iscoroutinefunction(handle) or inspect.isgeneratorfunction(handle):
        return handle

    @functools.wraps(handle)
    def new_handle(*args: Any, **kwargs: Any) -> Any:
        try:
            return handle(*args, **kwargs)
        except (LockTimeout, LockUnavailable) as error:
            base = sys.modules.get("django.core.management.base")
            if base is None or not args or not isinstance(args[0], base.BaseCommand):
                raise
            raise _command_error(error, base.CommandError) from error

    return new_handle


def _command_error(error: LockException, command_error: type[Exception]) -> LockException:
    """The same error as a `CommandError`, which ``manage.py`` shows in one line without a
    traceback.
    """
    kind = type(error)
    if issubclass(kind, command_error):
        return error

    def text(self: LockException) -> str:
        return on_one_line(kind.__str__(self))

    both = type(kind.__name__, (kind, command_error), {"__str__": text})
    made: LockException = both(*error.args)
    vars(made).update(vars(error))
    vars(made)["returncode"] = BUSY if isinstance(error, LockTimeout) else UNAVAILABLE
    return made


class Skip(Exception):
    """Another holder has the lock, and ``on_busy="skip"``: the function is not called."""


def _wrapped(func: Callable[..., Any], scopes: Scopes) -> Any:
    if inspect.isasyncgenfunction(func):
        return _async_generator(func, scopes)
    if inspect.iscoroutinefunction(func):
        return _coroutine(func, scopes)
    if inspect.isgeneratorfunction(func):
        return _generator(func, scopes)

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            with scopes(args, kwargs):
                return func(*args, **kwargs)
        except Skip as skipped:
            return _skipped(skipped)

    return wrapper


def _skipped(skipped: Skip) -> None:
    logger.info("skipped: %s", skipped.__cause__)


def _coroutine(func: Callable[..., Awaitable[Any]], scopes: Scopes) -> Any:
    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            async with scopes(args, kwargs):
                return await func(*args, **kwargs)
        except Skip as skipped:
            return _skipped(skipped)

    return wrapper


def _generator(func: Callable[..., Generator[Any, Any, Any]], scopes: Scopes) -> Any:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        try:
            with scopes(args, kwargs) as held:
                return (yield from _paused_between(func(*args, **kwargs), held))
        except Skip as skipped:
            return _skipped(skipped)

    return wrapper


def _paused_between(body: Generator[Any, Any, Any], held: Held) -> Generator[Any, Any, Any]:
    """Run a generator step by step. Between two steps other code runs in this thread, which a loss
    must not interrupt."""
    step: Callable[[Any], Any] = body.send
    value: Any = None
    try:
        while True:
            if held.lost and held._exception.mark_delivered():
                value, step = held._error(), body.throw
            try:
                item = step(value)
            except StopIteration as done:
                return done.value
            held._exception.pause()
            try:
                value, step = (yield item), body.send
            except GeneratorExit:
                raise
            except BaseException as thrown:  # noqa: BLE001 - the body gets it
                value, step = thrown, body.throw
            finally:
                held._exception.resume()
    finally:
        body.close()


def _async_generator(func: Callable[..., AsyncGenerator[Any, Any]], scopes: Scopes) -> Any:
    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        try:
            if _tasks.trio_task() is not None:
                raise LockConfigError(
                    "an asynchronous generator cannot be locked under trio, which allows no cancel "
                    "scope around a yield: use `async with lock(…)` around the loop that reads it"
                )
            async with scopes(args, kwargs) as held:
                body = func(*args, **kwargs)
                try:
                    step: Callable[[Any], Awaitable[Any]] = body.asend
                    value: Any = None
                    while True:
                        held._task = _tasks.current()
                        if held.lost and held._exception.mark_delivered():
                            value, step = held._error(), body.athrow
                        try:
                            item = await step(value)
                        except StopAsyncIteration:
                            return
                        held._exception.pause()
                        try:
                            value, step = (yield item), body.asend
                        except GeneratorExit:
                            raise
                        except BaseException as thrown:  # noqa: BLE001 - the body gets it
                            value, step = thrown, body.athrow
                        finally:
                            held._exception.resume()
                finally:
                    await body.aclose()
        except Skip as skipped:
            _skipped(skipped)

    return wrapper
