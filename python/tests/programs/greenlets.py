"""Locks in greenlets: ``greenlets.py gevent|eventlet URL``. Prints ``right`` at the end."""

from __future__ import annotations

import faulthandler
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

warnings.simplefilter("ignore")
KIND, URL = sys.argv[1:]
if KIND == "gevent":
    from gevent import monkey

    monkey.patch_all()
    import gevent as green

    def result(greenlet: Any) -> Any:
        return greenlet.get()
else:
    import eventlet as green

    green.monkey_patch()

    def result(greenlet: Any) -> Any:
        return greenlet.wait()


faulthandler.dump_traceback_later(50, exit=True)

from database_locks import LockLost, LockTimeout, connect  # noqa: E402 - after the patches

spawn, sleep = green.spawn, green.sleep
L = connect(URL)


def exclude_each_other() -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(i: int) -> None:
        with L.lock("job", timeout=30), L.lock("job"):
            inside.append(i)
            most.append(len(inside))
            # While the others wait: if their waits stopped the hub, this would not end.
            end = ticks[0] + 10
            while ticks[0] < end:
                sleep(0.01)
            inside.remove(i)

    ticks, ended = [0], [False]

    def tick() -> None:
        while not ended[0]:
            sleep(0.01)
            ticks[0] += 1

    ticking = spawn(tick)
    for greenlet in [spawn(work, i) for i in range(4)]:
        result(greenlet)
    ended[0] = True
    result(ticking)
    assert most == [1] * 4, most


def are_notified() -> None:
    def lose(name: str) -> None:
        sleep(0.1)
        L.lose(name)

    def work(name: str) -> tuple[str | None, bool]:
        try:
            with L.lock(name) as held:
                spawn(lose, name)
                sleep(30)
        except LockLost as lost:
            return lost.name, lost.token == held.token
        return None, False

    began = time.monotonic()
    assert result(spawn(work, "a")) == ("a", True)
    assert work("b") == ("b", True)
    # In the middle of a wait for another lock.
    with L.lock("d"):
        lost, token = result(spawn(loses_while_it_waits, lose))
        assert isinstance(lost, LockLost), lost
        assert (lost.name, lost.token) == ("c", token)
    assert time.monotonic() - began < 20


def loses_while_it_waits(lose: Callable[[str], None]) -> tuple[Exception | None, int | None]:
    token = None
    try:
        with L.lock("c") as held:
            token = held.token
            spawn(lose, "c")
            with L.lock("d", timeout=20):
                pass
    except (LockLost, LockTimeout) as error:
        return error, token
    return None, token


def call_back() -> None:
    told: list[Any] = []
    with L.lock("cb", lost_lock_cb=lambda *args: told.append(args)) as held:
        L.lose("cb")
        until = time.monotonic() + 10
        while not told and time.monotonic() < until:
            sleep(0.01)
        assert held.lost
    assert len(told) == 1, told


def has_a_limit() -> None:
    def tries() -> str:
        try:
            with L.lock("busy", timeout=3):
                return "got it"
        except LockTimeout as error:
            return str(error)

    with L.lock("busy"):
        output = result(spawn(tries))
    assert "(this process)" in output, output


exclude_each_other()
are_notified()
call_back()
has_a_limit()
assert [row for row in L.list() if row["state"] == "held"] == []
print("right", flush=True)
