"""What users have for tests of their own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import unittest
from pathlib import Path

import pytest

from database_locks import LockLost
from database_locks.testing import LocksTestMixin, MemoryLocks, memory_locks


def test_losing_reaches_the_holder(locks: MemoryLocks) -> None:
    with pytest.raises(LockLost, match="report") as caught, locks.lock("report"):
        locks.lose("report")
    assert caught.value.reason == "forced"
    locks.assert_not_locked("report")


def test_a_holder_in_another_thread_is_told(locks: MemoryLocks) -> None:
    seen: list[LockLost] = []
    begun = threading.Event()

    def work() -> None:
        try:
            with locks.lock("report"):
                begun.set()
                while True:
                    time.sleep(0.01)
        except LockLost as lost:
            seen.append(lost)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    locks.lose("report")
    thread.join(10)
    assert [lost.name for lost in seen] == ["report"]


def test_an_expired_lock_can_be_had_by_others(locks: MemoryLocks) -> None:
    with pytest.raises(LockLost), locks.lock("report") as held:
        first = held.token
        locks.expire("report")
        done: list[int | None] = []

        def other() -> None:
            with locks.lock("report", retry=None) as theirs:
                done.append(theirs.token)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(10)
        assert done[0] is not None and first is not None and done[0] > first
        held.check()


def test_asking_says_what_is_held(locks: MemoryLocks) -> None:
    with locks.lock("a", locked_by="me"):
        locks.assert_locked("a")
        with pytest.raises(AssertionError, match="`a` is held by me"):
            locks.assert_not_locked("a")
        for ask in (locks.assert_locked, locks.lose, locks.expire):
            with pytest.raises(AssertionError, match="`b` is not held; held are: `a`"):
                ask("b")


def test_what_is_left_behind_fails_and_does_not_reach_the_next_test() -> None:
    with pytest.raises(AssertionError, match="held still at the end of the test: `left`"):
        with memory_locks() as locks:
            locks.lock("left", lost_lock_cb=lambda *_: None).__enter__()
    with memory_locks() as locks:
        locks.assert_not_locked("left")


class Mixed(LocksTestMixin, unittest.TestCase):
    def test_clean(self) -> None:
        with self.locks.lock("a"):
            self.locks.assert_locked("a")

    def test_leaves(self) -> None:
        self.locks.lock("left", lost_lock_cb=lambda *_: None).__enter__()


Mixed.__test__ = False  # type: ignore[attr-defined]


def test_the_mixin_fails_the_test_that_left_a_lock_by_its_name() -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Mixed).run(result)
    assert result.testsRun == 2
    assert [test.id().rsplit(".", 1)[1] for test, _ in result.failures] == ["test_leaves"]
    assert "`left`" in result.failures[0][1]


def test_the_plugin_fails_the_test_that_left_a_lock_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(
        "def test_clean(locks):\n"
        "    with locks.lock('a'): pass\n"
        "def test_leaves(locks):\n"
        "    locks.lock('left', lost_lock_cb=lambda *_: None).__enter__()\n"
        "def test_next(locks):\n"
        "    locks.assert_not_locked('left')\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_user.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "3 passed, 1 error" in run.stdout, run.stdout + run.stderr
    assert "ERROR test_user.py::test_leaves" in run.stdout
    assert "`left`" in run.stdout
