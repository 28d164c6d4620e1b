"""`until`: locks that are kept until the transaction of their caller ends."""

import asyncio
import contextlib
import gc
import os
import queue
import threading
import time
import unittest
from unittest import mock

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.test import TestCase, TransactionTestCase, override_settings
from django.urls import path

from database_locks import LockConfigError, LockLost, LockTimeout, connect, lock, locked
from database_locks.locks import DBLock
from database_locks.models import Lock
from database_locks.signals import lock_acquired, lock_released
from database_locks.testing import LocksTestMixin

from .tests_settings import _state, _url, other_aliases

OTHER = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}


def written():
    return set(Group.objects.values_list("name", flat=True))


def write(name="written"):
    Group.objects.create(name=name)


def soon(done, seconds=20):
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} seconds")
        time.sleep(0.01)


def lose(name="job"):
    """Take it from its holder, as another process would."""
    connect(_url()).force_release(name)


def lose_unheard(name="job"):
    """The same without a notification, which on PostgreSQL a process hears that has waited for a lock."""
    if connection.vendor != "postgresql":
        return lose(name)

    def free():
        Lock.objects.filter(name=name).update(expires_at=None, granted_until=None, grant_id=None)
        connection.close()

    thread = threading.Thread(target=free)
    thread.start()
    thread.join()


def lose_and_wait(held):
    """Lose the lock, and wait here for the loss. A short ttl makes the holder notice it soon."""
    lose(held.name)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.01)


class KeptTests(TransactionTestCase):
    def test_without_a_transaction_the_lock_ends_with_its_block(self):
        for until in ("commit", "exit"):
            with lock("job", until=until):
                self.assertEqual(_state("job"), "held")
            self.assertEqual(_state("job"), "free")

    def test_a_lock_is_kept_until_the_commit(self):
        with transaction.atomic():
            with lock("job"):
                write()
            self.assertEqual(_state("job"), "held")
        self.assertEqual(_state("job"), "free")

    def test_a_lock_is_kept_until_the_rollback(self):
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            with lock("job"):
                write()
            self.assertEqual(_state("job"), "held")
            raise ZeroDivisionError
        self.assertEqual(_state("job"), "free")

    def test_a_lock_is_kept_after_an_exception_in_its_block(self):
        with transaction.atomic():
            with self.assertRaises(ZeroDivisionError), lock("job"):
                raise ZeroDivisionError
            self.assertEqual(_state("job"), "held")
        self.assertEqual(_state("job"), "free")

    def test_until_exit_releases_at_the_end_of_the_block(self):
        with transaction.atomic():
            with lock("job", until="exit"):
                pass
            self.assertEqual(_state("job"), "free")

    def test_the_rollback_of_a_savepoint_does_not_release_the_lock(self):
        for savepoint in (True, False):
            with self.subTest(savepoint=savepoint), transaction.atomic():
                with self.assertRaises(ZeroDivisionError), transaction.atomic(savepoint=savepoint):
                    with lock("job"):
                        pass
                    raise ZeroDivisionError
                self.assertEqual(_state("job"), "held")
            self.assertEqual(_state("job"), "free")

    def test_durable_transactions_and_reused_atomic_objects_keep_the_lock(self):
        twice = transaction.atomic()
        with transaction.atomic(durable=True), twice, twice:
            with lock("job"):
                pass
            self.assertEqual(_state("job"), "held")
        self.assertEqual(_state("job"), "free")

    def test_the_lock_of_a_generator_is_kept_until_the_transaction_of_its_end(self):
        @locked("job")
        def items():
            yield 1

        with transaction.atomic():
            self.assertEqual(list(items()), [1])
            self.assertEqual(_state("job"), "held")
        self.assertEqual(_state("job"), "free")

    def test_a_task_in_a_transaction_keeps_its_lock(self):
        async def work():
            with transaction.atomic():
                async with lock("job"):
                    pass
                self.assertEqual(_state("job"), "held")
            self.assertEqual(_state("job"), "free")

        with mock.patch.dict(os.environ, DJANGO_ALLOW_ASYNC_UNSAFE="1"):
            asyncio.run(work())

    def test_a_task_of_async_to_sync_is_refused_a_lock_in_the_callers_transaction(self):
        async def work(**options):
            async with lock("job", **options):
                await sync_to_async(written)()

        async def by_hand():
            job = lock("job")
            await job.aacquire()

        async def without_await():
            with lock("job"):
                pass

        async def dblock():
            DBLock("job").acquire()

        with transaction.atomic():
            for take in (work, by_hand, without_await, dblock):
                with self.assertRaisesMessage(
                    LockConfigError, "transaction open on the database 'd"
                ):
                    async_to_sync(take)()
            self.assertNotEqual(_state("job"), "held")
            async_to_sync(work)(until="exit")
            with lock("job"):
                async_to_sync(work)
            self.assertEqual(_state("job"), "held")
        async_to_sync(work)(until_using="default")
        async_to_sync(without_await)()
        self.assertEqual(_state("job"), "free")

    def test_closing_the_connection_releases_the_lock(self):
        with transaction.atomic():
            with lock("job"):
                pass
            connection.close()
        self.assertEqual(_state("job"), "free")

    def test_a_failed_commit_releases_the_lock(self):
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            with lock("job"):
                pass
            self.enterContext(
                mock.patch.object(connection, "commit", side_effect=ZeroDivisionError)
            )
        self.assertEqual(_state("job"), "free")

    def test_the_lock_is_free_before_on_commit_callbacks(self):
        states = []

        def callback():
            states.append(_state("job"))
            with lock("job"):
                states.append(_state("job"))
            raise ZeroDivisionError

        try:
            with transaction.atomic():
                transaction.on_commit(callback)
                with lock("job"):
                    pass
        except ZeroDivisionError as error:
            # With what its frames refer to.
            self.assertIsNotNone(error.__traceback__)
            self.assertEqual([*states, _state("job")], ["free", "held", "free"])
        else:
            self.fail("the error of the callback was lost")

    def test_a_kept_lock_nests_in_its_thread_and_excludes_others(self):
        failures = []

        def other():
            try:
                with lock("job", timeout=0.5, retry=0.1):
                    pass
            except LockTimeout as error:
                failures.append(error)
            with lock("job", timeout=20):
                failures.append(_state("job"))

        with transaction.atomic():
            with lock("job") as held:
                pass
            thread = threading.Thread(target=other)
            thread.start()
            with transaction.atomic(), lock("job") as again, lock("job"):
                self.assertIs(again, held)
            soon(lambda: failures)
            self.assertEqual(_state("job"), "held")
        thread.join(30)
        self.assertIsInstance(failures[0], LockTimeout)
        self.assertEqual(failures[1:], ["held"])

    def test_transactions_of_other_threads_do_not_keep_the_lock(self):
        states = []

        def other():
            with lock("job"):
                pass
            states.append(_state("job"))

        with transaction.atomic():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join(30)
        self.assertEqual(states, ["free"])

    def test_a_thread_that_ends_within_its_transaction_releases_the_lock(self):
        def other():
            transaction.atomic().__enter__()
            with lock("job"):
                pass

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(30)
        # With its connection, which is a cycle.
        soon(lambda: gc.collect() >= 0 and _state("job") == "free")


class ByHandTests(TransactionTestCase):
    """Released by a call: of an object, early in a block, and of the `DBLock` of 0.5."""

    def ways(self, ttl=60, **options):
        """Each acquires it, and answers with its release."""

        def of_object():
            job = lock("job", lock_ttl=ttl, **options)
            job.acquire()
            return job.release

        def of_dblock():
            job = DBLock("job", **options)
            self.assertTrue(job.acquire(lock_ttl=ttl))
            return job.release

        def early():
            blocks = contextlib.ExitStack()
            self.addCleanup(blocks.close)
            return blocks.enter_context(lock("job", lock_ttl=ttl, **options)).release

        return of_object, of_dblock, early

    def test_a_released_object_is_kept_until_the_transaction_ends(self):
        for acquire in self.ways():
            for end in (contextlib.nullcontext(), self.assertRaises(ZeroDivisionError)):
                with end, transaction.atomic():
                    release = acquire()
                    release()
                    release()
                    self.assertEqual(_state("job"), "held")
                    if not isinstance(end, contextlib.nullcontext):
                        raise ZeroDivisionError
                self.assertEqual(_state("job"), "free")

    def test_until_exit_releases_an_object_at_once(self):
        for acquire in self.ways(until="exit"):
            with transaction.atomic():
                acquire()()
                self.assertEqual(_state("job"), "free")

    def test_without_a_transaction_a_released_object_is_free_at_once(self):
        for acquire in self.ways():
            acquire()()
            self.assertEqual(_state("job"), "free")

    def test_the_same_thread_acquires_a_kept_lock_again_by_every_method(self):
        for acquire in self.ways():
            for again in self.ways():
                with transaction.atomic():
                    acquire()()
                    release = again()
                    release()
                    with lock("job"):
                        pass
                    self.assertEqual(_state("job"), "held")
                self.assertEqual(_state("job"), "free")

    def test_an_object_that_acquires_a_kept_lock_holds_it_beyond_the_commit(self):
        job = lock("job")
        with transaction.atomic():
            with lock("job"):
                pass
            job.acquire()
        self.assertEqual(_state("job"), "held")
        with self.assertRaises(LockTimeout), lock("job", retry=0):
            pass
        job.release()
        self.assertEqual(_state("job"), "free")

    def test_a_loss_before_the_commit_prevents_the_commit(self):
        for acquire in self.ways(ttl=1):
            with self.assertRaises(LockLost), transaction.atomic():
                release = acquire()
                write()
                release()
                lose()
                soon(lambda: connection.needs_rollback)
            self.assertEqual(written(), set())

    def test_a_loss_before_the_release_prevents_the_commit(self):
        for acquire in self.ways(ttl=1):
            with self.assertRaises(LockLost), transaction.atomic():
                release = acquire()
                write()
                lose()
                release()
                raise LockLost(name="job")
            self.assertEqual(written(), set())

    def test_a_kept_object_sends_its_signals_in_pairs(self):
        seen = []

        def see(signal, name, **_):
            seen.append(signal)

        for signal in (lock_acquired, lock_released):
            signal.connect(see)
            self.addCleanup(signal.disconnect, see)
        for acquire in self.ways():
            seen.clear()
            with transaction.atomic():
                acquire()()
                self.assertEqual(seen, [lock_acquired])
            self.assertEqual(seen, [lock_acquired, lock_released])


class AliasTests(unittest.TestCase):
    """Those of Django let a test connect only to aliases that were there before."""

    def setUp(self):
        self.enterContext(other_aliases(other=OTHER))
        self.addCleanup(lambda: connections["other"].close())

    def test_a_transaction_on_another_alias_keeps_the_lock(self):
        with transaction.atomic(using="other"):
            with lock("job"):
                pass
            self.assertEqual(_state("job"), "held")
        self.assertEqual(_state("job"), "free")

    def test_the_lock_is_kept_until_the_last_transaction_has_ended(self):
        outer, inner = transaction.atomic(using="other"), transaction.atomic()
        with outer:
            with inner:
                with lock("job"):
                    pass
            self.assertEqual(_state("job"), "held")
        self.assertEqual(_state("job"), "free")

    def test_until_using_restricts_it_to_one_alias(self):
        with transaction.atomic(using="other"), transaction.atomic():
            with lock("job", until_using="other"):
                pass
            self.assertEqual(_state("job"), "held")
        with transaction.atomic(using="other"):
            with lock("job", until_using="default"):
                pass
            self.assertEqual(_state("job"), "free")
        for wrong in ("nowhere", 5):
            with self.assertRaisesRegex(
                LockConfigError, "`until_using` is .*, must be one of DATAB"
            ):
                lock("job", until_using=wrong).__enter__()

    def test_with_autocommit_off_until_exit_is_required(self):
        with other_aliases(manual={**OTHER, "AUTOCOMMIT": False}):
            # Whether this thread has connected or not.
            for _ in range(2):
                with self.assertRaisesRegex(LockConfigError, "autocommit is off .* 'manual'"):
                    lock("job").__enter__()
                with connections["manual"].cursor() as cursor:
                    cursor.execute("SELECT 1")
            with transaction.atomic(using="manual"):
                with self.assertRaisesRegex(LockConfigError, 'give until="exit"'):
                    lock("job").__enter__()
                with lock("job", until="exit"):
                    pass
                self.assertEqual(_state("job"), "free")
            with lock("job", until_using="default"):
                pass
            connections["manual"].close()
        self.assertEqual(_state("job"), "free")

    def test_autocommit_switched_off_within_the_block_is_an_error_at_its_end(self):
        with self.assertRaisesRegex(LockConfigError, "autocommit is off"):
            with lock("job"):
                transaction.set_autocommit(False, using="other")
        self.assertEqual(_state("job"), "free")
        with self.assertRaisesRegex(LockConfigError, "autocommit is off"):
            lock("job").__enter__()
        transaction.set_autocommit(True, using="other")
        with lock("job"):
            pass


class LostTests(TransactionTestCase):
    """A lock that is lost between the end of its block and the commit."""

    def test_a_loss_after_the_block_rolls_the_transaction_back(self):
        began = time.monotonic()
        with self.assertRaises(LockLost) as caught, transaction.atomic():
            with lock("job", lock_ttl=0.9) as held:
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
                    with lock("job", lock_ttl=0.9) as held:
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
            with lock("job", lock_ttl=0.9) as held:
                write()
            with self.assertRaises(LockLost):
                lose_and_wait(held)
            with self.assertRaises(transaction.TransactionManagementError):
                write("after it")
        self.assertEqual(written(), set())

    def test_a_loss_within_the_block_rolls_the_transaction_back(self):
        with self.assertRaises(LockLost), transaction.atomic():
            with self.assertRaises(LockLost), lock("job", lock_ttl=0.9) as held:
                write()
                lose_and_wait(held)
        self.assertEqual((written(), _state("job")), (set(), "free"))

    def test_the_rollback_of_the_savepoint_is_enough(self):
        with transaction.atomic():
            write("before")
            with self.assertRaises(LockLost), transaction.atomic():
                with lock("job", lock_ttl=0.9) as held:
                    write()
                lose_and_wait(held)
            write("after")
        self.assertEqual(written(), {"before", "after"})

    def test_without_a_savepoint_the_whole_transaction_is_rolled_back(self):
        with self.assertRaises(LockLost), transaction.atomic():
            write("before")
            with self.assertRaises(LockLost), transaction.atomic(savepoint=False):
                with lock("job", lock_ttl=0.9) as held:
                    write()
                lose_and_wait(held)
        self.assertEqual(written(), set())

    def test_with_a_callback_the_transaction_is_not_rolled_back(self):
        called = threading.Event()
        with transaction.atomic():
            with lock("job", lock_ttl=0.9, lost_lock_cb=lambda *_: called.set()):
                write()
            lose()
            soon(called.is_set)
        self.assertEqual(written(), {"written"})

    def test_with_until_exit_no_loss_is_raised_after_the_block(self):
        with transaction.atomic():
            with lock("job", lock_ttl=0.9, until="exit"):
                write()
            lose()
            time.sleep(0.8)
        self.assertEqual(written(), {"written"})

    def test_a_loss_found_after_the_commit_is_logged(self):
        # The block is not told of it within 4 seconds.
        with self.assertLogs("database_locks.locks", "WARNING") as logs, transaction.atomic():
            with lock("job", lock_ttl=14):
                write()
            lose_unheard()
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
            with lock("job", lock_ttl=0.9) as held:
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


def work(request):
    """A view that is one transaction, and the lock with it."""
    assert connection.in_atomic_block
    with lock("request", lock_ttl=0.9) as held:
        write("by a request")
    with lock("another", timeout=5), connect(_url()).lock("third", timeout=5):
        pass
    if "fail" in request.GET:
        raise ZeroDivisionError
    if "lose" in request.GET:
        lose_and_wait(held)
    return HttpResponse(_state("request"))


urlpatterns = [path("job/", work)]


@contextlib.contextmanager
def atomic_requests():
    with mock.patch.dict(connection.settings_dict, ATOMIC_REQUESTS=True):
        with mock.patch.dict(connections.settings["default"], ATOMIC_REQUESTS=True):
            yield


@override_settings(ROOT_URLCONF=__name__)
class AtomicRequestsTests(TransactionTestCase):
    def setUp(self):
        self.enterContext(atomic_requests())
        self.client.raise_request_exception = False

    def test_a_request_that_commits_frees_the_lock_with_it(self):
        self.assertEqual(self.client.get("/job/").content, b"held")
        self.assertEqual([_state(name) for name in ("request", "another", "third")], ["free"] * 3)
        self.assertEqual(written(), {"by a request"})

    def test_a_request_that_fails_frees_the_lock_and_writes_nothing(self):
        self.assertEqual(self.client.get("/job/?fail").status_code, 500)
        self.assertEqual((_state("request"), written()), ("free", set()))

    def test_a_request_that_loses_its_lock_writes_nothing(self):
        self.assertEqual(self.client.get("/job/?lose").status_code, 500)
        self.assertEqual(written(), set())


@override_settings(ROOT_URLCONF=__name__)
class AtomicRequestsInTestCaseTests(TestCase):
    def test_a_view_in_a_test_case_behaves_as_in_production(self):
        with atomic_requests():
            self.assertEqual(self.client.get("/job/").content, b"held")
        self.assertEqual(_state("request"), "free")
