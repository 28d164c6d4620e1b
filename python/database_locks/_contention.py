"""A lock that another holder has: which waits are refused, and the errors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from . import _deadlock
from ._arguments import AcquireRequest
from ._registry import holds_in_process, is_of_this_process
from ._wait import Check
from .exceptions import LockConfigError, LockTimeout, LockUnavailable, permits_held, shared_by

if TYPE_CHECKING:
    from ._held import Held

_TAKEN = ("held", "resting")
QUICK = 2.0
"""Seconds at most that one try may stop an event loop."""


def check_of_wait(
    request: AcquireRequest, asked: AcquireRequest, quick: float | None
) -> Check | None:
    """A check whether the wait can end, called before and during it; ``None``: nothing to check.

    ``quick``: seconds after which one try counts as stopping an event loop.
    """
    if quick is not None:
        began = time.monotonic()

        def check_time() -> None:
            if time.monotonic() - began >= quick:
                would_stop_loop(request, None)

        return check_time
    if asked.wait == 0.0:
        return None

    def check() -> None:
        limited = asked.wait is not None
        for key in request.keys:
            for held in holds_in_process(key):
                if request.shared and held.shared:
                    continue
                why = _deadlock.reason(held, limited)
                if why is not None:
                    refuse(key[2], held, why, limited)

    def refuse(name: str, held: Held, why: str, limited: bool) -> NoReturn:
        how = "shared" if held.shared else "held"
        message = (
            f"lock `{name}` is {how} by {held.holder} (this process), and {why}, so the "
            "wait could never end: take the lock in one of the two places only, or release it before"
        )
        if not limited:
            raise LockConfigError(message)
        # The wait has a limit, so it would end in a `LockTimeout`.
        error = both(LockTimeout)(message)
        vars(error).update(name=name, timeout=None, holder=held.holder, held_for=None)
        raise error

    check()
    return check


def may_stop_loop() -> bool:
    """Django's own switch: for notebooks, where nothing else needs the running loop."""
    return bool(os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"))


def would_stop_loop(request: AcquireRequest, info: Mapping[str, Any] | None) -> NoReturn:
    text = str(held_by(request, info)) if info else f"lock `{request.name}` is not free at once"
    message = (
        f"{text}, and a wait would stop the event loop of this thread: use `async with`, "
        "or take the lock in a thread (asyncio.to_thread, sync_to_async)"
    )
    django = sys.modules.get("django.core.exceptions")
    if django is None:
        raise LockConfigError(message)
    raise both(django.SynchronousOnlyOperation)(message)


def both(other: type[Exception]) -> type[LockConfigError]:
    """A class that handlers of `LockConfigError` and of ``other`` both catch."""

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


def held_by(request: AcquireRequest, info: Mapping[str, Any] | None) -> str:
    if request.permits is not None:
        return permits_held(request.name, limit(request, info))
    name = (info or {}).get("name", request.name)
    if info and info["state"] == "resting":
        return f"lock `{name}` rests for another {info['free_in']:.1f}s"
    message = f"lock `{name}` is held"
    if info and info.get("shared_by"):
        message = f"lock `{name}` is {shared_by(info['shared_by'])}"
    holder = (info or {}).get("holder")
    if holder is not None:
        message += f" by {holder}"
        if is_of_this_process(name, holder):
            message += " (this process)"
    return message


def busy(request: AcquireRequest, info: Mapping[str, Any] | None) -> LockTimeout:
    if request.permits is not None:
        return no_permit(request, info)
    info = info or {}
    return LockTimeout(
        name=info.get("name", request.name),
        holder=info.get("holder"),
        held_for=info.get("held_for"),
        rests_for=info["free_in"] if info.get("state") == "resting" else None,
        shared_by=info.get("shared_by"),
    )


def limit(request: AcquireRequest, semaphore: Mapping[str, Any] | None) -> int:
    """The limit of a semaphore: that of the operator, or else of the caller."""
    limit = (semaphore or {}).get("limit")
    return limit if isinstance(limit, int) else request.permits or 0


def no_permit(request: AcquireRequest, semaphore: Mapping[str, Any] | None) -> LockTimeout:
    permits = (semaphore or {}).get("permits", ())
    held = [permit for permit in permits if permit["state"] == "held"]
    longest: Mapping[str, Any] = max(held, key=lambda permit: permit["held_for"] or 0.0, default={})
    return LockTimeout(
        "failed to acquire a permit",
        name=request.name,
        holder=longest.get("holder"),
        held_for=longest.get("held_for"),
        permits=limit(request, semaphore),
    )


def holder_info(request: AcquireRequest) -> Mapping[str, Any] | None:
    if request.on_busy == "skip" or request.client is None:
        return None
    try:
        if request.permits is not None:
            return request.client.show_semaphore(request.name)
        info: Mapping[str, Any] | None = None
        for name in request.names or (request.name,):
            # First: beside shared holders, an exclusive one only waits for them, and may be this try.
            sharing = None if request.shared else request.client._sharing(name)
            info = sharing or request.client.show(name)
            if info is not None and info["state"] in _TAKEN:
                return info
        return None if request.names else info
    except LockUnavailable:
        return None


async def aholder_info(request: AcquireRequest) -> Mapping[str, Any] | None:
    if request.on_busy == "skip" or request.client is None:
        return None
    try:
        if request.permits is not None:
            return await request.client.ashow_semaphore(request.name)
        info: Mapping[str, Any] | None = None
        for name in request.names or (request.name,):
            sharing = None if request.shared else await request.client._asharing(name)
            info = sharing or await request.client.ashow(name)
            if info is not None and info["state"] in _TAKEN:
                return info
        return None if request.names else info
    except LockUnavailable:
        return None
