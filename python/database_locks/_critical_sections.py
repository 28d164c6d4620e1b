"""Functions of the standard library that an asynchronous exception must not interrupt.

An asynchronous exception arrives when a C call returns:

- After ``lock.acquire()``, but before the ``try`` whose ``finally`` releases, it leaves the lock locked
  for ever. With the lock of a log handler, every later record of the process would wait for ever.
- `logging.Handler.handle` swallows an exception that arrives in it.
- `threading.Thread.start` waits for the new thread. Until that thread runs, Python 3.10 and 3.11 take
  it for the starting thread, so the exception would end the new thread and the starter wait for ever.

``with lock:`` of `threading.Lock` and `threading.RLock` is safe: the interpreter raises no
exception between the acquire and the block.
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
            # Some exist only in some versions of Python.
            function = getattr(function, part, None)
        if function is not None:
            # A profiler may have wrapped the function.
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
"""Functions that wait for a new thread."""


_SHORT_INTERVAL = 1e-5
"""Seconds of a short switch interval."""

_one = threading.Lock()
_usual: float | None = None
"""The application's switch interval, while a short one is set."""


@contextmanager
def short_switch_interval() -> Iterator[None]:
    """Let each thread keep the GIL for a short time only.

    A thread that logs in a loop hands over the GIL within the handlers and hardly anywhere else, so
    every check would find it in a critical section.
    """
    global _usual
    with _one:
        _usual = sys.getswitchinterval()
        sys.setswitchinterval(_SHORT_INTERVAL)
        try:
            yield
        finally:
            sys.setswitchinterval(_usual)
            _usual = None


def _forked() -> None:
    """The child has no thread that would reset a short switch interval."""
    global _one, _usual
    _one = threading.Lock()
    if _usual is not None:
        sys.setswitchinterval(_usual)
        _usual = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
