"""Forked children: they do not renew or release locks of the parent, and have their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import Program, sql

FORKS = str(Path(__file__).parent / "programs" / "forks.py")
Start = Callable[[list[str]], Program]

CHILD = [
    "child: lost True",
    "child: check: forked",
    "child: did not get the parent's",
    "child: held its own",
    "child: released its own",
]
PARENT = ["parent: lost False", "parent: released"]


def lines_of(program: Program, within: float = 60) -> list[str]:
    assert program.wait(within) == 0, program.stderr
    lines = list(iter(program.line, None))
    assert "Traceback" not in program.stderr, program.stderr
    return lines


def test_a_child_of_multiprocessing_leaves_the_parents_lock_alone(
    server_url: str, start: Start
) -> None:
    lines = lines_of(start([sys.executable, FORKS, server_url, "process"]))
    assert lines == [*CHILD, "child: ended 0", *PARENT]
    rows = sql(server_url, "SELECT name, expires_at FROM database_locks_lock ORDER BY name")
    assert rows == [("of its own", None), ("parent's", None)], "all is free at the end"


def test_the_end_of_the_block_in_a_child_does_not_release_the_parents_lock(
    shared_url: str, start: Start
) -> None:
    lines = lines_of(start([sys.executable, FORKS, shared_url, "fork"]))
    # The child, too, comes to the end of the block, and learns there that it had nothing.
    assert lines == ["end of the block: LockLost", "child: ended 0", *PARENT]


def test_a_grandchild_holds_nothing_and_the_child_ends_without_harm(
    server_url: str, start: Start
) -> None:
    lines = lines_of(start([sys.executable, FORKS, server_url, "grandchild"]))
    assert lines == [*CHILD, *PARENT]


def test_a_process_with_the_pid_of_its_ancestor_is_another(postgres_url: str, start: Start) -> None:
    lines = lines_of(start([sys.executable, FORKS, postgres_url, "same-pid"]))
    if lines[0].startswith("skipped"):
        pytest.skip(f"no namespace of pids: {lines[0]}")
    assert lines == [*CHILD, *PARENT]


def test_children_forked_in_the_middle_of_everything_work(server_url: str, start: Start) -> None:
    program = start([sys.executable, FORKS, server_url, "busy"])
    assert lines_of(program, within=120) == ["parent: busy and whole"]


def test_sqlite_in_use_before_the_fork_is_refused_in_the_child(
    sqlite_url: str, start: Start
) -> None:
    lines = lines_of(start([sys.executable, FORKS, sqlite_url, "sqlite"]))
    assert "connect in the child only" in lines[0]
    assert lines[1:] == PARENT
