"""Functions, coroutines, generators and commands that run under a lock."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

from . import _loss, _names, _show
from ._wait import current_task
from .exceptions import LockException, LockTimeout, LockUnavailable

if TYPE_CHECKING:
    from ._held import Held
    from .locks import lock

logger = logging.getLogger("database_locks.locks")

#: What a command ends with that does not get its lock, as ``dblock run`` does.
UNAVAILABLE = 69
BUSY = 75


def decorate(func: Any, template: lock) -> Any:
    if isinstance(func, classmethod | staticmethod):
        return type(func)(decorate(func.__func__, template))
    if inspect.isclass(func):
        return _decorate_command(func, template)
    if not callable(func):
        raise TypeError(f"only what can be called can be locked, and {func!r} cannot")
    inner = func.func if isinstance(func, functools.partial) else func
    name = template._name or _names.name_of(inner)
    made = _wrapped(func, lambda: template._for_call(name))
    if getattr(func, "__name__", "") == "handle":
        made = _handling(made)
    made.database_lock = template
    return made


def _decorate_command(command: Any, template: lock) -> Any:
    base = sys.modules.get("django.core.management.base")
    if base is None or not issubclass(command, base.BaseCommand):
        raise NotImplementedError("only django BaseCommand subclasses are supported for now")
    name = template._name or _names.name_of(command)
    command.handle = _handling(_wrapped(command.handle, lambda: template._for_call(name)))
    return command


def _handling(handle: Any) -> Any:
    """If it is a method of a command, ``manage.py`` shows one line where it does not get its lock."""
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
            raise _for_a_person(error, base.CommandError) from error

    return new_handle


def _for_a_person(error: LockException, command_error: type[Exception]) -> LockException:
    """The same as an error of which ``manage.py`` shows one line, and no traceback."""
    kind = type(error)
    if issubclass(kind, command_error):
        return error

    def text(self: LockException) -> str:
        return _show.on_one_line(kind.__str__(self))

    both = type(kind.__name__, (kind, command_error), {"__str__": text})
    made: LockException = both(*error.args)
    vars(made).update(vars(error))
    vars(made)["returncode"] = BUSY if isinstance(error, LockTimeout) else UNAVAILABLE
    return made


class Skip(Exception):
    """Somebody else has it, and then the function is not to be called."""


def _wrapped(func: Callable[..., Any], scope: Callable[[], lock]) -> Any:
    if inspect.isasyncgenfunction(func):
        return _async_generator(func, scope)
    if inspect.iscoroutinefunction(func):
        return _coroutine(func, scope)
    if inspect.isgeneratorfunction(func):
        return _generator(func, scope)

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            with scope():
                return func(*args, **kwargs)
        except Skip as skipped:
            return _skipped(skipped)

    return wrapper


def _skipped(skipped: Skip) -> None:
    logger.info("skipped: %s", skipped.__cause__)


def _coroutine(func: Callable[..., Awaitable[Any]], scope: Callable[[], lock]) -> Any:
    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            async with scope():
                return await func(*args, **kwargs)
        except Skip as skipped:
            return _skipped(skipped)

    return wrapper


def _generator(func: Callable[..., Generator[Any, Any, Any]], scope: Callable[[], lock]) -> Any:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        try:
            with scope() as held:
                return (yield from _paused_between(func(*args, **kwargs), held))
        except Skip as skipped:
            return _skipped(skipped)

    return wrapper


def _paused_between(body: Generator[Any, Any, Any], held: Held) -> Generator[Any, Any, Any]:
    """Its steps one by one: between them other code runs in this thread, which a loss does not
    concern."""
    step: Callable[[Any], Any] = body.send
    value: Any = None
    try:
        while True:
            if held.lost and held._alarm.told():
                value, step = _loss.error_of(held), body.throw
            try:
                item = step(value)
            except StopIteration as done:
                return done.value
            held._alarm.pause()
            try:
                value, step = (yield item), body.send
            except GeneratorExit:
                raise
            except BaseException as thrown:  # noqa: BLE001 - the body gets it
                value, step = thrown, body.throw
            finally:
                held._alarm.resume()
    finally:
        body.close()


def _async_generator(
    func: Callable[..., AsyncGenerator[Any, Any]], scope: Callable[[], lock]
) -> Any:
    @functools.wraps(func)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        try:
            async with scope() as held:
                body = func(*args, **kwargs)
                try:
                    step: Callable[[Any], Awaitable[Any]] = body.asend
                    value: Any = None
                    while True:
                        held._task = current_task()
                        if held.lost and held._alarm.told():
                            value, step = _loss.error_of(held), body.athrow
                        try:
                            item = await step(value)
                        except StopAsyncIteration:
                            return
                        held._alarm.pause()
                        try:
                            value, step = (yield item), body.asend
                        except GeneratorExit:
                            raise
                        except BaseException as thrown:  # noqa: BLE001 - the body gets it
                            value, step = thrown, body.athrow
                        finally:
                            held._alarm.resume()
                finally:
                    await body.aclose()
        except Skip as skipped:
            _skipped(skipped)

    return wrapper
