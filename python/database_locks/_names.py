"""What a lock is called unless it is told, and what numbers mean."""

from __future__ import annotations

import gc
import math
import sys
from datetime import timedelta
from types import CodeType, FunctionType
from typing import Any

from .exceptions import LockConfigError


def name_of(what: Any) -> str:
    """`module.qualname` of a function or class."""
    return f"{what.__module__}.{what.__qualname__}"


Caller = tuple[str, CodeType]
"""A module and a function in it, rather than a frame, which would keep alive all that is in it."""


def caller(depth: int) -> Caller:
    """Who called, that many calls above whoever asks."""
    frame = sys._getframe(depth + 1)
    return frame.f_globals.get("__name__", "__main__"), frame.f_code


def name_of_caller(caller: Caller) -> str:
    """`module.qualname` of a function that called."""
    module, code = caller
    if code.co_name == "<module>":
        raise LockConfigError(
            "a bare lock() takes the name of the function around it, and here is none: "
            "give it a name"
        )
    return f"{module}.{_qualname(code)}"


_qualnames: dict[CodeType, str] = {}


def _qualname(code: CodeType) -> str:
    if hasattr(code, "co_qualname"):
        return str(code.co_qualname)
    # Before Python 3.11 only the function knows it.
    if code not in _qualnames:
        functions = (f for f in gc.get_referrers(code) if isinstance(f, FunctionType))
        _qualnames[code] = next((f.__qualname__ for f in functions), code.co_name)
    return _qualnames[code]


def seconds(what: str, value: Any, *, least: float = -math.inf, allowed: str) -> float:
    """A number of seconds, or a `timedelta`."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value < least
    ):
        raise LockConfigError(f"`{what}` is {value!r}, must be {allowed}")
    return float(value)
