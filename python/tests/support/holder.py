"""A process that takes locks by our package, and does as the lines of its standard input say.

``holder.py URL``: ``hold {"lock_name": …}`` takes a lock with these arguments of ``lock`` and says
``held TOKEN``; while it is held, ``ask`` asks whether it is, and ``release`` ends the block.
``lost REASON`` and ``error TYPE: MESSAGE`` say what was raised. Ends with its input.
"""

from __future__ import annotations

import json
import sys

from database_locks import LockException, LockLost, connect


def say(line: str) -> None:
    print(line, flush=True)


def obey(held) -> None:
    for line in iter(sys.stdin.readline, ""):
        word = line.strip()
        if word == "release":
            return
        if word == "ask":
            say(f"is_held {str(not held.lost).lower()}")
        else:
            say(f"what is {word}?")
    sys.exit()


def main() -> None:
    locks = connect(sys.argv[1])
    say("ready")
    for line in iter(sys.stdin.readline, ""):
        word, _, rest = line.strip().partition(" ")
        if word != "hold":
            say(f"what is {word}?")
            continue
        try:
            with locks.lock(**json.loads(rest)) as held:
                say(f"held {held.token}")
                obey(held)
        except LockLost as lost:
            say(f"lost {lost.reason}")
        except LockException as error:
            say(f"error {type(error).__name__}: {error}")
        else:
            say("released")


if __name__ == "__main__":
    main()
