"""`until`: locks that are kept until the transaction of their caller ends."""

import asyncio
import contextlib
import gc
import os
import threading
import unittest
from unittest import mock

from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, connections, transaction
from django.test import TransactionTestCase

from database_locks import (
    LockAlreadyRan,
    LockConfigError,
    LockLost,
    LockTimeout,
    lock,
    locked,
)
from database_locks.locks import DBLock
from database_locks.signals import lock_acquired, lock_released

from .tests_settings import _state, other_aliases
from .transaction_helpers import eventually, lose, write, written

OTHER = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}


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

    def test_a_lock_that_is_kept_is_not_granted_again_in_its_period(self):
        with transaction.atomic():
            with lock("once", once_per=600):
                with lock("once", once_per=600):
                    pass
            for once in (lock("once", once_per=600).__enter__, lock("once", once_per=600).acquire):
                with self.assertRaises(LockAlreadyRan):
                    once()
            with lock("once"):
                self.assertEqual(_state("once"), "held")
        self.assertEqual(_state("once"), "free")

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
                with lock("job", timeout=3, retry=0.1):
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
            eventually(lambda: failures)
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
        eventually(lambda: gc.collect() >= 0 and _state("job") == "free")


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

            def close():
                # A loss may have interrupted the test before its release.
                with contextlib.suppress(LockLost):
                    blocks.close()

            self.addCleanup(close)
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
                eventually(lambda: connection.needs_rollback)
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
