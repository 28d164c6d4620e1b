"""The settings that select the database of the locks, in a project with a test database."""

import contextlib
import os
import unittest
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.test.testcases import DatabaseOperationForbidden

from database_locks import (
    LockConfigError,
    LockException,
    LockTimeout,
    connect,
    lock,
    locked,
)
from database_locks.django import conf
from database_locks.locks import DBLock
from database_locks.testing import memory_locks


@contextlib.contextmanager
def other_aliases(**databases):
    """More DATABASES than the settings have, which the running test may use."""
    before = dict(connections.settings)
    for alias, entry in databases.items():
        connections.settings[alias] = connections.configure_settings({"default": entry})["default"]
    try:
        with contextlib.ExitStack() as stack:
            for case in _cases(SimpleTestCase):
                if "default" in case.databases:
                    allowed = {*case.databases, *databases}
                    stack.enter_context(mock.patch.object(case, "databases", allowed))
            yield
    finally:
        for alias in databases:
            with contextlib.suppress(AttributeError):
                del connections[alias]
        connections.settings.clear()
        connections.settings.update(before)


def _cases(case):
    yield case
    for inner in case.__subclasses__():
        yield from _cases(inner)


class PlaceTests(TestCase):
    def test_locks_are_in_the_test_database(self):
        with lock("here"):
            names = {row["name"] for row in conf.locks().list()}
            self.assertIn("here", names)
            if connection.vendor != "sqlite":
                # A row of this very database, whose name the runner has changed.
                with connection.cursor() as cursor:
                    cursor.execute("SELECT COUNT(*) FROM database_locks_lock WHERE name = 'here'")
                    self.assertEqual(cursor.fetchone()[0], 1)

    def test_one_client_is_made_for_each_database(self):
        self.assertIs(conf.locks(), conf.locks())

    def test_a_lock_is_visible_at_once_and_outlives_the_transaction_of_its_acquire(self):
        with self.assertRaises(ZeroDivisionError), lock("inside", timeout=5):
            with transaction.atomic():
                with self.assertRaises(LockTimeout):
                    other = connect(_url())
                    with other.lock("inside", timeout=3, retry=0.05):
                        pass
                raise ZeroDivisionError
        self.assertEqual(_state("inside"), "free")

    def test_contending_leaves_the_callers_transaction_usable(self):
        held = connect(_url()).lock("busy")
        with held, transaction.atomic():
            with self.assertRaises(LockTimeout):
                with lock("busy", retry=None):
                    pass
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                self.assertEqual(cursor.fetchone()[0], 1)

    @override_settings(DATABASE_LOCKS_URL="memory:elsewhere")
    def test_a_url_replaces_the_alias(self):
        self.assertIsNone(conf.alias())
        self.assertEqual(conf.locks().engine, "memory")

    @override_settings(DATABASE_LOCKS_URL="memory:x", DATABASE_LOCKS_ALIAS="default")
    def test_an_alias_together_with_a_url_is_refused(self):
        with self.assertRaisesRegex(LockConfigError, "give one of them"):
            conf.locks()

    @override_settings(DATABASE_LOCKS_ALIAS="nowhere")
    def test_an_unknown_alias_is_refused_and_the_known_ones_named(self):
        with self.assertRaisesRegex(LockConfigError, "'nowhere'.*default"):
            conf.locks()

    def test_the_alias_selects_the_database(self):
        entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        with other_aliases(locks=entry), override_settings(DATABASE_LOCKS_ALIAS="locks"):
            self.assertEqual(conf.locks().engine, "memory")

    def test_unsupported_settings_are_refused_at_use(self):
        entry = {"ENGINE": "django.db.backends.oracle", "NAME": "x"}
        mysql = {**entry, "ENGINE": "django.db.backends.sqlite3", "NAME": ""}
        with other_aliases(bad=mysql), override_settings(DATABASE_LOCKS_ALIAS="bad"):
            with self.assertRaisesRegex(LockConfigError, r"DATABASES\['bad'\]\['NAME'\] is empty|"):
                conf.locks()


class _ToLocks:
    def db_for_write(self, model, **hints):
        return "locks" if model._meta.label_lower == "database_locks.lock" else None


class RouterTests(SimpleTestCase):
    databases = {"default"}

    def test_the_router_for_writes_selects_the_database(self):
        with override_settings(DATABASE_ROUTERS=[_ToLocks()]):
            self.assertEqual(conf.alias(), "locks")
        self.assertEqual(conf.alias(), "default")


class SettingsTests(SimpleTestCase):
    def test_settings_are_read_at_each_use_and_never_written(self):
        self.assertTrue(conf.enabled())
        self.assertEqual((conf.default_ttl(), conf.default_ttl_renew()), (10, None))
        self.assertIsNone(conf.status_file())
        with override_settings(
            DATABASE_LOCKS_ENABLED=False,
            DATABASE_LOCKS_DEFAULT_TTL=None,
            DATABASE_LOCKS_DEFAULT_TTL_RENEW=2,
            DATABASE_LOCKS_STATUS_FILE="/x",
        ):
            self.assertFalse(conf.enabled())
            self.assertEqual((conf.default_ttl(), conf.default_ttl_renew()), (None, 2))
            self.assertEqual(conf.status_file(), "/x")

        from django.conf import settings

        self.assertFalse([name for name in dir(settings) if name.startswith("DATABASE_LOCKS")])


class WithoutAccessTests(SimpleTestCase):
    """A test that may not use the database, as Django has it."""

    def refused(self, work):
        with self.assertRaisesRegex(DatabaseOperationForbidden, "'default'.*fixture `locks`"):
            work()

    def test_a_test_without_database_access_is_refused_a_lock_by_every_method(self):
        @locked("job")
        def decorated():
            self.fail("ran")

        def block():
            with lock("job"):
                self.fail("ran")

        for work in (
            decorated,
            block,
            lambda: DBLock("job").acquire(),
            lambda: call_command("locks", "list"),
        ):
            self.refused(work)

    @unittest.skipUnless(
        hasattr(SimpleTestCase, "ensure_connection_patch_method"),
        "this Django lets other threads use the database",
    )
    def test_a_test_without_database_access_is_refused_a_lock_in_threads_and_tasks(self):
        async def in_a_task():
            async with lock("job"):
                self.fail("ran")

        self.refused(async_to_sync(in_a_task))
        with ThreadPoolExecutor(1) as pool:
            self.refused(lambda: pool.submit(conf.locks).result())

    def test_a_test_without_database_access_may_use_memory_but_no_url(self):
        with override_settings(DATABASE_LOCKS_URL="postgres://user@nowhere.invalid/app"):
            self.refused(conf.locks)
        with override_settings(DATABASE_LOCKS_URL="memory:"), lock("job"):
            pass

    def test_handlers_of_lock_exceptions_do_not_hide_the_refusal(self):
        def work():
            try:
                with lock("job"):
                    self.fail("ran")
            except LockException:
                pass

        self.refused(work)

    @override_settings(DATABASE_LOCKS_ENABLED=False)
    def test_disabled_locks_need_no_database_access(self):
        with lock("job"):
            pass


class KitTests(SimpleTestCase):
    def test_all_locks_of_the_block_are_in_memory(self):
        with memory_locks() as locks:
            self.assertIs(conf.locks(), locks)
            with lock("here"):
                locks.assert_locked("here")
            locks.assert_not_locked("here")
        self.assertIsNot(conf._clients.instead, locks)


@override_settings(DATABASE_LOCKS_ALIAS=None)
class FlushTests(TransactionTestCase):
    def test_the_table_may_be_emptied_while_a_lock_is_held(self):
        with lock("before"):
            self.assertEqual(_state("before"), "held")


def _state(name):
    row = conf.locks().show(name)
    return row and row["state"]


def _url():
    """The URL of the project's locks, for another client."""
    name = conf.alias()
    if connections[name].vendor == "sqlite" and connections[name].is_in_memory_db():
        # In memory each `Locks` of one name is the same table.
        return conf.find(name).url_of(name)
    assert os.getpid()
    return conf.find(name).url_of(name)
