"""Locks in views under ``ATOMIC_REQUESTS``."""

import contextlib
from unittest import mock

from django.db import connection, connections
from django.http import HttpResponse
from django.test import TestCase, TransactionTestCase, override_settings
from django.urls import path

from database_locks import connect, lock

from .tests_settings import _state, _url
from .transaction_helpers import lose_and_wait, write, written


def work(request):
    """A view that is one transaction, and the lock with it."""
    assert connection.in_atomic_block
    with lock("request", lock_ttl=4) as held:
        write("by a request")
    with lock("another", timeout=20), connect(_url()).lock("third", timeout=20):
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
