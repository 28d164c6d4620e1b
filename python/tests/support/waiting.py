"""Waits with a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Found = TypeVar("Found")

SOON = 30.0
"""Seconds that anything may take which takes less than one on an idle machine."""


def eventually(look: Callable[[], Found], what: str, within: float = SOON) -> Found:
    """Look again and again until there is something, which is returned; fail when it is late.

    Looks once more at the very end: on a busy machine this thread may be away for long.
    """
    end = time.monotonic() + within
    while True:
        late = time.monotonic() >= end
        found = look()
        if found:
            return found
        if late:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(0.01)


def in_thread(work: Callable[[], Found]) -> Found:
    """What `work` answers or raises in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(SOON)
