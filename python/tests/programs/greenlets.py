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
            sleep(0.1)
            inside.remove(i)

    worst = [0.0]

    def tick() -> None:
        last = time.monotonic()
        while len(most) < 4:
            sleep(0.01)
            worst[0], last = max(worst[0], time.monotonic() - last), time.monotonic()

    for greenlet in [spawn(tick), *(spawn(work, i) for i in range(4))]:
        result(greenlet)
    assert most == [1] * 4, most
    # 0.3 s in all if the waits stopped the hub.
    assert worst[0] < 0.25, worst


def are_notified() -> None:
    def lose(name: str) -> None:
        sleep(0.1)
        L.lose(name)

    def work(name: str) -> tuple[str | None, bool]:
        spawn(lose, name)
        try:
            with L.lock(name) as held:
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
            with L.lock("busy", timeout=0.2):
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
