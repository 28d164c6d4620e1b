"""Migrations: every way to create the table, or to go back, gives the same table."""

import io
import threading
import time
import unittest

from django.apps import apps
from django.core.management import call_command
from django.db import connection, models, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.migrations.state import ModelState, ProjectState
from django.test import TransactionTestCase, override_settings

from database_locks import LockUnavailable, lock, semaphore
from database_locks.django import conf, install

TABLE = "database_locks_lock"
PERMITS = "database_locks_permit"
QUIET = {"verbosity": 0, "interactive": False}


def migrate(*words):
    call_command("migrate", "database_locks", *words, **QUIET)


class MigrationTests(TransactionTestCase):
    def setUp(self):
        migrate("zero")
        self.addCleanup(migrate)

    def fresh(self):
        migrate()
        return described()

    def made_by_0_5(self):
        """As Django makes it for the first migration of legacy, with rows."""
        state = ProjectState()
        state.add_model(
            ModelState(
                "database_locks",
                "Lock",
                [
                    ("id", models.AutoField(primary_key=True, serialize=False)),
                    ("name", models.CharField(max_length=255, unique=True)),
                    ("locked_by", models.TextField(blank=True, null=True)),
                    ("expires_at", models.DateTimeField(blank=True, null=True)),
                ],
            )
        )
        with connection.schema_editor() as editor:
            editor.create_model(state.apps.get_model("database_locks", "Lock"))
        MigrationRecorder(connection).record_applied("database_locks", "0001_initial")
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {TABLE} (name, locked_by) VALUES ('old', 'host.1')")

    def test_migrate_completes_the_table_of_legacy_with_rows(self):
        wanted = self.fresh()
        migrate("zero")
        self.made_by_0_5()
        migrate()
        self.assertEqual(described(), wanted)
        rows = list(apps.get_model("database_locks", "Lock").objects.values("name", "token"))
        self.assertEqual(rows, [{"name": "old", "token": 0}])
        # An old process goes on writing to it.
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {TABLE} (name, locked_by) VALUES ('new', 'host.1')")

    def test_migrate_accepts_the_table_of_dblock_init(self):
        wanted = self.fresh()
        migrate("zero")
        self.core_makes_it()
        self.assertEqual(described(), wanted)
        migrate()
        self.assertEqual(described(), wanted)
        self.core_makes_it()
        self.assertEqual(described(), wanted)

    def test_migrate_follows_dblock_init_on_the_table_of_legacy(self):
        wanted = self.fresh()
        migrate("zero")
        self.made_by_0_5()
        self.core_makes_it()
        migrate()
        self.assertEqual(described(), wanted)

    def core_makes_it(self):
        if connection.vendor == "sqlite":
            # The locks are in another file: create this table by hand.
            with connection.cursor() as cursor:
                cursor.execute(install.schema("sqlite"))
                cursor.execute(install.permit_schema("sqlite"))
        else:
            conf.locks().migrate()

    def test_migrate_and_dblock_init_create_the_same_table_of_permits_in_any_order(self):
        self.assertNotIn(PERMITS, connection.introspection.table_names())
        migrate()
        wanted = described(PERMITS)
        self.assertIn("slot", wanted[0])
        self.core_makes_it()
        self.assertEqual(described(PERMITS), wanted)
        for _ in range(2):
            migrate("0002")
            self.assertNotIn(PERMITS, connection.introspection.table_names())
            self.core_makes_it()
            self.assertEqual(described(PERMITS), wanted)
            migrate()
            self.assertEqual(described(PERMITS), wanted)
        migrate("zero")
        self.assertNotIn(PERMITS, connection.introspection.table_names())
        self.core_makes_it()
        self.assertEqual(described(PERMITS), wanted)
        migrate()
        self.assertEqual(described(PERMITS), wanted)

    def test_permits_work_on_the_migrated_table(self):
        for _ in range(2):
            migrate()
            with semaphore("here", 2, retry=0) as held:
                held.check()
                self.assertEqual(conf.locks().show_semaphore("here")["held"], 1)
            migrate("0002")

    @unittest.skipIf(connection.vendor == "sqlite", "the locks have a file of their own")
    def test_a_missing_table_of_permits_is_found_by_check(self):
        def check_output():
            output = io.StringIO()
            call_command("check", databases=["default"], stderr=output, no_color=True)
            return output.getvalue()

        migrate("0002")
        self.assertIn("W010) The database 'default' has no table", check_output())
        self.assertIn("`manage.py migrate database_locks`", check_output())
        migrate()
        self.assertEqual(check_output(), "")

    def test_migrations_run_backwards_and_forwards(self):
        wanted = self.fresh()
        for _ in range(2):
            migrate("0001")
            self.assertEqual(set(described()[0]), {"id", "name", "locked_by", "expires_at"})
            migrate("0001")
            migrate()
            self.assertEqual(described(), wanted)
        migrate("zero")
        self.assertNotIn(TABLE, connection.introspection.table_names())

    @unittest.skipIf(connection.vendor == "sqlite", "the locks have a file of their own")
    def test_a_missing_and_an_old_table_are_found_by_check(self):
        def check_output():
            output = io.StringIO()
            call_command("check", databases=["default"], stderr=output, no_color=True)
            return output.getvalue()

        self.assertIn("database_locks.W007", check_output())
        self.assertIn("manage.py migrate database_locks`", check_output())
        # What has seen the table before waits for it to come back.
        conf.forget()
        with self.assertRaisesRegex(LockUnavailable, "`manage.py migrate database_locks`"):
            with lock("job", timeout=5):
                pass
        self.made_by_0_5()
        self.assertIn("W008) The table database_locks_lock lacks token, grant_id,", check_output())
        self.assertIn("manage.py migrate database_locks`", check_output())
        if connection.vendor == "mysql":
            # Before the roll-out, when it can still be planned.
            with override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin"):
                self.assertIn("database_locks.W006", check_output())
        # `migrate` itself does not ask for what it is about to do.
        output = io.StringIO()
        call_command("migrate", "database_locks", verbosity=0, skip_checks=False, stderr=output)
        self.assertNotIn("database_locks.W", output.getvalue())
        self.assertEqual(check_output(), "")
        # Dropped by hand: migrate would do nothing.
        with connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE {TABLE}")
        self.assertIn("Run `manage.py locks init`", check_output())
        call_command("locks", "init", stdout=io.StringIO())
        self.assertEqual(check_output(), "")

    def test_locks_work_on_the_migrated_table(self):
        migrate()
        with lock("here") as held:
            held.check()
        migrate("0001")
        migrate()
        with lock("here") as held:
            held.check()

    def test_a_migration_waits_for_other_transactions(self):
        if connection.vendor == "sqlite":
            self.skipTest("no lock uses the table in the application's file")
        self.made_by_0_5()
        began, done = threading.Event(), threading.Event()

        def user():
            try:
                with transaction.atomic(), connection.cursor() as cursor:
                    cursor.execute(f"SELECT * FROM {TABLE} FOR UPDATE")
                    began.set()
                    time.sleep(1.5)
                    done.set()
            finally:
                connection.close()

        thread = threading.Thread(target=user)
        thread.start()
        began.wait(10)
        migrate()
        self.assertTrue(done.is_set())
        thread.join()

    def sqlmigrate(self, number, table=TABLE, **how):
        output = io.StringIO()
        call_command("sqlmigrate", "database_locks", number, stdout=output, **how)
        self.assertIn(table, output.getvalue())
        return output.getvalue()

    def test_sqlmigrate_shows_the_statements(self):
        # Where there is no table yet the first migration makes all of it.
        self.assertIn("CREATE TABLE", self.sqlmigrate("0001"))
        self.assertIn("DROP TABLE", self.sqlmigrate("0001", backwards=True))
        self.assertNotIn(
            "ADD COLUMN", self.sqlmigrate("0002").split("$tidy$")[0].partition("--")[0]
        )
        self.assertIn("DROP COLUMN", self.sqlmigrate("0002", backwards=True))

    def test_sqlmigrate_shows_the_statements_for_permits(self):
        for there in (False, True):
            output = self.sqlmigrate("0003", table=PERMITS)
            if there:
                self.assertIn(f"-- {PERMITS} exists already", output)
            else:
                self.assertRegex(output, rf"CREATE TABLE (IF NOT EXISTS )?{PERMITS} \(")
            output = self.sqlmigrate("0003", table=PERMITS, backwards=True)
            self.assertIn(f"DROP TABLE IF EXISTS {PERMITS}", output)
            self.assertEqual(PERMITS in connection.introspection.table_names(), there)
            migrate()

    def test_sqlmigrate_shows_the_statements_for_the_present_table(self):
        self.made_by_0_5()
        before = described()
        output = self.sqlmigrate("0002")
        for column in install.COLUMNS:
            self.assertRegex(output, rf"ADD COLUMN (IF NOT EXISTS )?{column} ")
        # Showing changes nothing.
        self.assertEqual(described(), before)
        ran = []
        with connection.execute_wrapper(
            lambda run, sql, *rest: (ran.append(sql), run(sql, *rest))[1]
        ):
            migrate()
        changes = [sql for sql in ran if TABLE in sql and ("ALTER " in sql or "CREATE " in sql)]
        self.assertNotEqual(changes, [])
        for sql in changes:
            self.assertIn(_squeezed(sql), _squeezed(output))
        # And nothing is left to do.
        if connection.vendor != "postgresql":
            self.assertNotIn("ADD COLUMN", self.sqlmigrate("0002"))

    def test_makemigrations_finds_no_changes(self):
        for field in ("AutoField", "BigAutoField"):
            with override_settings(DEFAULT_AUTO_FIELD=f"django.db.models.{field}"):
                call_command("makemigrations", "database_locks", check=True, **QUIET)

    def test_a_router_prevents_the_table(self):
        class No:
            def allow_migrate(self, db, app_label, **hints):
                return app_label != "database_locks"

        with override_settings(DATABASE_ROUTERS=[No()]):
            migrate()
            self.assertNotIn(TABLE, connection.introspection.table_names())
            self.assertNotIn(PERMITS, connection.introspection.table_names())
            migrate("zero")


def _squeezed(sql):
    return " ".join(sql.strip().rstrip(";").split())


def described(table=TABLE):
    """Columns, and what keeps names apart."""
    with connection.cursor() as cursor:
        columns = connection.introspection.get_table_description(cursor, table)
        constraints = connection.introspection.get_constraints(cursor, table)
        extra = []
        if connection.vendor == "mysql":
            # Not SHOW CREATE TABLE: how much it prints depends on the table's default character set.
            cursor.execute(
                "SELECT column_name, column_type, character_set_name, collation_name, is_nullable,"
                " column_default, extra FROM information_schema.columns"
                " WHERE table_schema = DATABASE() AND table_name = %s AND column_name <> 'id'"
                " ORDER BY ordinal_position",
                [table],
            )
            extra = list(cursor.fetchall())
            cursor.execute(
                "SELECT engine, row_format FROM information_schema.tables"
                " WHERE table_schema = DATABASE() AND table_name = %s",
                [table],
            )
            extra += cursor.fetchall()
    keys = sorted(
        (tuple(found["columns"]), found["unique"], found["primary_key"], bool(found["check"]))
        for found in constraints.values()
    )
    fields = {
        # Without the width of the widest value, which MySQL's driver says as well. It also tells a
        # collation only where that differs from the table's: that is among the other facts.
        column.name: (column[1], *column[3 : 8 if extra else None])
        for column in columns
    }
    # An integer in a table of legacy, which stays one.
    fields["id"] = None
    return fields, keys, extra
