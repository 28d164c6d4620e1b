"""Losses while a thread is in a critical section of the standard library."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from database_locks import LockLost, Locks, connect


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


class Slow(logging.Handler):
    """Swallows exceptions, as every log handler does."""

    swallowed = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            time.sleep(0.002)
        except Exception:  # noqa: BLE001 - as `logging` does
            self.swallowed += 1


def until_lost(body: Callable[[], None]) -> list[BaseException]:
    """Run it in a thread of its own, and see what ends it. It must end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return raised


def test_a_loss_does_not_interrupt_the_start_of_a_thread(here: Locks, monkeypatch: Any) -> None:
    failed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", failed.append)

    def start_threads() -> None:
        with here.lock("job", timeout=10):
            threading.Timer(0.003, here.lose, ["job"]).start()
            until = time.monotonic() + 20
            while time.monotonic() < until:
                thread = threading.Thread(target=int)
                thread.start()
                thread.join()

    for _ in range(30):
        raised = until_lost(start_threads)
        assert [type(error).__mro__[1] for error in raised] == [LockLost]
    assert failed == []


@pytest.mark.parametrize("main", [False, True])
def test_a_loss_does_not_interrupt_a_log_handler(here: Locks, main: bool) -> None:
    handler, stop = Slow(), threading.Event()
    log = logging.Logger("application")
    log.addHandler(handler)

    def others() -> None:
        while not stop.is_set():
            log.info("other")
            time.sleep(0.001)

    def body() -> None:
        with here.lock("job", timeout=10):
            threading.Timer(0.02, here.lose, ["job"]).start()
            until = time.monotonic() + 20
            while time.monotonic() < until:
                log.info("work")
                time.sleep(0.001)

    threads = [threading.Thread(target=others, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            if main:
                with pytest.raises(LockLost):
                    body()
            else:
                assert [isinstance(error, LockLost) for error in until_lost(body)] == [True]
    finally:
        stop.set()
    assert handler.lock is not None
    assert handler.lock.acquire(timeout=10)
    handler.lock.release()
    assert handler.swallowed == 0
