"""Fenced writes: `held.atomic()` and `held.fence()`."""

import threading
import time

from django.contrib.auth.models import Group
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase

from database_locks import LockConfigError, LockLost, LockTimeout, LockUnavailable, connect, lock

from .tests_settings import _state, _url, other_aliases
from .transaction_helpers import eventually


def written():
    return set(Group.objects.values_list("name", flat=True))


class FencedTests(TransactionTestCase):
    def test_writes_under_a_held_lock_commit(self):
        with lock("job") as held:
            with held.atomic() as same:
                self.assertIs(same, held)
                Group.objects.create(name="fenced")
            self.assertEqual(written(), {"fenced"})
            # More than one, and after a renewal.
            held.extend(30)
            with held.atomic():
                Group.objects.create(name="again")
        self.assertEqual(written(), {"fenced", "again"})

    def test_a_holder_that_has_lost_the_lock_writes_nothing(self):
        stranger = connect(_url())
        with self.assertRaises(LockLost) as caught, lock("job") as held:
            stranger.force_release("job")
            with stranger.lock("job"), held.atomic():
                Group.objects.create(name="stale")
        self.assertIn(caught.exception.reason, {"forced", "preempted"})
        self.assertEqual(caught.exception.token, held.token)
        self.assertEqual(written(), set())

    def test_no_other_client_gets_the_lock_while_a_fenced_transaction_is_open(self):
        stranger = connect(_url())
        told = []

        def take_it():
            try:
                stranger.force_release("job")
            except LockUnavailable as error:
                told.append(str(error))

        with lock("job") as held:
            with held.atomic():
                Group.objects.create(name="fenced")
                thread = threading.Thread(target=take_it)
                thread.start()
                thread.join()
            held.check()
        self.assertEqual(len(told), 1)
        self.assertIn("its row is locked", told[0])
        self.assertEqual(written(), {"fenced"})

    def test_after_the_end_of_the_lease_no_other_client_gets_the_lock_before_the_fenced_commit(
        self,
    ):
        stranger = connect(_url())
        with lock("job", lock_ttl=3, auto_renew=False, lost_lock_cb=lambda *_: None) as held:
            with held.atomic():
                with self.assertRaises(LockTimeout):
                    with stranger.lock("job", timeout=5, retry=0.1):
                        pass
                Group.objects.create(name="late but fenced")
        self.assertEqual(written(), {"late but fenced"})

    def test_an_error_rolls_back_and_the_lock_stays_held(self):
        with lock("job") as held:
            with self.assertRaises(ZeroDivisionError), held.atomic():
                Group.objects.create(name="rolled back")
                raise ZeroDivisionError
            held.check()
            with held.atomic():
                Group.objects.create(name="after it")
        self.assertEqual(written(), {"after it"})

    def test_a_fenced_transaction_can_be_within_an_outer_one(self):
        with lock("job") as held:
            with transaction.atomic():
                with held.atomic():
                    Group.objects.create(name="inner")
                with held.atomic():
                    Group.objects.create(name="second")
                with self.assertRaises(ZeroDivisionError), held.atomic():
                    Group.objects.create(name="gone")
                    raise ZeroDivisionError
            held.check()
            self.assertEqual(written(), {"inner", "second"})

    def test_a_lock_that_ends_within_the_transaction_of_its_fence_does_not_wait_for_itself(self):
        for until in ("commit", "exit"):
            for ttl in (60, 6):
                with self.subTest(until=until, ttl=ttl), transaction.atomic():
                    with lock("job", lock_ttl=ttl, until=until) as held, held.atomic():
                        Group.objects.create(name=f"fenced {until} {ttl}")
                        began = time.monotonic()
                    # Less than a release waits for an answer, which is 5 s.
                    self.assertLess(time.monotonic() - began, 4)
                eventually(lambda: _state("job") == "free")
        self.assertEqual(len(written()), 4)

    def test_a_release_before_the_commit_logs_that_the_fence_is_open(self):
        if connection.vendor != "mysql":
            self.skipTest("a fence is in the way of its own release only there")
        with self.assertLogs("database_locks.core", "INFO") as logs, transaction.atomic():
            with lock("job", until="exit") as held, held.atomic():
                pass
            eventually(lambda: "its own fenced transaction is open" in str(logs.output))
            self.assertEqual(_state("job"), "held")
        eventually(lambda: _state("job") == "free")

    def test_the_duration_of_a_fenced_transaction_is_checked(self):
        with lock("job") as held:
            with held.atomic(lasting=60):
                Group.objects.create(name="long")
            for wrong in (-1, "5", float("nan")):
                with self.assertRaises(LockConfigError):
                    held.atomic(lasting=wrong)
        self.assertEqual(written(), {"long"})

    def test_a_fence_in_another_database_is_refused(self):
        if connection.vendor == "sqlite":
            self.skipTest("the locks of SQLite are in a file of their own: any database will do")
        entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        with other_aliases(other=entry), lock("job") as held:
            with self.assertRaisesRegex(LockConfigError, "database of the lock"):
                with held.atomic(using="other"):
                    self.fail("entered")

    def test_held_fence_fences_a_plain_cursor(self):
        with self.assertRaises(LockLost), lock("job") as held:
            with transaction.atomic(), connection.cursor() as cursor, held.fence(cursor):
                Group.objects.create(name="plain")
            connect(_url()).force_release("job")
            with transaction.atomic(), connection.cursor() as cursor, held.fence(cursor):
                self.fail("passed")
        self.assertEqual(written(), {"plain"})


class FencedInTestCaseTests(TestCase):
    def test_a_fence_in_a_test_case_does_not_hold_up_the_end_of_its_lock(self):
        with lock("fenced in a test case") as held:
            with held.atomic():
                Group.objects.create(name="fenced")
            began = time.monotonic()
        self.assertLess(time.monotonic() - began, 4)
        self.assertEqual(written(), {"fenced"})
