"""Detects a wait for a lock whose holder itself waits for the waiter, within one process.

The search starts at the waiter: what waits for its end, what waits for the end of that, and so on,
as far as asyncio, `concurrent.futures`, `threading`, asgiref and trio show it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import _registry, _tasks

if TYPE_CHECKING:
    from ._held import Held

_FRAMES = 200
_NODES = 1000
"""Limits of the search."""

_POOLS = ("asgiref.", "concurrent.futures.")
"""Modules that run a call in a thread."""

_WAITS = {
    "asgiref": {"__call__", "run_until_future"},
    "asyncio": {"run_until_complete"},
    "concurrent": {"as_completed", "exception", "result", "wait"},
    "threading": {"join"},
}
"""By package, the functions in which a thread waits for an object among their variables."""


def reason(held: Held, limited: bool) -> str | None:
    """Why a wait for this lock by the caller cannot end; ``None`` if nothing prevents it.

    ``limited``: the wait has a time limit. A thread that joins this one is no reason then: tests
    try a busy lock in that way.
    """
    if held._detached and not held._request.auto_renew:
        # Its lease is not renewed, so the wait ends.
        return None
    waiter, here = _tasks.current(), threading.get_ident()
    if held._task is None and held._thread == here:
        # A thread may have the ident of one that has ended, which acquired the lock without a block.
        is_same = held._holds is _registry.here.holds
        return "this very thread holds it" if is_same else None
    if held._task is not None and held._task is waiter:
        return "this very task holds it"
    if held._task is not None and _tasks.is_trio(held._task):
        return _NURSERY if _waits_in_nursery(held._task, waiter) else None
    reached = _reached(waiter)
    if held._task is not None:
        return _TASK if any(one is held._task for one in reached) else None
    if _waits_in(sys._current_frames().get(held._thread), reached, joins=not limited):
        return "the thread that holds it waits for this one"
    return None


_TASK = "the task that holds it waits for this one"
_NURSERY = "the task that holds it waits for this one at the end of its nursery"


def _reached(waiter: Any) -> list[Any]:
    """Futures, tasks and threads that go on when the waiter has ended."""
    reached: list[Any] = []
    frame = sys._getframe()
    if waiter is None:
        _follow([threading.current_thread(), *_work_items(frame)], reached)
        return reached
    if not isinstance(waiter, asyncio.Task):
        return reached
    # asgiref wakes the thread that called `async_to_sync` by a future in its coroutine.
    own = getattr(waiter.get_coro(), "cr_frame", None)
    _follow([waiter, *_futures(() if own is None else own.f_locals.values())], reached)
    if _ends_loop(frame, reached):
        _follow([threading.current_thread(), *_work_items(frame)], reached)
    return reached


def _follow(ahead: list[Any], reached: list[Any]) -> None:
    while ahead and len(reached) < _NODES:
        node = ahead.pop()
        if any(node is one for one in reached):
            continue
        reached.append(node)
        ahead += _next(node)


def _ends_loop(frame: FrameType | None, reached: list[Any]) -> bool:
    """Whether the event loop of this thread runs only until one of these has ended."""
    for _ in range(_FRAMES):
        if frame is None:
            break
        if frame.f_code.co_name == "run_until_complete":
            future = frame.f_locals.get("future")
            return any(future is one for one in reached)
        frame = frame.f_back
    return False


def _work_items(frame: FrameType | None) -> Iterator[Any]:
    """The futures of the calls that thread pools run in this thread."""
    for _ in range(_FRAMES):
        if frame is None:
            return
        if frame.f_code.co_name == "run" and _module(frame).startswith(_POOLS):
            yield from _futures([getattr(frame.f_locals.get("self"), "future", None)])
        frame = frame.f_back


def _futures(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, concurrent.futures.Future) or asyncio.isfuture(value):
            yield value


def _next(node: Any) -> Iterator[Any]:
    """What the callbacks of a future or task complete."""
    if isinstance(node, concurrent.futures.Future):
        callbacks = list(node._done_callbacks)  # type: ignore[attr-defined]
    elif asyncio.isfuture(node):
        callbacks = [callback for callback, _ in getattr(node, "_callbacks", None) or ()]
    else:
        return
    for callback in callbacks:
        for one in _parts(callback, 3):
            if type(one).__name__ == "TaskGroup":
                # The task of the group waits for its last task.
                yield from _futures([getattr(one, "_on_completed_fut", None)])
            elif isinstance(one, asyncio.Queue):
                # `asyncio.as_completed`
                yield from _futures(getattr(one, "_getters", ()))
            else:
                yield from _futures([one])


def _parts(callback: Any, depth: int) -> Iterator[Any]:
    """A callback, its arguments, and the variables of its closure."""
    yield callback
    if depth == 0:
        return
    inner: list[Any] = [getattr(callback, "__self__", None)]
    if isinstance(callback, functools.partial):
        inner += [callback.func, *callback.args]
    for cell in getattr(callback, "__closure__", None) or ():
        try:
            inner.append(cell.cell_contents)
        except ValueError:
            # An empty cell.
            continue
    for one in inner:
        if one is not None:
            yield from _parts(one, depth - 1)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _waits_in(frame: FrameType | None, reached: list[Any], joins: bool) -> bool:
    """Whether a thread waits for one of these without a time limit."""
    for _ in range(_FRAMES):
        if frame is None:
            return False
        package = _module(frame).partition(".")[0]
        seen = dict(frame.f_locals) if frame.f_code.co_name in _WAITS.get(package, ()) else {}
        if seen.get("timeout") is not None:
            return False
        if joins or package != "threading":
            for value in seen.values():
                several = value if isinstance(value, set | list | tuple) else (value,)
                if len(several) < _NODES and any(
                    one is node for one in several for node in reached
                ):
                    return True
        frame = frame.f_back
    return False


def _waits_in_nursery(holder: Any, waiter: Any) -> bool:
    """Whether a task of trio waits at the end of a nursery that the waiter is in."""
    while waiter is not None and _tasks.is_trio(waiter):
        nursery = waiter.parent_nursery
        if nursery is None or not getattr(nursery, "_parent_waiting_in_aexit", False):
            return False
        waiter = nursery.parent_task
        if waiter is holder:
            return True
    return False
