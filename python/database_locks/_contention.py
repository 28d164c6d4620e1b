"""Busy locks: which waits are refused, and what is raised."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from . import _deadlock
from ._held import held_in_process, is_of_this_process
from ._wait import Look
from ._wanted import Wanted
from .exceptions import LockConfigError, LockTimeout, LockUnavailable

QUICK = 2.0
"""Seconds at most that one try may stop an event loop."""


def looks(wanted: Wanted, asked: Wanted, quick: float | None) -> Look | None:
    """What is looked at before a wait, and during it: whether it can end."""
    if quick is not None:
        began = time.monotonic()

        def look() -> None:
            if time.monotonic() - began >= quick:
                would_stop_loop(wanted, None)

        return look
    if asked.wait == 0.0:
        return None

    def check() -> None:
        held = held_in_process(wanted.key)
        limited = asked.wait is not None
        why = None if held is None else _deadlock.reason(held, limited)
        if held is None or why is None:
            return
        message = (
            f"lock `{wanted.name}` is held by {held.holder} (this process), and {why}: the wait could "
            "never end; take the lock in one of the two places only, or release it before"
        )
        if not limited:
            raise LockConfigError(message)
        # What it would come to.
        error = both(LockTimeout)(message)
        vars(error).update(name=wanted.name, timeout=None, holder=held.holder, held_for=None)
        raise error

    check()
    return check


def may_stop_loop() -> bool:
    """As the ORM has it: for notebooks, where a loop runs and nothing else needs it."""
    return bool(os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"))


def would_stop_loop(wanted: Wanted, info: Mapping[str, Any] | None) -> NoReturn:
    text = str(held_by(wanted, info)) if info else f"lock `{wanted.name}` is not free at once"
    message = (
        f"{text}: to wait for it here would stop the event loop of this thread; use `async with`, "
        "or take the lock in a thread (asyncio.to_thread, sync_to_async)"
    )
    django = sys.modules.get("django.core.exceptions")
    if django is None:
        raise LockConfigError(message)
    raise both(django.SynchronousOnlyOperation)(message)


def both(other: type[Exception]) -> type[LockConfigError]:
    """A `LockConfigError` that a handler of the other error catches, too."""

    def initialized(self: LockConfigError, message: str) -> None:
        Exception.__init__(self, message)

    def reduced(self: LockConfigError) -> tuple[Any, ...]:
        return (LockConfigError, self.args)

    body = {
        "__module__": LockConfigError.__module__,
        "__init__": initialized,
        "__str__": Exception.__str__,
        "__reduce__": reduced,
    }
    return type("LockConfigError", (LockConfigError, other), body)


def held_by(wanted: Wanted, info: Mapping[str, Any] | None) -> str:
    said = f"lock `{wanted.name}` is held"
    holder = (info or {}).get("holder")
    if holder is not None:
        said += f" by {holder}"
        if is_of_this_process(wanted.name, holder):
            said += " (this process)"
    return said


def busy(wanted: Wanted, info: Mapping[str, Any] | None) -> LockTimeout:
    info = info or {}
    return LockTimeout(name=wanted.name, holder=info.get("holder"), held_for=info.get("held_for"))


def info(wanted: Wanted) -> Mapping[str, Any] | None:
    if wanted.on_busy == "skip" or wanted.locks is None:
        return None
    try:
        return wanted.locks.show(wanted.name)
    except LockUnavailable:
        return None


async def ainfo(wanted: Wanted) -> Mapping[str, Any] | None:
    if wanted.on_busy == "skip" or wanted.locks is None:
        return None
    try:
        return await wanted.locks.ashow(wanted.name)
    except LockUnavailable:
        return None
