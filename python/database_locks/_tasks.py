"""What runs the calling code: a thread, a task of asyncio or trio, or a greenlet."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from . import _greenlets


def current() -> Any:
    """The running task or greenlet; ``None`` in a plain thread.

    Greenlets count if gevent or eventlet has a hub in this thread.
    """
    if asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
        if task is not None:
            return task
    if "trio" in sys.modules:
        task = trio_task()
        if task is not None:
            return task
    if "greenlet" in sys.modules and _greenlets.hub() is not None:
        return _greenlets.current()
    return None


def trio_task() -> Any:
    """The running task of trio, or ``None``."""
    lowlevel = sys.modules.get("trio.lowlevel")
    if lowlevel is None:
        return None
    try:
        return lowlevel.current_task()
    except RuntimeError:
        return None


def is_trio(task: Any) -> bool:
    return task is not None and type(task).__module__.partition(".")[0] == "trio"


def runs_event_loop() -> bool:
    """Whether a blocking call here would stop an event loop."""
    return asyncio._get_running_loop() is not None or trio_task() is not None
