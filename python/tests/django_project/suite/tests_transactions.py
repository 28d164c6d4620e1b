"""Locks and the transactions of their caller: kept until the commit, and fenced writes."""

import threading

from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.test import TestCase, TransactionTestCase, override_settings
from django.urls import path

from database_locks import LockConfigError, LockLost, LockTimeout, LockUnavailable, connect, lock

from .tests_conf import _state, _url, other_aliases


def written():
    return set(Group.objects.values_list("name", flat=True))


class UntilCommitTests(TransactionTestCase):
    def test_outside_of_a_transaction_it_ends_with_its_block(self):
        with lock("job", until="commit"):
            self.assertEqual(_state("job"), "held")
        self.assertEqual(_state("job"), "free")

    def test_it_is_kept_until_the_commit(self):
        with transaction.atomic():
            with lock("job", until="commit") as held:
                Group.objects.create(name="inside")
            self.assertEqual(_state("job"), "held")
            with lock("job", until="commit") as again:
                self.assertIs(again, held)
            self.assertEqual(_state("job"), "held")
        self.assertEqual(_state("job"), "free")

    def test_it_is_kept_until_the_rollback(self):
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            with lock("job", until="commit"):
                pass
            self.assertEqual(_state("job"), "held")
            raise ZeroDivisionError
        self.assertEqual(_state("job"), "free")

    def test_a_savepoint_that_is_rolled_back_does_not_end_it(self):
        with transaction.atomic():
            with self.assertRaises(ZeroDivisionError), transaction.atomic():
                with lock("job", until="commit"):
                    pass
                raise ZeroDivisionError
            self.assertEqual(_state("job"), "held")
        self.assertEqual(_state("job"), "free")

    def test_a_connection_that_is_closed_ends_it(self):
        with self.assertRaises(Exception), transaction.atomic():  # noqa: B017 - the driver's own
            with lock("job", until="commit"):
                pass
            connection.close()
            self.assertEqual(_state("job"), "free")
            Group.objects.count()


class UntilCommitInTestCaseTests(TestCase):
    def test_a_test_case_is_a_transaction(self):
        with lock("in a test case", until="commit"):
            pass
        self.assertEqual(_state("in a test case"), "held")
        # The transaction of the test ends after it.
        self.addClassCleanup(lambda: self.assertEqual(_state("in a test case"), "free"))

    def test_callbacks_of_the_commit_may_be_run_in_a_test(self):
        with self.captureOnCommitCallbacks(execute=True):
            with lock("captured", until="commit"):
                pass
            self.assertEqual(_state("captured"), "held")
        self.assertEqual(_state("captured"), "free")


def work(request):
    """A view that is one transaction, and the lock with it."""
    assert connection.in_atomic_block
    with lock("request", until="commit"):
        Group.objects.create(name="by a request")
    with lock("another", timeout=5), connect(_url()).lock("third", timeout=5):
        pass
    if "fail" in request.GET:
        raise ZeroDivisionError
    return HttpResponse(_state("request"))


urlpatterns = [path("job/", work)]


@override_settings(ROOT_URLCONF=__name__)
class AtomicRequestsTests(TransactionTestCase):
    def setUp(self):
        for entry in (connection.settings_dict, connections.settings["default"]):
            self.addCleanup(entry.update, ATOMIC_REQUESTS=entry["ATOMIC_REQUESTS"])
            entry["ATOMIC_REQUESTS"] = True

    def test_a_request_that_commits_frees_the_lock_with_it(self):
        self.assertEqual(self.client.get("/job/").content, b"held")
        self.assertEqual(_state("request"), "free")
        self.assertEqual(written(), {"by a request"})

    def test_a_request_that_fails_frees_it_too_and_has_written_nothing(self):
        self.client.raise_request_exception = False
        self.assertEqual(self.client.get("/job/?fail").status_code, 500)
        self.assertEqual(_state("request"), "free")
        self.assertEqual(written(), set())


class FencedTests(TransactionTestCase):
    def test_what_is_written_under_a_held_lock_commits(self):
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

    def test_who_has_lost_the_lock_writes_nothing(self):
        stranger = connect(_url())
        with self.assertRaises(LockLost) as caught, lock("job") as held:
            stranger.force_release("job")
            with stranger.lock("job"), held.atomic():
                Group.objects.create(name="stale")
        self.assertIn(caught.exception.reason, {"forced", "preempted"})
        self.assertEqual(caught.exception.token, held.token)
        self.assertEqual(written(), set())

    def test_nobody_gets_the_lock_while_a_fenced_transaction_is_open(self):
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
        self.assertIn("fenced", told[0])
        self.assertEqual(written(), {"fenced"})

    def test_a_lease_that_ends_under_a_fence_is_nobody_elses_before_the_commit(self):
        stranger = connect(_url())
        with lock("job", lock_ttl=0.6, auto_renew=False, lost_lock_cb=lambda *_: None) as held:
            with held.atomic():
                with self.assertRaises(LockTimeout):
                    with stranger.lock("job", timeout=1.5, retry=0.1):
                        pass
                Group.objects.create(name="late but fenced")
        self.assertEqual(written(), {"late but fenced"})

    def test_an_error_rolls_back_and_the_lock_goes_on(self):
        with lock("job") as held:
            with self.assertRaises(ZeroDivisionError), held.atomic():
                Group.objects.create(name="rolled back")
                raise ZeroDivisionError
            held.check()
            with held.atomic():
                Group.objects.create(name="after it")
        self.assertEqual(written(), {"after it"})

    def test_within_an_outer_transaction(self):
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

    def test_how_long_it_may_last_is_checked(self):
        with lock("job") as held:
            with held.atomic(lasting=60):
                Group.objects.create(name="long")
            for wrong in (-1, "5", float("nan")):
                with self.assertRaises(LockConfigError):
                    held.atomic(lasting=wrong)
        self.assertEqual(written(), {"long"})

    def test_another_database_is_refused(self):
        if connection.vendor == "sqlite":
            self.skipTest("the locks of SQLite are in a file of their own: any database will do")
        entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        with other_aliases(other=entry), lock("job") as held:
            with self.assertRaisesRegex(LockConfigError, "database of the lock"):
                with held.atomic(using="other"):
                    self.fail("entered")

    def test_a_plain_cursor_is_fenced(self):
        with lock("job") as held:
            with transaction.atomic(), connection.cursor() as cursor, held.fence(cursor):
                Group.objects.create(name="plain")
            connect(_url()).force_release("job")
            with self.assertRaises(LockLost), transaction.atomic(), connection.cursor() as cursor:
                with held.fence(cursor):
                    self.fail("passed")
        self.assertEqual(written(), {"plain"})
