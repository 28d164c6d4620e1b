"""Threads, file descriptors and memory after two thousand locks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from support import Program

LEAKS = str(Path(__file__).parent / "programs" / "leaks.py")
Start = Callable[[list[str]], Program]


def test_threads_descriptors_and_memory_do_not_grow(url: str, start: Start) -> None:
    program = start([sys.executable, LEAKS, url, "2000"])
    before, after = (json.loads(program.expect("now", within=120)) for _ in range(2))
    assert program.wait() == 0, program.stderr
    # A thread or connection that is just ending may be counted still, or no longer.
    assert after["Threads"] <= before["Threads"] + 1
    assert after["fds"] <= before["fds"] + 2
    # 2,000 times anything would be more.
    assert after["objects"] <= before["objects"] + 500
    # One KiB for each: there is room for an allocator that keeps what it was given back.
    assert after["VmRSS"] <= before["VmRSS"] + 2 * 1024
