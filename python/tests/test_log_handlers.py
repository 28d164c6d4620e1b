"""Log records of the core, with handlers that are slow, block or raise."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from database_locks import LockLost, Locks, LockTimeout, connect
from support import Program, Servers, eventually, in_thread

PROMPT = 15.0
"""Seconds; each handler here blocks for longer."""


class Blocking(logging.Handler):
    """Keeps each record until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.opened = threading.Event(), threading.Event()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        assert self.opened.wait(60)
        self.records.append(record)


@contextmanager
def logging_to(handler: logging.Handler, level: int = logging.WARNING) -> Iterator[None]:
    core = logging.getLogger("database_locks.core")
    core.addHandler(handler)
    core.setLevel(level)
    core.propagate = False
    try:
        yield
    finally:
        core.removeHandler(handler)
        core.setLevel(logging.NOTSET)
        core.propagate = True


@pytest.fixture
def here(memory_url: str) -> Locks:
    return connect(memory_url)


@pytest.fixture
def blocked(here: Locks) -> Iterator[Blocking]:
    """A handler that has a record of the core's, and blocks."""
    handler = Blocking()
    with logging_to(handler):
        try:
            with here.lock("other", lost_lock_cb=lambda *_: None):
                here.force_release("other")
            assert handler.entered.wait(10)
            yield handler
        finally:
            handler.opened.set()
            eventually(lambda: handler.records, "the handler gets its record")


def test_a_loss_does_not_wait_for_a_log_handler(here: Locks, blocked: Blocking) -> None:
    def hold(end: Callable[[], None]) -> None:
        began = time.monotonic()
        with pytest.raises(LockLost), here.lock("job"):
            threading.Timer(0.1, here.lose, ["job"]).start()
            end()
        assert time.monotonic() - began < PROMPT

    def busy() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            pass

    hold(lambda: time.sleep(30))
    in_thread(lambda: hold(busy))
    assert not blocked.records


def test_a_task_does_not_wait_for_a_log_handler(here: Locks, blocked: Blocking) -> None:
    async def work() -> None:
        async with here.lock("job") as held:
            await held.acheck()
        async with here.lock("job"):
            asyncio.get_running_loop().call_later(0.1, here.lose, "job")
            await asyncio.sleep(30)

    began = time.monotonic()
    with pytest.raises(LockLost):
        asyncio.run(work())
    assert time.monotonic() - began < PROMPT
    assert not blocked.records


def test_the_loss_to_a_frozen_database_is_in_time_beside_a_frozen_log_handler(
    servers: Servers, postgres_url: str
) -> None:
    """The record that says that renewals fail comes first, and its handler blocks."""
    handler = Blocking()
    with logging_to(handler):
        try:
            with pytest.raises(LockLost) as caught:
                with connect(postgres_url).lock("job", lock_ttl=6):
                    servers.postgres.freeze()
                    began = time.monotonic()
                    time.sleep(40)
            took = time.monotonic() - began
            assert handler.entered.is_set()
        finally:
            handler.opened.set()
            servers.postgres.thaw()
    assert caught.value.reason == "unreachable"
    assert took < 6 + PROMPT


def test_a_callback_that_blocks_delays_no_other_loss(here: Locks) -> None:
    held, opened, entered = threading.Event(), threading.Event(), threading.Event()

    def callback(*_: Any) -> None:
        entered.set()
        assert opened.wait(60)

    def first() -> None:
        with here.lock("first", lost_lock_cb=callback):
            held.set()
            assert opened.wait(60)

    def second() -> None:
        with here.lock("second"):
            here.lose("first")
            assert entered.wait(10)
            here.lose("second")
            time.sleep(2)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        # Its row shows a lock before its process renews it: a loss in between is noticed later.
        assert held.wait(30)
        with pytest.raises(LockLost) as caught:
            in_thread(second)
        assert caught.value.name == "second"
    finally:
        opened.set()
        thread.join()


def test_a_callback_that_blocks_in_the_main_thread_is_interrupted_by_another_loss(
    here: Locks,
) -> None:
    def callback(*_: Any) -> None:
        threading.Timer(0.1, here.lose, ["inner"]).start()
        time.sleep(30)

    began = time.monotonic()
    with pytest.raises(LockLost) as caught, here.lock("outer", lost_lock_cb=callback):
        with here.lock("inner"):
            here.lose("outer")
            time.sleep(30)
    assert caught.value.name == "inner"
    assert time.monotonic() - began < PROMPT


def test_records_come_in_order_with_their_times_and_fields(here: Locks) -> None:
    handler = Blocking()
    with logging_to(handler, logging.DEBUG):
        began = time.time()
        with here.lock("a job", locked_by="me") as held:
            pass
        acquired = time.time()
        assert handler.entered.wait(10)
        time.sleep(1)
        handler.opened.set()
        eventually(lambda: len(handler.records) >= 2, "both records")
    told = [r for r in handler.records if r.lock_name == "a job"]  # type: ignore[attr-defined]
    assert [r.getMessage().partition(" (")[0] for r in told] == [
        "lock a job: lock acquired",
        "lock a job: lock released",
    ]
    for record in told:
        assert (record.name, record.levelno) == ("database_locks.core", logging.DEBUG)
        assert (record.lock_token, record.lock_holder) == (held.token, "me")  # type: ignore[attr-defined]
        # Of the event, and not of its handling.
        assert began <= record.created <= acquired
    assert isinstance(told[0].lock_waited_ms, int)  # type: ignore[attr-defined]


def test_records_beyond_the_capacity_are_dropped_and_counted(here: Locks) -> None:
    handler = Blocking()
    with logging_to(handler, logging.DEBUG):
        with here.lock("job", auto_renew=False):
            pass
        assert handler.entered.wait(10)
        for _ in range(5100):
            with here.lock("job", auto_renew=False):
                pass
        handler.opened.set()
        told = eventually(
            lambda: [r for r in handler.records if vars(r).get("lock_event") == "dropped"],
            "the notice",
        )
        (dropped,) = told
        others = 2 * 5101 - vars(dropped)["lock_dropped"]
        eventually(lambda: len(handler.records) - 1 >= others, "the others")
    assert dropped.levelno == logging.WARNING
    assert len(handler.records) - 1 == others >= 10_000


def test_a_handler_that_raises_costs_one_record(here: Locks, capfd: Any) -> None:
    class Raising(Blocking):
        def emit(self, record: logging.LogRecord) -> None:
            self.records.append(record)
            raise ZeroDivisionError

    handler = Raising()
    with logging_to(handler, logging.DEBUG):
        with here.lock("job"):
            pass
        eventually(lambda: len(handler.records) >= 2, "both records")
    eventually(lambda: "ZeroDivisionError" in capfd.readouterr().err, "it is told")


PROGRAM = """
import logging, os, sys, threading, time
from database_locks import connect

here = connect("memory:")

def warn():
    with here.lock("job", lost_lock_cb=lambda *_: None):
        here.force_release("job")

class Slow(logging.Handler):
    def emit(self, record):
        os.write(1, b"entered\\n")
        {emit}
        os.write(1, b"written\\n")
"""


@pytest.fixture
def run(start: Callable[..., Program], tmp_path: Path) -> Callable[..., Program]:
    """``run(body, emit)``: a program of its own, and what its handler does."""

    def run(body: str, emit: str = "pass") -> Program:
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.format(emit=emit) + textwrap.dedent(body))
        return start([sys.executable, str(program)])

    return run


@pytest.mark.parametrize("emit", ["time.sleep(3600)", "threading.Event().wait()"])
def test_a_handler_that_blocks_for_ever_does_not_prevent_the_end_of_the_process(
    run: Callable[..., Program], emit: str
) -> None:
    program = run("logging.getLogger().addHandler(Slow())\nwarn()", emit)
    program.expect("entered")
    assert program.wait(20) == 0, program.stderr
    assert program.stderr == ""


def test_a_slow_handler_has_all_records_before_the_end_of_the_process(
    run: Callable[..., Program],
) -> None:
    program = run("logging.getLogger().addHandler(Slow())\nwarn()", "time.sleep(0.5)")
    assert program.wait(20) == 0, program.stderr
    assert [program.line(), program.line()] == ["entered", "written"]


def test_without_any_settings_a_warning_is_on_stderr(run: Callable[..., Program]) -> None:
    program = run("warn()")
    assert program.wait(20) == 0
    assert program.stderr == "lock job: lock released by force\n"


def test_an_unreachable_database_during_a_wait_is_logged_at_once_and_once(
    run: Callable[..., Program],
) -> None:
    program = run(
        """
        print("begins", flush=True)
        with connect("postgres://somebody:hunter2@127.0.0.1:1/none").lock("report"):
            pass
        """
    )
    program.expect("begins")
    eventually(lambda: program.stderr, "it is told")
    program.silent(2)
    (line,) = program.stderr.splitlines()
    assert line.startswith("waiting for lock `report`, trying again: ")
    assert "127.0.0.1:1" in line
    assert "hunter2" not in line


def test_a_long_wait_is_logged_with_the_holder(here: Locks) -> None:
    handler = Blocking()
    handler.opened.set()
    with logging_to(handler, logging.INFO), here.lock("job", locked_by="the first") as held:
        with pytest.raises(LockTimeout):
            in_thread(lambda: here.lock("job", timeout=11).__enter__())

        def waiting() -> list[logging.LogRecord]:
            return [r for r in handler.records if vars(r).get("lock_event") == "waiting"]

        (record,) = eventually(waiting, "the record")
    assert record.levelno == logging.INFO
    message = record.getMessage()
    # The record may be late by some seconds.
    assert re.match("still waiting for lock `job` after 1[0-9]s, held by the first for ", message)
    assert message.count("job") == 1
    fields = vars(record)
    assert (fields["lock_name"], fields["lock_holder"]) == ("job", "the first")
    assert fields["lock_token"] == held.token
    assert fields["lock_waited_ms"] >= 10_000


@pytest.mark.parametrize("engine", ["postgres", "mariadb", "mysql"])
def test_a_refused_first_contact_warns_of_no_lock_that_was_never_held(
    engine: str, fresh_database: Callable[[str], str], run: Callable[..., Program]
) -> None:
    """There is no table."""
    program = run(
        f"""
        from database_locks import LockUnavailable

        for wait in (dict(retry=0), dict(timeout=3)):
            try:
                with connect({fresh_database(engine)!r}).lock("job", **wait):
                    print("got it")
            except LockUnavailable:
                print("refused", flush=True)
        """
    )
    program.expect("refused")
    program.expect("refused")
    assert program.wait() == 0
    assert program.stderr == ""


def test_a_forked_child_has_its_own_thread_for_records(run: Callable[..., Program]) -> None:
    program = run(
        """
        logging.getLogger().addHandler(Slow())
        warn()
        child = os.fork()
        if child == 0:
            warn()
            os.write(1, b"child\\n")
            sys.exit()
        sys.exit(os.waitpid(child, 0)[1])
        """,
    )
    assert program.wait(20) == 0, program.stderr
    lines = [program.line() for _ in range(5)]
    assert sorted(map(str, lines)) == ["child", "entered", "entered", "written", "written"]
