"""Which locks are held: by a thread, a task, and the whole process."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from . import _core, _tasks

if TYPE_CHECKING:
    from ._arguments import Key
    from ._held import Held

_MANY = 64
"""From this many on, closed ones are removed: an interrupted `__enter__` leaves its lock behind."""


class _Here(threading.local):
    """The locks that a thread holds outside any task."""

    def __init__(self) -> None:
        self.holds: dict[Key, Held] = {}


here = _Here()
_tasks_holds: weakref.WeakKeyDictionary[Any, dict[Key, Held]] = weakref.WeakKeyDictionary()
_process: dict[Key, weakref.ref[Held]] = {}


def holds_of(task: Any) -> dict[Key, Held]:
    """What a task holds; ``None``: the calling thread.

    Keyed by the task and not by its context, which child tasks copy.
    """
    return here.holds if task is None else _tasks_holds.setdefault(task, {})


def add(held: Held) -> None:
    """The thread or task of ``held`` holds it: the same name nests there."""
    holds = held._holds
    if len(holds) >= _MANY:
        for key in [key for key, known in holds.items() if known._guard.closed]:
            holds.pop(key, None)
    for key in held._request.keys:
        holds[key] = held
    add_to_process(held)


def add_to_process(held: Held) -> None:
    """An object holds it: nothing nests in it, but errors in other threads name it as the holder."""
    for key in held._request.keys:
        _process[key] = weakref.ref(held)


def remove(held: Held) -> None:
    for key in held._request.keys:
        if held._holds.get(key) is held:
            held._holds.pop(key, None)
        ref = _process.get(key)
        if ref is not None and ref() in (held, None):
            _process.pop(key, None)


def _open(held: Held | None) -> Held | None:
    # After an interrupted `__enter__` the lock is still listed, and its guard closed.
    return held if held is not None and held._is_open() else None


def held_here(key: Key) -> Held | None:
    """The lock, if the calling thread or task holds it."""
    return _open(holds_of(_tasks.current()).get(key))


def kept_here(key: Key) -> Held | None:
    """The lock, if only a transaction of the calling thread or task keeps it."""
    held = held_here(key)
    return None if held is None or held._is_used() else held


def held_in_process(key: Key) -> Held | None:
    """The lock, if any thread or task of this process holds it."""
    ref = _process.get(key)
    return None if ref is None else _open(ref())


def all_held_here() -> dict[Key, Held]:
    """All locks that the calling thread or task holds."""
    known = list(holds_of(_tasks.current()).items())
    return {key: held for key, held in known if held._is_open()}


def is_of_this_process(name: str, holder: str | None) -> bool:
    """Whether the holder that the database names is in this process."""
    for key in list(_process):
        # A forked child inherits the entries of its parent.
        held = held_in_process(key) if key[0] == _core.generation() else None
        if held is not None and (key[2], held.holder) == (name, holder):
            return True
    return False
