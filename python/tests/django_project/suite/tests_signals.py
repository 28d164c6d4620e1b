"""Signals, and receivers that fail."""

import asyncio
import threading
import time

from django.contrib.auth.models import Group
from django.db import connections
from django.test import TransactionTestCase

from database_locks import LockLost, lock
from database_locks.signals import lock_acquired, lock_lost, lock_released
from database_locks.testing import LocksTestMixin


class SignalTests(LocksTestMixin, TransactionTestCase):
    def setUp(self):
        super().setUp()
        self.sent = []
        self.arrived = threading.Event()

    def connect(self, signal, receiver):
        signal.connect(receiver, weak=False)
        self.addCleanup(signal.disconnect, receiver)

    def note(self, signal, what):
        def receiver(sender, signal, **words):
            self.sent.append((what, sender, words))
            self.arrived.set()

        self.connect(signal, receiver)

    def test_each_hold_sends_acquired_and_released_once(self):
        self.note(lock_acquired, "acquired")
        self.note(lock_released, "released")
        with lock("job", locked_by="me") as held, lock("job"):
            self.assertEqual([what for what, *_ in self.sent], ["acquired"])
            time.sleep(0.05)
        (_, sender, acquired), (what, _, released) = self.sent
        self.assertIs(sender, lock)
        self.assertEqual(acquired, {"name": "job", "token": held.token, "holder": "me"})
        self.assertEqual(what, "released")
        self.assertGreaterEqual(released.pop("held_for"), 0.05)
        self.assertEqual(released, acquired)

    def test_a_task_sends_signals(self):
        self.note(lock_acquired, "acquired")
        self.note(lock_released, "released")

        async def work():
            async with lock("job"):
                pass

        asyncio.run(work())
        self.assertEqual([what for what, *_ in self.sent], ["acquired", "released"])

    def test_a_loss_is_sent_once_in_a_thread_that_may_query(self):
        threads = []

        def query(**_):
            Group.objects.count()
            threads.append(threading.current_thread())

        self.connect(lock_lost, query)
        self.note(lock_lost, "lost")
        self.note(lock_released, "released")
        with self.assertRaises(LockLost) as caught, lock("job", locked_by="me") as held:
            self.locks.lose("job")
            time.sleep(10)
        self.assertTrue(self.arrived.wait(20))
        time.sleep(0.1)
        ((what, sender, words),) = self.sent
        self.assertEqual((what, sender), ("lost", lock))
        self.assertEqual(
            {key: words[key] for key in ("name", "token", "holder", "reason", "detail")},
            {
                "name": "job",
                "token": held.token,
                "holder": "me",
                "reason": "forced",
                "detail": caught.exception.detail,
            },
        )
        self.assertIsNot(threads[0], threading.current_thread())
        threads[0].join(20)
        self.assertFalse(threads[0].is_alive())

    def test_without_receivers_no_thread_is_started(self):
        with self.assertRaises(LockLost), lock("job"):
            self.locks.lose("job")
            time.sleep(10)
        names = [thread.name for thread in threading.enumerate()]
        self.assertNotIn("database-locks-signal", names)

    def test_an_exception_of_a_receiver_harms_no_lock(self):
        def fails(**_):
            raise ZeroDivisionError

        async def cannot_run_in_a_loop(**_):
            raise AssertionError

        for signal in (lock_acquired, lock_lost, lock_released):
            self.connect(signal, fails)
        with self.assertLogs("django.dispatch", "ERROR"), lock("job"):
            self.locks.assert_locked("job")
        self.connect(lock_acquired, cannot_run_in_a_loop)

        async def work():
            async with lock("job"):
                self.locks.assert_locked("job")

        with self.assertLogs(level="WARNING"):
            asyncio.run(work())
        self.locks.assert_not_locked("job")

    def test_a_receiver_cannot_swallow_the_loss_of_another_lock(self):
        def slow(name, **_):
            if name == "inner":
                self.locks.lose("outer")
                time.sleep(20)

        for signal in (lock_acquired, lock_released):
            self.connect(signal, slow)
            began = time.monotonic()
            with self.assertRaisesRegex(LockLost, "outer"), lock("outer"), lock("inner"):
                self.assertIs(signal, lock_released)
            self.assertLess(time.monotonic() - began, 15)
            self.locks.drain()
            self.locks.assert_not_locked("inner")
            signal.disconnect(slow)

    def tearDown(self):
        connections.close_all()
