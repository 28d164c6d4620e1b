"""The migration operation `GuardTable`, and the ORM on a guarded table."""

import io
import time
import unittest
from unittest import mock

from django.apps import apps
from django.core.management import call_command
from django.db import (
    DatabaseError,
    NotSupportedError,
    connection,
    migrations,
    transaction,
)
from django.db.migrations.writer import MigrationWriter
from django.test import TransactionTestCase, modify_settings

from database_locks import LockLost, LockTimeout, connect, lock, lock_all
from database_locks.django import conf, guards
from database_locks.operations import GuardTable

from .tests_settings import _url

GUARDS = connection.vendor in ("postgresql", "mysql")
QUIET = {"verbosity": 0, "interactive": False}


def migrate(*words):
    call_command("migrate", "ledger", *words, **QUIET)


@modify_settings(INSTALLED_APPS={"append": "ledger"})
class GuardedTests(TransactionTestCase):
    def setUp(self):
        if not GUARDS:
            self.skipTest("there are no guards here")
        migrate()
        # Before the tables are emptied, which a guard refuses.
        self.addCleanup(migrate, "zero")
        self.invoices = apps.get_model("ledger", "Invoice").objects

    def assert_refused(self, write):
        with self.assertRaises(DatabaseError) as caught, transaction.atomic():
            write()
        self.assertIn('is guarded by lock "ledger"', str(caught.exception))

    def test_the_orm_writes_under_a_held_atomic_alone(self):
        self.assert_refused(lambda: self.invoices.create(amount=1))
        with lock("ledger", timeout=20) as held:
            self.assert_refused(lambda: self.invoices.create(amount=1))
            with held.atomic():
                one = self.invoices.create(amount=1)
                self.invoices.bulk_create([one.__class__(amount=2), one.__class__(amount=3)])
                self.invoices.filter(amount=3).update(amount=4)
                # A savepoint within it.
                with transaction.atomic():
                    one.delete()
            # The ticket ends with the transaction.
            self.assert_refused(lambda: self.invoices.create(amount=1))
            with transaction.atomic():
                with held.atomic():
                    self.invoices.create(amount=8)
                # The row of the lock stays locked until here.
                self.invoices.create(amount=16)
            self.assert_refused(lambda: self.invoices.create(amount=1))
        self.assert_refused(lambda: self.invoices.all().delete())
        self.assertEqual(sorted(self.invoices.values_list("amount", flat=True)), [2, 4, 8, 16])

    def test_several_locks_open_the_table_of_each(self):
        with lock_all(["other", "ledger"], timeout=20) as held, held.atomic():
            self.invoices.create(amount=1)
        with lock("other", timeout=20) as held, held.atomic():
            self.assert_refused(lambda: self.invoices.create(amount=1))

    def test_a_stale_holder_writes_nothing(self):
        stranger = connect(_url())
        with self.assertRaises(LockLost), lock("ledger", timeout=20) as held:
            stranger.force_release("ledger")
            with stranger.lock("ledger"), held.atomic():
                self.invoices.create(amount=1)
        self.assertEqual(self.invoices.count(), 0)

    def test_no_client_gets_the_lock_during_a_guarded_transaction(self):
        stranger = connect(_url())
        with lock("ledger", timeout=20, lock_ttl=60) as held, held.atomic():
            self.invoices.create(amount=1)
            with self.assertRaises(LockTimeout), stranger.lock("ledger", timeout=3):
                pass

    def test_an_exception_rolls_back_and_forgets_the_ticket(self):
        with lock("ledger", timeout=20) as held:
            with self.assertRaises(ZeroDivisionError), held.atomic():
                self.invoices.create(amount=1)
                raise ZeroDivisionError
            self.assertEqual(self.invoices.count(), 0)
            self.assert_refused(lambda: self.invoices.create(amount=1))

    def test_the_end_of_a_fence_leaves_the_ticket_that_the_session_shows(self):
        show, shown = {
            "postgresql": (
                "SELECT set_config('database_locks.ticket', %s, false)",
                "SELECT current_setting('database_locks.ticket')",
            ),
            "mysql": ("SET @database_locks_ticket = %s", "SELECT @database_locks_ticket"),
        }[connection.vendor]
        self.addCleanup(connection.close)
        with lock("ledger", timeout=20) as ledger, connection.cursor() as cursor:
            cursor.execute(show, [ledger.ticket])
            with lock("other", timeout=20) as other, other.atomic(), other.atomic():
                self.invoices.create(amount=1)
            self.invoices.create(amount=2)
            with lock_all([f"step {number}" for number in range(100)], timeout=20) as steps:
                with steps.atomic():
                    self.invoices.create(amount=4)
            # That of the session itself.
            with ledger.atomic():
                self.invoices.create(amount=8)
            self.invoices.create(amount=16)
            cursor.execute(shown)
            self.assertEqual(cursor.fetchone(), (ledger.ticket,))
        self.assert_refused(lambda: self.invoices.create(amount=1))
        self.assertEqual(sum(self.invoices.values_list("amount", flat=True)), 31)

    def test_the_driver_writes_when_it_shows_the_ticket(self):
        show = {
            "postgresql": "SELECT set_config('database_locks.ticket', %s, true)",
            "mysql": "SET @database_locks_ticket = %s",
        }[connection.vendor]
        with lock("ledger", timeout=20, lock_ttl=60) as held:
            ticket = held.ticket
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(show, [ticket])
                cursor.execute("INSERT INTO ledger_invoice (amount) VALUES (5)")
        # The lock is free, and the ticket out of date.
        with self.assertRaises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(show, [ticket])
            cursor.execute("INSERT INTO ledger_invoice (amount) VALUES (6)")
        with connection.cursor() as cursor:
            if connection.vendor == "mysql":
                cursor.execute("SET @database_locks_ticket = NULL")
        self.assertEqual(list(self.invoices.values_list("amount", flat=True)), [5])

    def test_the_migration_runs_backwards_and_forwards(self):
        for _ in range(2):
            found = conf.locks().guarded_tables()
            guard = {"table": "ledger_invoice", "lock": "ledger", "intact": True}
            self.assertEqual(found, [{**guard, "gaps": [], "bypasses": []}])
            migrate("zero")
            self.assertEqual(conf.locks().guarded_tables(), [])
            migrate()
        # Alone.
        state = migrations.state.ProjectState.from_apps(apps)
        operation = GuardTable("Invoice", lock="ledger")
        for _ in range(2):
            with connection.schema_editor() as editor:
                operation.database_backwards("ledger", editor, state, state)
            self.invoices.create(amount=1)
            with connection.schema_editor() as editor:
                operation.database_forwards("ledger", editor, state, state)
            self.assert_refused(lambda: self.invoices.create(amount=1))

    def test_sqlmigrate_prints_the_statements_and_no_change_is_missing(self):
        output = io.StringIO()
        call_command("sqlmigrate", "ledger", "0001", stdout=output, no_color=True)
        shown = output.getvalue()
        self.assertIn("Guard the table of Invoice by the lock ledger", shown)
        self.assertEqual(
            shown.count("CREATE TRIGGER"), 1 if connection.vendor == "postgresql" else 3
        )
        output = io.StringIO()
        call_command("sqlmigrate", "ledger", "0001", backwards=True, stdout=output, no_color=True)
        self.assertIn("DROP TRIGGER", output.getvalue())
        call_command("makemigrations", "ledger", check=True, dry_run=True, verbosity=0)

    def test_what_sqlmigrate_prints_makes_the_guard(self):
        operation = GuardTable("Invoice", lock="ledger")
        state = migrations.state.ProjectState.from_apps(apps)
        with connection.schema_editor() as editor:
            operation.database_backwards("ledger", editor, state, state)
        with connection.schema_editor(collect_sql=True) as editor:
            operation.database_forwards("ledger", editor, state, state)
        with connection.cursor() as cursor:
            for statement in editor.collected_sql:
                cursor.execute(statement.rstrip(";"))
        self.assertTrue(conf.locks().guarded_tables()[0]["intact"])
        self.assert_refused(lambda: self.invoices.create(amount=1))

    @unittest.skipUnless(connection.vendor == "postgresql", "others try again")
    def test_the_migration_of_a_busy_table_fails_after_seconds_and_writers_go_on(self):
        state = migrations.state.ProjectState.from_apps(apps)
        operation = GuardTable("Invoice", lock="ledger")
        with connection.schema_editor() as editor:
            operation.database_backwards("ledger", editor, state, state)
        stranger = connection.copy()
        self.addCleanup(stranger.close)
        with transaction.atomic(), stranger.cursor() as cursor:
            # Writes, and stays open.
            self.invoices.create(amount=1)
            for limit in ("0", "100ms"):
                cursor.execute("SELECT set_config('lock_timeout', %s, false)", [limit])
                begun = time.monotonic()
                with self.assertRaises(DatabaseError) as caught:
                    with stranger.schema_editor() as editor:
                        operation.database_forwards("ledger", editor, state, state)
                took = time.monotonic() - begun
                self.assertIn(
                    '"ledger_invoice", or a part of it, keep it busy', str(caught.exception)
                )
                self.assertLess(took, 60)
                # By itself it waits for five seconds.
                self.assertEqual(took > 4, limit == "0")
        self.assertEqual(conf.locks().guarded_tables(), [])
        with stranger.schema_editor() as editor:
            operation.database_forwards("ledger", editor, state, state)
        with stranger.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            self.assertEqual(cursor.fetchone(), ("100ms",))
        self.assert_refused(lambda: self.invoices.create(amount=1))

    @unittest.skipUnless(connection.vendor == "mysql", "other engines have one kind of trigger")
    def test_on_a_cluster_sqlmigrate_prints_the_triggers_of_a_cluster(self):
        operation = GuardTable("Invoice", lock="ledger")
        state = migrations.state.ProjectState.from_apps(apps)
        for cluster in (False, True):
            with (
                mock.patch.object(guards, "_on_cluster", return_value=cluster),
                connection.schema_editor(collect_sql=True) as editor,
            ):
                operation.database_forwards("ledger", editor, state, state)
            changes_the_lock = "UPDATE `database_locks_lock`" in "".join(editor.collected_sql)
            self.assertEqual(changes_the_lock, cluster)
        self.assertFalse(guards._on_cluster(connection))

    def test_a_missing_table_of_locks_is_explained(self):
        migrate("zero")
        call_command("migrate", "database_locks", "zero", **QUIET)
        self.addCleanup(call_command, "migrate", "database_locks", **QUIET)
        state = migrations.state.ProjectState.from_apps(apps)
        operation = GuardTable("Invoice", lock="ledger")
        with self.assertRaises(NotSupportedError) as caught, connection.schema_editor() as editor:
            operation.database_forwards("ledger", editor, state, state)
        self.assertIn('("database_locks", "0003_permits")', str(caught.exception))


@modify_settings(INSTALLED_APPS={"append": "ledger"})
class OperationTests(TransactionTestCase):
    def test_it_is_written_into_a_migration(self):
        for operation in (
            GuardTable("Invoice", lock="it's"),
            GuardTable("Invoice", lock="a", unsupported="skip", allow_cascades=True),
        ):
            migration = migrations.Migration("0002_guard", "ledger")
            migration.operations = [operation]
            text = MigrationWriter(migration).as_string()
            self.assertIn("GuardTable(", text)
            found = {}
            exec(text, found)
            (read,) = found["Migration"].operations
            self.assertEqual(read.deconstruct(), operation.deconstruct())
        self.assertEqual(operation.migration_name_fragment, "guard_invoice")
        with self.assertRaises(ValueError):
            GuardTable("Invoice", lock="a", unsupported="ignore")

    def test_galera_and_a_group_with_several_primaries_are_clusters(self):
        group = {"group_replication_group_name": "a-b"}
        for variables, cluster in (
            ({}, False),
            ({"wsrep_on": "OFF"}, False),
            ({"wsrep_on": "ON"}, True),
            ({"group_replication_group_name": ""}, False),
            ({**group, "group_replication_single_primary_mode": "ON"}, False),
            ({**group, "group_replication_single_primary_mode": "OFF"}, True),
        ):
            self.assertEqual(guards._is_cluster(variables), cluster, variables)

    @unittest.skipIf(GUARDS, "there are guards here")
    def test_another_engine_refuses_with_the_reason(self):
        state = migrations.state.ProjectState.from_apps(apps)
        with connection.schema_editor() as editor:
            with self.assertRaises(NotSupportedError) as caught:
                GuardTable("Invoice", lock="a").database_forwards("ledger", editor, state, state)
            self.assertIn("PostgreSQL, MySQL or MariaDB", str(caught.exception))
            skips = GuardTable("Invoice", lock="a", unsupported="skip")
            skips.database_forwards("ledger", editor, state, state)
            skips.database_backwards("ledger", editor, state, state)
