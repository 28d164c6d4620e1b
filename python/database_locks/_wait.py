"""Waiting for the extension: in a thread, a greenlet, or a task of asyncio or trio."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from . import _greenlets, _owner

if TYPE_CHECKING:
    from ._core import Pending

T = TypeVar("T")

_LOOK = 0.25
"""Seconds between two returns to the interpreter: an exception that another thread raises in this
one, the loss of an outer lock say, arrives only there."""

_LONGEST = 8.0
"""The same where nothing arrives in that way."""

Look = Callable[[], None]
"""Raises where it makes no sense to wait any longer."""


def wait(pending: Pending[T], look: Look | None = None) -> T:
    """Block until it is done, without the GIL; a greenlet leaves its hub free.

    Whatever interrupts the wait gives it up.
    """
    until(pending, look)
    return pending.result()


def until(pending: Pending[Any], look: Look | None = None) -> None:
    """`wait` without the result."""
    try:
        hub = _greenlets.hub() if "greenlet" in sys.modules else None
        if hub is not None:
            _in_greenlet(hub, pending, look)
            return
        looks = _pauses()
        left = next(looks)
        while not pending.wait(_LOOK):
            left -= _LOOK
            if look is not None and left <= 0:
                look()
                left = next(looks)
    except BaseException:
        pending.cancel()
        raise


def _pauses() -> Iterator[float]:
    """Seconds between two looks at what is waited for: soon, then ever more rarely."""
    pause = _LOOK
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST)


def _in_greenlet(hub: _greenlets.Hub, pending: Pending[Any], look: Look | None) -> None:
    done, wait_for = hub.event()
    pending.then(lambda: hub.post(done))
    for pause in _pauses():
        if wait_for(pause):
            return
        if look is not None:
            look()


async def wait_async(pending: Pending[T], look: Look | None = None) -> T:
    """The same in a task. Cancelled, what it may have acquired is given back."""
    await until_async(pending, look)
    return pending.result()


async def wait_shielded(pending: Pending[T]) -> T:
    """The same for a release, which a scope of trio that is cancelled already does not give up."""
    if asyncio._get_running_loop() is None and _owner.trio_task_here() is not None:
        with sys.modules["trio"].CancelScope(shield=True):
            return await wait_async(pending)
    return await wait_async(pending)


async def until_async(pending: Pending[Any], look: Look | None = None) -> None:
    """`wait_async` without the result."""
    try:
        if asyncio._get_running_loop() is None and _owner.trio_task_here() is not None:
            await _in_trio(pending, look)
        else:
            await _in_asyncio(pending, look)
    except BaseException:
        pending.cancel()
        raise


async def _in_asyncio(pending: Pending[Any], look: Look | None) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def wake() -> None:
        # A loop that was closed runs nothing.
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish)

    pending.then(wake)
    if look is None:
        await done
        return
    for pause in _pauses():
        await asyncio.wait((done,), timeout=pause)
        if done.done():
            return
        look()


async def _in_trio(pending: Pending[Any], look: Look | None) -> None:
    trio = sys.modules["trio"]
    token, done = trio.lowlevel.current_trio_token(), trio.Event()

    def wake() -> None:
        try:
            token.run_sync_soon(done.set)
        except trio.RunFinishedError:
            # Nothing waits there any more.
            return

    pending.then(wake)
    for pause in _pauses():
        with trio.move_on_after(pause):
            await done.wait()
        if done.is_set():
            return
        if look is not None:
            look()


def current_task() -> Any:
    """The task or greenlet that runs here, if it is one."""
    return _owner.current()
