"""`lock_all` in a Django project: transactions, fences and signals."""

from django.contrib.auth.models import Group
from django.db import transaction
from django.test import TransactionTestCase

from database_locks import LockConfigError, LockLost, connect, lock, lock_all
from database_locks.signals import lock_acquired, lock_released

from .tests_settings import _state, _url


def states(*names):
    return [_state(name) for name in names]


class LockAllTests(TransactionTestCase):
    def test_all_are_kept_until_the_commit(self):
        with transaction.atomic():
            with lock_all(["a", "b"]):
                Group.objects.create(name="one")
            self.assertEqual(states("a", "b"), ["held", "held"])
            # Another block of the same transaction has them still.
            with lock_all(["b", "a"]), lock("a"):
                pass
            with self.assertRaisesRegex(LockConfigError, "open transaction keeps"):
                lock_all(["b", "c"]).__enter__()
        self.assertEqual(states("a", "b"), ["free", "free"])

    def test_a_loss_before_the_commit_rolls_back(self):
        stranger = connect(_url())
        with self.assertRaises(LockLost) as caught, transaction.atomic():
            with lock_all(["a", "b"], lock_ttl=4) as held:
                Group.objects.create(name="lost")
            stranger.force_release("b")
            while True:
                held.lost  # noqa: B018
        self.assertEqual(caught.exception.name, "b")
        self.assertFalse(Group.objects.exists())
        self.assertEqual(states("a", "b"), ["free", "free"])

    def test_a_fence_over_all_commits_only_while_all_are_held(self):
        stranger = connect(_url())
        with self.assertRaises(LockLost) as caught, lock_all(["x", "y"]) as held:
            with held.atomic():
                Group.objects.create(name="fenced")
            stranger.force_release("y")
            with stranger.lock("y"), held.atomic():
                Group.objects.create(name="stale")
        self.assertEqual(caught.exception.name, "y")
        self.assertEqual(set(Group.objects.values_list("name", flat=True)), {"fenced"})
        self.assertEqual(states("x", "y"), ["free", "free"])

    def test_each_lock_sends_its_signals(self):
        told = []

        def receiver(signal, name, token, **words):
            told.append((signal is lock_acquired, name, token))

        for signal in (lock_acquired, lock_released):
            signal.connect(receiver)
            self.addCleanup(signal.disconnect, receiver)
        with lock_all(["a", "b"]) as held:
            tokens = held.tokens
        expected = [(first, name, tokens[name]) for first in (True, False) for name in "ab"]
        self.assertEqual(told, expected)
