"""A process that holds locks with this package, controlled by lines of its standard input.

``holder.py URL``: ``hold {"lock_name": …}`` acquires a lock with these arguments of ``lock`` and prints
``held TOKEN``. While it is held, ``ask`` checks it and ``release`` ends the block. Exceptions are printed as
``lost REASON`` and ``error TYPE: MESSAGE``. ``count`` counts in a file under a lock, ``permits`` marks permits in a folder, ``permit`` holds one. Ends with its input.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from database_locks import LockException, LockLost, Locks, connect


def say(line: str) -> None:
    print(line, flush=True)


def hold(locks: Locks, arguments: dict[str, Any]) -> None:
    with locks.lock(**arguments) as held:
        say(f"held {held.token}")
        for line in iter(sys.stdin.readline, ""):
            word = line.strip()
            if word == "release":
                break
            if word == "ask":
                say(f"is_held {str(not held.lost).lower()}")
            else:
                say(f"what is {word}?")
        else:
            sys.exit()
    say("released")


def permits(locks: Locks, name: str, permits: int, rounds: int, folder: str) -> None:
    """Hold a permit ``rounds`` times, and mark its slot in ``folder``, which no other process may
    have marked.
    """
    for _ in range(rounds):
        with locks.semaphore(name, permits, timeout=60) as held:
            mark = Path(folder) / str(held.slot)
            # Fails if another process has the same permit.
            mark.touch(exist_ok=False)
            inside = len(list(Path(folder).iterdir()))
            time.sleep(0.002)
            mark.unlink()
            if inside > permits:
                say(f"{inside} at the same time")
    say("counted")


def permit(locks: Locks, **arguments: Any) -> None:
    """Hold a permit, without an end of its own."""
    with locks.semaphore(**arguments) as held:
        say(f"held {held.slot}")
        sys.stdin.readline()


def count(locks: Locks, name: str, rounds: int, file: str) -> None:
    for _ in range(rounds):
        with locks.lock(name):
            number = int(Path(file).read_text())
            time.sleep(0.001)
            Path(file).write_text(str(number + 1))
    say("counted")


def main() -> None:
    locks = connect(sys.argv[1])
    say("ready")
    for line in iter(sys.stdin.readline, ""):
        word, _, rest = line.strip().partition(" ")
        try:
            if word == "hold":
                hold(locks, json.loads(rest))
            elif word == "count":
                count(locks, **json.loads(rest))
            elif word == "permit":
                permit(locks, **json.loads(rest))
            elif word == "permits":
                permits(locks, **json.loads(rest))
            else:
                say(f"what is {word}?")
        except LockLost as lost:
            say(f"lost {lost.reason}")
        except LockException as error:
            say(f"error {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
