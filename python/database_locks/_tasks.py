"""The holder of a lock inside this process: a thread, a task of asyncio or trio, or a greenlet."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from . import _greenlets


def current() -> Any:
    """The task or greenlet that runs here; ``None``: it is the thread itself.

    Greenlets count where gevent or eventlet has a hub in this thread.
    """
    if asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
        if task is not None:
            return task
    if "trio" in sys.modules:
        trio_task = trio_task_here()
        if trio_task is not None:
            return trio_task
    if "greenlet" in sys.modules and _greenlets.hub() is not None:
        return _greenlets.current()
    return None


def trio_task_here() -> Any:
    """The task of trio that runs here, or ``None``."""
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
    """Whether a blocking call would stop an event loop."""
    return asyncio._get_running_loop() is not None or trio_task_here() is not None
