"""Waits for an operation of the extension: in a thread, a greenlet, or a task of asyncio or trio."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from . import _greenlets, _tasks

if TYPE_CHECKING:
    from ._core import Pending

T = TypeVar("T")

_SLICE = 0.25
"""Seconds between two returns to the interpreter, where asynchronous exceptions arrive (the loss of
an outer lock, for one)."""

_LONGEST = 8.0
"""The longest pause between two calls of a `Check`, in seconds."""

Check = Callable[[], None]
"""Called during a wait; raises if the wait can never end."""


def wait(pending: Pending[T], check: Check | None = None) -> T:
    """Block until the operation is done, without the GIL; other greenlets go on running.

    An exception during the wait cancels the operation.
    """
    wait_until_done(pending, check)
    return pending.result()


def wait_until_done(pending: Pending[Any], check: Check | None = None) -> None:
    """`wait` without the result."""
    try:
        hub = _greenlets.hub() if "greenlet" in sys.modules else None
        if hub is not None:
            _in_greenlet(hub, pending, check)
            return
        pauses = _pauses()
        left = next(pauses)
        while not pending.wait(_SLICE):
            left -= _SLICE
            if check is not None and left <= 0:
                check()
                left = next(pauses)
    except BaseException:
        pending.cancel()
        raise


def _pauses() -> Iterator[float]:
    """Seconds between two checks, doubled each time up to `_LONGEST`."""
    pause = _SLICE
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST)


def _in_greenlet(hub: _greenlets.Hub, pending: Pending[Any], check: Check | None) -> None:
    done, wait_for = hub.event()
    pending.then(lambda: hub.post(done))
    for pause in _pauses():
        if wait_for(pause):
            return
        if check is not None:
            check()


async def wait_async(pending: Pending[T], check: Check | None = None) -> T:
    """`wait` in a task. Cancellation releases a lock that the operation has acquired."""
    await wait_until_done_async(pending, check)
    return pending.result()


async def wait_shielded(pending: Pending[T]) -> T:
    """`wait_async` for a release: a cancel scope of trio that is already cancelled does not stop
    it.
    """
    if asyncio._get_running_loop() is None and _tasks.trio_task() is not None:
        with sys.modules["trio"].CancelScope(shield=True):
            return await wait_async(pending)
    return await wait_async(pending)


async def wait_until_done_async(pending: Pending[Any], check: Check | None = None) -> None:
    """`wait_async` without the result."""
    try:
        if asyncio._get_running_loop() is None and _tasks.trio_task() is not None:
            await _in_trio(pending, check)
        else:
            await _in_asyncio(pending, check)
    except BaseException:
        pending.cancel()
        raise


async def _in_asyncio(pending: Pending[Any], check: Check | None) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def wake() -> None:
        # A closed loop runs nothing. The callback is written in C: an exception of a signal handler
        # in a Python callback would leave the task waiting for ever.
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set_result, None)

    pending.then(wake)
    # `asyncio.wait` does not cancel what it waits for, so `set_result` finds a pending future.
    if check is None:
        await asyncio.wait((done,))
        return
    for pause in _pauses():
        await asyncio.wait((done,), timeout=pause)
        if done.done():
            return
        check()


async def _in_trio(pending: Pending[Any], check: Check | None) -> None:
    trio = sys.modules["trio"]
    token, done = trio.lowlevel.current_trio_token(), trio.Event()

    def wake() -> None:
        try:
            token.run_sync_soon(done.set)
        except trio.RunFinishedError:
            # The loop has ended, and with it the task that waits.
            return

    pending.then(wake)
    for pause in _pauses():
        with trio.move_on_after(pause):
            await done.wait()
        if done.is_set():
            return
        if check is not None:
            check()
