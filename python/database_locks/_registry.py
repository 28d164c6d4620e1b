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
_process: dict[Key, dict[int, weakref.ref[Held]]] = {}
"""The holds of each lock by their `id`: several, if they share it."""


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
        outer = holds.get(key)
        if outer is not None and outer is not held:
            # A shared hold that a ticket resumed within another shared one.
            held._within[key] = outer
        holds[key] = held
    add_to_process(held)


def add_to_process(held: Held) -> None:
    """An object holds it: nothing nests in it, but errors in other threads name it as the holder."""
    for key in held._request.keys:
        known = _process.setdefault(key, {})
        for one in [one for one, ref in list(known.items()) if ref() is None]:
            known.pop(one, None)
        known[id(held)] = weakref.ref(held)


def remove(held: Held) -> None:
    for key in held._request.keys:
        outer = _open(held._within.pop(key, None))
        if held._holds.get(key) is held:
            held._holds.pop(key, None)
            if outer is not None:
                held._holds[key] = outer
        known = _process.get(key, {})
        known.pop(id(held), None)
        if not any(ref() is not None for ref in list(known.values())):
            # Another thread may be adding one. Then error messages do not name it.
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


def holds_in_process(key: Key) -> list[Held]:
    """The holds of a lock by all threads and tasks of this process: several, if they share it."""
    known = [_open(ref()) for ref in list(_process.get(key, {}).values())]
    return [held for held in known if held is not None]


def all_held_here() -> dict[Key, Held]:
    """All locks that the calling thread or task holds."""
    known = list(holds_of(_tasks.current()).items())
    return {key: held for key, held in known if held._is_open()}


def is_of_this_process(name: str, holder: str | None) -> bool:
    """Whether the holder that the database names is in this process."""
    for key in list(_process):
        # A forked child inherits the entries of its parent.
        if key[0] != _core.generation() or key[2] != name:
            continue
        if any(held.holder == holder for held in holds_in_process(key)):
            return True
    return False
