"""Acquire and release locks many times, and print the resources of the process.

``leaks.py URL CYCLES``: prints ``now {…}`` after a tenth of the cycles and at the end, with the threads, file descriptors, Python objects and resident KiB of this process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from database_locks import Locks, LockTimeout, connect


def cost() -> str:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    found = {key: int(value) for key, value in re.findall(r"(VmRSS|Threads):\s+(\d+)", status)}
    found["fds"] = len(os.listdir("/proc/self/fd"))
    found["objects"] = len(gc.get_objects())
    return json.dumps(found)


def work(locks: Locks, cycles: int) -> None:
    """A bit of everything that a program does with locks."""

    @locks.locked("decorated")
    def decorated() -> None:
        pass

    @locks.locked("generator")
    def generator() -> Iterator[int]:
        yield 1
        yield 2

    async def task() -> None:
        async with locks.lock("async"):
            pass

    async def tasks(count: int) -> None:
        for _ in range(count):
            await task()

    tenth = cycles // 10
    for i in range(cycles - 4 * tenth):
        with locks.lock("plain" if i % 2 else f"one of ten {i % 20}"):
            pass
    for _ in range(tenth):
        decorated()
    for _ in range(tenth):
        # Closed in the middle.
        next(generator())
    asyncio.run(tasks(tenth))
    with locks.lock("busy", locked_by="another"):
        pass
    other = connect(sys.argv[1])
    with locks.lock("busy"):
        for _ in range(tenth):
            try:
                with other.lock("busy", retry=None):
                    raise AssertionError("two holders")
            except LockTimeout:
                pass


def main() -> None:
    url, cycles = sys.argv[1], int(sys.argv[2])
    locks = connect(url)
    work(locks, cycles // 5)
    print("now", cost(), flush=True)
    work(locks, cycles)
    locks.drain()
    print("now", cost(), flush=True)


if __name__ == "__main__":
    main()
