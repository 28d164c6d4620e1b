"""The test kit for applications: `database_locks.testing` and the pytest plugin."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import unittest
from pathlib import Path
from typing import Any

import pytest

from database_locks import LockLost, LockTimeout
from database_locks.testing import LocksTestMixin, MemoryLocks, memory_locks
from support import environment


def test_lose_interrupts_the_holder(locks: MemoryLocks) -> None:
    with pytest.raises(LockLost, match="report") as caught, locks.lock("report"):
        locks.lose("report")
    assert caught.value.reason == "forced"
    locks.assert_not_locked("report")


def test_lose_interrupts_a_holder_in_another_thread(locks: MemoryLocks) -> None:
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


def test_an_expired_lock_can_be_acquired(locks: MemoryLocks) -> None:
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


def test_held_and_assert_locked_show_held_locks(locks: MemoryLocks) -> None:
    with locks.lock("a", locked_by="me"):
        locks.assert_locked("a")
        with pytest.raises(AssertionError, match="`a` is held by me"):
            locks.assert_not_locked("a")
        for ask in (locks.assert_locked, locks.lose, locks.expire):
            with pytest.raises(AssertionError, match="`b` is not held; held are: `a`"):
                ask("b")


def test_a_lock_left_behind_fails_its_test_and_not_the_next() -> None:
    with pytest.raises(AssertionError, match="still held at the end of the test: `left`"):
        with memory_locks() as locks:
            block = locks.lock("left")
            left = block.__enter__()
    # The next test goes on for a while, in the thread that left the lock.
    for _ in range(20):
        time.sleep(0.01)
    assert not left.lost
    with memory_locks() as locks:
        locks.assert_not_locked("left")


def test_a_thread_that_holds_a_lock_at_the_end_of_the_test_gets_lock_lost() -> None:
    seen: list[LockLost] = []
    begun = threading.Event()

    def work(locks: MemoryLocks) -> None:
        try:
            with locks.lock("report"):
                begun.set()
                while True:
                    time.sleep(0.01)
        except LockLost as lost:
            seen.append(lost)

    with pytest.raises(AssertionError, match="`report`"), memory_locks() as locks:
        thread = threading.Thread(target=work, args=[locks])
        thread.start()
        assert begun.wait(10)
    thread.join(10)
    assert [lost.reason for lost in seen] == ["forced"]


def test_busy_excludes_the_tests_own_thread(locks: MemoryLocks) -> None:
    with locks.busy("report", holder="web-2"):
        assert locks.held() == {"report": "web-2"}
        with pytest.raises(LockTimeout) as caught, locks.lock("report", on_busy="raise"):
            pass
        assert caught.value.holder == "web-2"
    with locks.lock("report"):
        with pytest.raises(AssertionError, match="`report` is held by"):
            locks.busy("report")


def test_busy_ends_by_release_loss_or_the_end_of_the_test() -> None:
    with memory_locks() as locks:
        busy = locks.busy("report")
        busy.release()
        busy.release()
        with locks.lock("report", on_busy="raise"):
            pass
        locks.busy("report")
        locks.lose("report")
        locks.busy("report")
    locks.assert_not_locked("report")


def test_a_wait_ends_when_the_other_holder_releases(locks: MemoryLocks) -> None:
    busy = locks.busy("report")
    timer = threading.Timer(0.2, busy.release)
    timer.start()
    with locks.lock("report", timeout=20):
        assert busy._guard is None
    timer.join()


KEPT: list[Any] = []


class Mixed(LocksTestMixin, unittest.TestCase):
    def test_clean(self) -> None:
        with self.locks.lock("a"):
            self.locks.assert_locked("a")

    def test_leaves(self) -> None:
        # Kept, since a block that is dropped frees its lock.
        KEPT.append(self.locks.lock("left"))
        KEPT[-1].__enter__()

    def test_next(self) -> None:
        time.sleep(0.1)


Mixed.__test__ = False  # type: ignore[attr-defined]


def test_the_mixin_fails_the_test_that_left_a_lock_by_its_name() -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Mixed).run(result)
    assert (result.testsRun, result.errors) == (3, [])
    assert [test.id().rsplit(".", 1)[1] for test, _ in result.failures] == ["test_leaves"]
    assert "`left`" in result.failures[0][1]


def test_the_plugin_fails_the_test_that_left_a_lock_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(
        "def test_clean(locks):\n"
        "    with locks.lock('a'): pass\n"
        "def test_leaves(locks):\n"
        "    global kept; kept = locks.lock('left'); kept.__enter__()\n"
        "def test_next(locks):\n"
        "    import time; time.sleep(0.1)\n"
        "    locks.assert_not_locked('left')\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_user.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "3 passed, 1 error" in run.stdout, run.stdout + run.stderr
    assert "ERROR test_user.py::test_leaves" in run.stdout
    assert "`left`" in run.stdout


WITH_DJANGO = """
import time
import pytest
from django.contrib.auth.models import Group
from django.db import transaction
from database_locks import LockTimeout, lock, locked

@locked("job", on_busy="raise")
def job():
    Group.objects.create(name="made")

def test_without_access():
    with pytest.raises(RuntimeError, match="'default'.*fixture `locks`"):
        job()

def test_memory_needs_no_access(locks):
    with lock("job"):
        locks.assert_locked("job")

@pytest.mark.parametrize("inside", ["nothing", "atomic"])
class TestOrders:
    def work(self, locks, inside):
        if inside == "atomic":
            with transaction.atomic():
                job()
        else:
            job()
        assert Group.objects.filter(name="made").exists()
        locks.assert_not_locked("job")
        with locks.busy("job"), pytest.raises(LockTimeout):
            job()

    def test_database_first(self, db, locks, inside):
        self.work(locks, inside)

    def test_locks_first(self, locks, db, inside):
        self.work(locks, inside)

    def test_with_commits(self, transactional_db, locks, inside):
        self.work(locks, inside)

    def test_locks_before_commits(self, locks, transactional_db, inside):
        self.work(locks, inside)

def test_leaves_in_a_transaction(locks, db):
    global kept
    kept = lock("left")
    kept.__enter__()

def test_next(db, locks):
    time.sleep(0.1)
    assert not Group.objects.exists()

@pytest.mark.django_db
def test_a_real_lock_with_access():
    job()
"""


def test_the_fixture_works_with_pytest_django_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(WITH_DJANGO)
    project = Path(__file__).with_name("django_project")
    run = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ds=settings",
            "test_user.py",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env=environment(DBLOCK_DJANGO_DB="sqlite-file", PYTHONPATH=str(project)),
    )  # fmt: skip
    assert "13 passed, 1 error" in run.stdout, run.stdout + run.stderr
    assert "ERROR test_user.py::test_leaves_in_a_transaction" in run.stdout


def test_a_busy_lock_is_refused_to_readers_and_one_that_is_shared_to_writers(
    locks: MemoryLocks,
) -> None:
    with locks.busy("list"), pytest.raises(LockTimeout, match="`list` is held by another holder"):
        with locks.lock("list", shared=True, on_busy="raise"):
            pass
    with locks.busy("list", shared=True), locks.lock("list", shared=True):
        locks.assert_locked("list")
        with pytest.raises(AssertionError, match="lock `list` is held by"):
            locks.busy("list")
    with locks.busy("list", shared=True), pytest.raises(LockTimeout, match="`list` is shared by"):
        with locks.lock("list", on_busy="raise"):
            pass
    locks.assert_not_locked("list")


def test_shared_holds_are_lost_and_expired(locks: MemoryLocks) -> None:
    with pytest.raises(LockLost) as caught, locks.lock("list", shared=True):
        locks.lose("list")
    assert caught.value.reason == "forced"
    with pytest.raises(LockLost) as caught, locks.lock("list", shared=True):
        locks.expire("list")
        time.sleep(10)
    assert caught.value.reason == "expired"
    with pytest.raises(AssertionError, match="lock `list` is not held"):
        locks.expire("list")


def test_a_shared_hold_that_is_left_behind_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="still held at the end of the test: `list`"):
        with memory_locks() as locks:
            locks.lock("list", shared=True).acquire()
    with memory_locks() as locks:
        locks.assert_not_locked("list")
