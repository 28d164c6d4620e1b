"""Fork while a lock is held, and print the rights of child and parent.

``forks.py URL process|fork|grandchild|same-pid|busy|sqlite``
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from database_locks import (
    Held,
    LockException,
    LockLost,
    Locks,
    LockTimeout,
    LockUnavailable,
    connect,
)

TTL = 4.0


def say(line: str) -> None:
    # One write: parent and children share the pipe.
    os.write(1, f"{line}\n".encode())


def look(locks: Locks, held: Held, who: str = "child") -> None:
    """Print the rights of a process that inherited a lock."""
    say(f"{who}: lost {held.lost}")
    try:
        held.check()
    except LockLost as lost:
        say(f"{who}: check: {lost.reason}")
    else:
        say(f"{who}: check: held")
    # Longer than the lease: if it is renewed or released here, the parent will notice.
    time.sleep(TTL * 1.25)
    try:
        with locks.lock("parent's", retry=None):
            say(f"{who}: got the parent's")
    except LockTimeout as busy:
        say(f"{who}: did not get the parent's{', which is called its own' * busy.in_this_process}")
    with locks.lock("of its own", lock_ttl=TTL) as own:
        time.sleep(TTL * 1.25)
        own.check()
        say(f"{who}: held its own")
    say(f"{who}: released its own")


def in_process(locks: Locks, held: Held) -> None:
    """By multiprocessing."""
    process = multiprocessing.get_context("fork").Process(target=look, args=(locks, held))
    process.start()
    process.join()
    say(f"child: ended {process.exitcode}")


def in_fork(locks: Locks, held: Held) -> bool:
    """By os.fork, in a child that goes on to the end of the block and of the program."""
    pid = os.fork()
    if pid == 0:
        return True
    _, status = os.waitpid(pid, 0)
    say(f"child: ended {status}")
    time.sleep(TTL * 1.25)
    return False


def in_process_that_takes_one(locks: Locks, _: Held) -> None:
    def take() -> None:
        try:
            with locks.lock("of its own"):
                say("child: held its own")
        except LockUnavailable as error:
            say(f"child: {error}")

    forked(take)


def in_grandchild(locks: Locks, held: Held) -> None:
    def middle() -> None:
        forked(lambda: look(locks, held))
        # It ends before its parent, and with it what it has inherited.

    forked(middle)


def in_same_pid(locks: Locks, held: Held) -> None:
    """In a process with the pid of the parent: in another namespace of pids, where it is free."""
    wanted = os.getpid()

    def first() -> None:
        # The next pid of this namespace, whose first process this is.
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(wanted - 1))

        def second() -> None:
            assert os.getpid() == wanted, (os.getpid(), wanted)
            look(locks, held)

        forked(second)

    new_pids = 0x20000000
    if ctypes.CDLL(None, use_errno=True).unshare(new_pids) != 0:
        say(f"skipped: {os.strerror(ctypes.get_errno())}")
        sys.exit()
    forked(first)


def forked(work: Callable[[], None]) -> None:
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
        return
    try:
        work()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - said, not raised: the parent goes on by itself
        say(f"child: {error!r}")
        os._exit(1)


def while_busy(locks: Locks) -> None:
    """Fork again and again while other threads are in the middle of everything."""
    stop = threading.Event()

    def work(name: str) -> None:
        while not stop.is_set():
            with locks.lock(name):
                pass

    threads = [threading.Thread(target=work, args=(f"thread {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()

    def child() -> None:
        with locks.lock(f"child {os.getpid()}") as own:
            own.check()

    for _ in range(40):
        forked(child)
    stop.set()
    for thread in threads:
        thread.join()
    say("parent: busy and whole")


def main() -> None:
    url, how = sys.argv[1:]
    locks = connect(url)
    if how == "busy":
        while_busy(locks)
        return
    ways = {
        "process": in_process,
        "fork": in_fork,
        "grandchild": in_grandchild,
        "same-pid": in_same_pid,
        "sqlite": in_process_that_takes_one,
    }
    try:
        with locks.lock("parent's", lock_ttl=TTL) as held:
            is_child = ways[how](locks, held)
            if is_child:
                return
            held.check()
            say(f"parent: lost {held.lost}")
    except LockException as error:
        say(f"end of the block: {type(error).__name__}")
        return
    say("parent: released")


if __name__ == "__main__":
    main()
