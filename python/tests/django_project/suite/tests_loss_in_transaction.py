"""Locks that are lost while a transaction depends on them."""

import contextlib
import queue
import threading
import time

from django.db import connection, transaction
from django.test import TransactionTestCase

from database_locks import LockLost, connect, lock

from .tests_settings import _state
from .transaction_helpers import eventually, lose, lose_and_wait, lose_in_database, write, written


class LostTests(TransactionTestCase):
    """A lock that is lost between the end of its block and the commit."""

    def test_a_loss_after_the_block_rolls_the_transaction_back(self):
        began = time.monotonic()
        with self.assertRaises(LockLost) as caught, transaction.atomic():
            with lock("job", lock_ttl=3) as held:
                write()
            lose_and_wait(held)
        self.assertLess(time.monotonic() - began, 15)
        self.assertEqual(caught.exception.name, "job")
        self.assertEqual(caught.exception.token, held.token)
        self.assertEqual((written(), _state("job")), (set(), "free"))

    def test_a_loss_in_another_thread_rolls_the_transaction_back(self):
        raised = []

        def work():
            try:
                with transaction.atomic():
                    with lock("job", lock_ttl=3) as held:
                        write()
                    lose_and_wait(held)
            except LockLost as error:
                raised.append(error.name)
            finally:
                connection.close()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(30)
        self.assertEqual((raised, written()), (["job"], set()))

    def test_a_swallowed_loss_still_prevents_the_commit(self):
        with self.assertRaises(LockLost), transaction.atomic():
            with lock("job", lock_ttl=3) as held:
                write()
            with self.assertRaises(LockLost):
                lose_and_wait(held)
            with self.assertRaises(transaction.TransactionManagementError):
                write("after it")
        self.assertEqual(written(), set())

    def test_a_loss_within_the_block_rolls_the_transaction_back(self):
        with self.assertRaises(LockLost), transaction.atomic():
            with self.assertRaises(LockLost), lock("job", lock_ttl=3) as held:
                write()
                lose_and_wait(held)
        self.assertEqual((written(), _state("job")), (set(), "free"))

    def test_the_rollback_of_the_savepoint_is_enough(self):
        with transaction.atomic():
            write("before")
            with self.assertRaises(LockLost), transaction.atomic():
                with lock("job", lock_ttl=3) as held:
                    write()
                lose_and_wait(held)
            write("after")
        self.assertEqual(written(), {"before", "after"})

    def test_without_a_savepoint_the_whole_transaction_is_rolled_back(self):
        with self.assertRaises(LockLost), transaction.atomic():
            write("before")
            with self.assertRaises(LockLost), transaction.atomic(savepoint=False):
                with lock("job", lock_ttl=3) as held:
                    write()
                lose_and_wait(held)
        self.assertEqual(written(), set())

    def test_with_a_callback_the_transaction_is_not_rolled_back(self):
        called = threading.Event()
        with transaction.atomic():
            with lock("job", lock_ttl=3, lost_lock_cb=lambda *_: called.set()):
                write()
            lose()
            eventually(called.is_set)
        self.assertEqual(written(), {"written"})

    def test_with_until_exit_no_loss_is_raised_after_the_block(self):
        with transaction.atomic():
            with lock("job", lock_ttl=3, until="exit"):
                write()
            lose()
            time.sleep(1.5)
        self.assertEqual(written(), {"written"})

    def test_a_loss_found_after_the_commit_is_logged(self):
        # Not renewed, and too short to listen for a release by force: the block is not told of it.
        with self.assertLogs("database_locks.locks", "WARNING") as logs, transaction.atomic():
            with lock("job", lock_ttl=15, auto_renew=False):
                write()
            lose_in_database()
        self.assertIn("lost before its transaction had ended", str(logs.output))
        self.assertEqual(written(), {"written"})

    def test_a_loss_around_a_transaction_never_breaks_its_connection(self):
        """The loss is raised before the end of a transaction or after it, and never within it."""
        locks, rounds, failures = connect("memory:storm"), queue.SimpleQueue(), []

        def take():
            for n in iter(rounds.get, None):
                time.sleep(n % 30 / 10_000)
                locks.lose("storm")

        def work():
            for n in range(300):
                with contextlib.suppress(LockLost), locks.lock("storm"), transaction.atomic():
                    rounds.put(n)
                    time.sleep(n % 7 / 5_000)
                if connection.in_atomic_block or not connection.get_autocommit():
                    failures.append(n)
                    break
            rounds.put(None)
            connection.close()

        # No thread is started meanwhile.
        threads = [threading.Thread(target=target) for target in (take, work)]
        with self.assertLogs("database_locks.core"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
                self.assertFalse(thread.is_alive())
        self.assertEqual(failures, [])
