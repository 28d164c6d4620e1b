"""`until` within the transaction of a `TestCase`, and with the test kit."""

from django.db import transaction
from django.test import TestCase

from database_locks import LockLost, lock
from database_locks.testing import LocksTestMixin

from .tests_settings import _state
from .transaction_helpers import lose_and_wait, write, written


class InTestCaseTests(TestCase):
    def test_the_transaction_of_a_test_case_does_not_keep_the_lock(self):
        for until in ("commit", "exit"):
            with lock("job", until=until):
                pass
            self.assertEqual(_state("job"), "free")

    def test_a_transaction_of_the_application_in_a_test_case_keeps_the_lock(self):
        with self.captureOnCommitCallbacks() as callbacks:
            with transaction.atomic():
                with lock("job"):
                    write()
                self.assertEqual(_state("job"), "held")
            self.assertEqual(_state("job"), "free")
        self.assertEqual(callbacks, [])

    def test_a_loss_rolls_back_a_savepoint_in_a_test_case(self):
        with self.assertRaises(LockLost), transaction.atomic():
            with lock("job", lock_ttl=3) as held:
                write()
            lose_and_wait(held)
        self.assertEqual(written(), set())


class KitTests(LocksTestMixin, TestCase):
    def test_locks_in_memory_are_kept_until_the_commit_too(self):
        with lock("job"):
            self.locks.assert_locked("job")
        self.locks.assert_not_locked("job")
        with self.assertRaises(LockLost), transaction.atomic():
            with lock("job"):
                write("lost")
            self.locks.assert_locked("job")
            self.locks.lose("job")
        self.locks.assert_not_locked("job")
        with lock("job") as held, held.atomic():
            write("fenced")
        self.locks.assert_not_locked("job")
        self.assertEqual(written(), {"fenced"})
