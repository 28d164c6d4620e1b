"""Hold locks while nothing else in this process gets the GIL.

``busy_interpreter.py URL starve SECONDS``: holds ``job`` with a ttl of 5 s, then prints its state.
``busy_interpreter.py URL many COUNT``: holds COUNT locks, prints its threads, and waits for a line.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time

from database_locks import Locks, connect


def say(line: str) -> None:
    print(line, flush=True)


def starve(locks: Locks, seconds: float) -> None:
    # PyDLL keeps the GIL during a call, as an extension does that computes for long.
    sleep = ctypes.PyDLL(None).usleep
    with locks.lock("job", lock_ttl=5) as held:
        say(f"held {held.token}")
        began = time.monotonic()
        sleep(int(seconds * 1_000_000))
        took = time.monotonic() - began
        say(f"took {took:.1f}")
        say(f"lost {held.lost}")
        held.check()
        say(f"remaining {held.remaining():.1f}")
    say("released")


def many(locks: Locks, count: int) -> None:
    with contextlib.ExitStack() as stack:
        for i in range(count):
            stack.enter_context(locks.lock(f"job {i}", lock_ttl=6))
        say("held")
        sys.stdin.readline()
    say("released")


def main() -> None:
    url, what, amount = sys.argv[1:]
    locks = connect(url)
    if what == "starve":
        starve(locks, float(amount))
    else:
        many(locks, int(amount))


if __name__ == "__main__":
    main()
