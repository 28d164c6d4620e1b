"""Functions of Python's own in which an exception from outside would do harm.

An asynchronous exception arrives where a C call returns. Where that call was ``lock.acquire()`` and the
``try`` that is to release comes after it, the lock stays locked for ever: after a wait for a log
handler every later record of the process would wait for that. What arrives in `logging.Handler.handle`
after that is swallowed there. And `threading.Thread.start` waits for a thread that Python 3.10 and 3.11
take for its starter until it runs: the exception would end the new thread, and the starter wait for ever.

``with lock:`` of `threading.Lock` and `threading.RLock` is not among them: the interpreter looks for no
exception between the two.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any


def _codes(*functions: tuple[Any, str]) -> frozenset[CodeType]:
    found = set()
    for owner, path in functions:
        function = owner
        for part in path.split("."):
            # Not each version of Python has each of them.
            function = getattr(function, part, None)
        if function is not None:
            # A profiler may have wrapped it.
            found.add(inspect.unwrap(function).__code__)
    return frozenset(found)


CODES = _codes(
    (threading, "Condition.__enter__"),
    (logging, "Handler.acquire"),
    (logging, "Handler.handle"),
    (logging, "_acquireLock"),
    (importlib, "_bootstrap._ModuleLock.acquire"),
    (importlib, "_bootstrap._ModuleLockManager.__enter__"),
)

STARTS = _codes((threading, "Thread.start"))
"""Which wait for a new thread."""


_SHORT = 1e-5
"""Seconds of a short turn."""

_one = threading.Lock()
_usual: float | None = None
"""How long a turn is otherwise, while turns are short."""


@contextmanager
def short_turns() -> Iterator[None]:
    """Have each thread keep the GIL for short turns only.

    A thread that logs again and again leaves the GIL to others while it does so, and hardly anywhere
    else: each look would find it there.
    """
    global _usual
    with _one:
        _usual = sys.getswitchinterval()
        sys.setswitchinterval(_SHORT)
        try:
            yield
        finally:
            sys.setswitchinterval(_usual)
            _usual = None


def _forked() -> None:
    """The thread that has turns short just now is not in the child."""
    global _one, _usual
    _one = threading.Lock()
    if _usual is not None:
        sys.setswitchinterval(_usual)
        _usual = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
