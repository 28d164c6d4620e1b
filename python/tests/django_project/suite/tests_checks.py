"""System checks: ids and hints."""

import unittest
from unittest import mock

from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.urls import include, path
from django.views import View
from django.views.decorators.cache import never_cache

from database_locks import LockConfigError, lock, locked
from database_locks.django import checks, install

from .tests_settings import other_aliases


def found(check):
    return [(message.id.removeprefix("database_locks."), message.hint) for message in check()]


class SettingsTests(SimpleTestCase):
    databases = {"default"}

    def one(self, check, number, hint, **settings):
        with override_settings(**settings):
            messages = found(check)
        self.assertEqual([which for which, _ in messages], [number])
        self.assertIn(hint, messages[0][1])

    def test_a_correct_project_has_no_findings(self):
        self.assertEqual(found(checks.check_settings) + found(checks.check_place), [])

    def test_each_finding_has_its_id_and_hint(self):
        settings, place = checks.check_settings, checks.check_place
        self.one(settings, "W001", "= True", DATABASE_LOCKS_ENABLED=False)
        self.one(settings, "W002", "DATABASE_LOCKS_DEFAULT_TTL?", DATABASE_LOCKS_DEFAULT_TLL=3)
        for bad in (0, "10", float("nan"), -1, True):
            self.one(settings, "E006", "0.1", DATABASE_LOCKS_DEFAULT_TTL=bad)
        self.one(settings, "E006", "before the end", DATABASE_LOCKS_DEFAULT_TTL_RENEW=-1)
        self.one(settings, "E006", "path", DATABASE_LOCKS_STATUS_FILE=3)
        self.one(settings, "E006", "str", DATABASE_LOCKS_URL=3)
        for bad in ("False", "", 0, None):
            self.one(settings, "E006", "True or False", DATABASE_LOCKS_ENABLED=bad)
        self.one(place, "E001", "default", DATABASE_LOCKS_ALIAS="nope")
        self.one(place, "E004", "postgres://", DATABASE_LOCKS_URL="redis://:hunter2@h")
        self.one(
            place, "E005", "Keep", DATABASE_LOCKS_ALIAS="default", DATABASE_LOCKS_URL="memory:"
        )

    def test_no_secret_is_shown(self):
        with override_settings(DATABASE_LOCKS_URL="redis://:hunter2@h"):
            self.assertNotIn("hunter2", repr(checks.check_place()))

    def test_settings_of_other_databases_are_checked(self):
        sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        with other_aliases(
            other={**sqlite, "ENGINE": "django.db.backends.dummy"},
            empty={**sqlite, "NAME": ""},
            replica={**sqlite, "TEST": {"MIRROR": "default"}},
        ):
            self.one(checks.check_place, "E002", "PostgreSQL", DATABASE_LOCKS_ALIAS="other")
            self.one(checks.check_place, "E003", "Name the file", DATABASE_LOCKS_ALIAS="empty")
            self.one(checks.check_place, "W004", "primary", DATABASE_LOCKS_ALIAS="replica")

    def test_a_value_that_is_no_boolean_is_refused_at_use_too(self):
        with override_settings(DATABASE_LOCKS_ENABLED="False"):
            with self.assertRaisesRegex(LockConfigError, "ENABLED is 'False', must be True or"):
                with lock("job"):
                    self.fail("ran")

    def test_a_setting_that_cannot_be_used_is_named_in_a_sentence(self):
        sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ""}
        with other_aliases(x=sqlite), override_settings(DATABASE_LOCKS_ALIAS="x"):
            (message,) = checks.check_place()
        self.assertEqual(message.msg, "Locks cannot use DATABASES['x']['NAME']: it is empty.")

    def test_the_checks_are_registered(self):
        with override_settings(DATABASE_LOCKS_URL="x", DATABASE_LOCKS_ENABLED=False):
            with self.assertRaisesRegex(SystemCheckError, "database_locks.E004"):
                call_command("check")
        with override_settings(
            DATABASE_LOCKS_URL="x", SILENCED_SYSTEM_CHECKS=["database_locks.E004"]
        ):
            call_command("check", verbosity=0)


@locked("a", until="exit")
def early(request):
    return HttpResponse()


@locked("b", until="commit")
def late(request):
    return HttpResponse()


class Early(View):
    @locked("c", until="exit")
    def post(self, request):
        return HttpResponse()


urlpatterns = [
    path("early", never_cache(early)),
    path("late", late),
    path("in/", include([path("class", Early.as_view())])),
    path("other", transaction.non_atomic_requests(early)),
]


@override_settings(ROOT_URLCONF=__name__)
class RequestTests(SimpleTestCase):
    databases = {"default"}

    def test_a_view_that_frees_its_lock_before_the_commit_is_found(self):
        self.assertEqual(checks.check_requests(), [])
        with mock.patch.dict(connection.settings_dict, ATOMIC_REQUESTS=True):
            messages = checks.check_requests()
        self.assertEqual([message.id for message in messages], ["database_locks.W009"] * 2)
        message = "".join(message.msg for message in messages)
        self.assertIn(f"The view {__name__}.early frees its lock", message)
        self.assertIn(f"The view {__name__}.Early.post frees its lock", message)

    def test_a_view_outside_the_transaction_is_not_found(self):
        with mock.patch.dict(connection.settings_dict, ATOMIC_REQUESTS=True):
            with override_settings(ROOT_URLCONF=(path("x", urlpatterns[3].callback),)):
                self.assertEqual(checks.check_requests(), [])


class NoMigrations:
    def allow_migrate(self, db, app_label, **hints):
        return app_label != "database_locks"


class TableTests(TestCase):
    def test_a_migrated_table_has_no_findings(self):
        self.assertEqual(checks.check_table(databases=["default"]), [])

    @unittest.skipIf(connection.vendor == "sqlite", "SQLite's table is not migrate's")
    def test_a_router_that_prevents_the_table_is_found(self):
        with override_settings(DATABASE_ROUTERS=[NoMigrations()]):
            self.assertEqual([which for which, _ in found(checks.check_place)], ["W005"])

    @unittest.skipUnless(connection.vendor == "mysql", "a matter of MySQL's")
    def test_local_times_of_legacy_are_found_while_no_lock_is_held(self):
        berlin = override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin")
        with berlin, connection.cursor() as cursor:
            self.assertEqual(found(lambda: checks.check_table(databases=["default"])), [])
            # As legacy leaves the row of a lock that it has released.
            cursor.execute("INSERT INTO database_locks_lock (name) VALUES ('old')")
            (message,) = checks.check_table(databases=["default"])
            self.assertEqual(message.id, "database_locks.W006")
            self.assertIn("Europe/Berlin", message.msg)
            cursor.execute("DELETE FROM database_locks_lock")


@unittest.skipUnless(connection.vendor == "mysql", "a matter of MySQL's")
class RowLockTests(TransactionTestCase):
    def test_a_table_without_row_locks_is_found(self):
        with connection.cursor() as cursor:
            # Shorter: a key of MyISAM's has 1,000 bytes at most.
            cursor.execute(
                "ALTER TABLE database_locks_lock MODIFY name varchar(250) NOT NULL, ENGINE = MyISAM"
            )
        try:
            messages = checks.check_table(databases=["default"])
            self.assertEqual([message.id for message in messages], ["database_locks.W003"])
        finally:
            with connection.cursor() as cursor:
                name = install._Mysql(connection.schema_editor()).definition("name")
                cursor.execute(f"ALTER TABLE database_locks_lock MODIFY {name}, ENGINE = InnoDB")
