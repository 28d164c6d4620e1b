"""Waits with a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Found = TypeVar("Found")

TIMEOUT = 30.0
"""Seconds for anything that takes less than one on an idle machine."""


def eventually(look: Callable[[], Found], what: str, within: float = TIMEOUT) -> Found:
    """Call `look` until it returns something true, which is returned; fail after `within` seconds.

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
    """The result or exception of `work` in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(TIMEOUT)
