"""Waiting for the extension, with and without an event loop."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ._core import Pending

T = TypeVar("T")

_LOOK = 0.25
"""Seconds between two returns to the interpreter: an exception that another thread raises in this
one, the loss of an outer lock say, arrives only there."""


def wait(pending: Pending[T]) -> T:
    """Block until it is done, without the GIL. Whatever interrupts the wait gives it up."""
    try:
        while not pending.wait(_LOOK):
            pass
    except BaseException:
        pending.cancel()
        raise
    return pending.result()


async def wait_async(pending: Pending[T]) -> T:
    """The same in a task. Cancelled, what it may have acquired is given back."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def wake() -> None:
        # A loop that was closed has nobody left to be woken.
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish)

    try:
        pending.then(wake)
        await done
    except BaseException:
        pending.cancel()
        raise
    return pending.result()


def current_task() -> asyncio.Task[Any] | None:
    """The task that runs here, if there is an event loop at all."""
    if "asyncio" not in sys.modules or asyncio._get_running_loop() is None:
        return None
    return asyncio.current_task()
