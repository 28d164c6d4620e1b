"""Settings of ``DATABASES`` that reach the server, checked on the server."""

import os
import tempfile
import unittest

from django.db import connection
from django.test import TransactionTestCase, override_settings

from database_locks import LockConfigError, lock
from database_locks.django import conf
from database_locks.django.install import TABLE

from .tests_settings import other_aliases


class Carried(TransactionTestCase):
    def setUp(self):
        self.addCleanup(conf.forget)

    def entry(self, **changes):
        own = connection.settings_dict
        entry = {key: own[key] for key in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")}
        return {**entry, **changes}

    def uses(self, look, **changes):
        """What a query of Django's sees while a lock is held with such settings."""
        with (
            other_aliases(locks=self.entry(**changes)),
            override_settings(DATABASE_LOCKS_ALIAS="locks"),
            lock("carried") as held,
            connection.cursor() as cursor,
        ):
            held.check()
            cursor.execute(look)
            return cursor.fetchall()

    def one(self, query):
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0]

    def run_all(self, *statements):
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


@unittest.skipUnless(connection.vendor == "postgresql", "of PostgreSQL")
class PostgresTests(Carried):
    def current(self, column):
        return f"""SELECT DISTINCT {column} FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = '{self._testMethodName}'"""

    def named(self, **options):
        # Of each test its own: connections of the test before may still be there.
        return {"application_name": self._testMethodName, **options}

    def test_application_name_and_socket_reach_the_server(self):
        folder = self.one("SHOW unix_socket_directories").split(",")[0].strip()
        port = self.one("SHOW port")
        seen = self.uses(self.current("client_addr"), HOST=folder, PORT=port, OPTIONS=self.named())
        self.assertEqual(seen, [(None,)])

    def test_the_search_path_reaches_the_server(self):
        self.run_all(
            "CREATE SCHEMA IF NOT EXISTS elsewhere",
            f"CREATE TABLE elsewhere.{TABLE} (LIKE {TABLE} INCLUDING ALL)",
        )
        self.addCleanup(self.run_all, "DROP SCHEMA elsewhere CASCADE")
        options = self.named(options="-c search_path=elsewhere")
        look = f"SELECT COUNT(*) FROM elsewhere.{TABLE} WHERE name = 'carried'"
        self.assertEqual(self.uses(look, OPTIONS=options), [(1,)])

    def test_the_assumed_role_may_use_the_table(self):
        self.run_all(
            "DROP ROLE IF EXISTS lock_user", "DROP ROLE IF EXISTS lock_owner",
            "CREATE ROLE lock_owner", "CREATE ROLE lock_user LOGIN NOINHERIT IN ROLE lock_owner",
            f"GRANT SELECT, INSERT, UPDATE ON {TABLE} TO lock_owner",
        )  # fmt: skip
        self.addCleanup(
            self.run_all, f"REVOKE ALL ON {TABLE} FROM lock_owner", "DROP ROLE lock_user",
            "DROP ROLE lock_owner",
        )  # fmt: skip
        options = self.named(assume_role="lock_owner")
        seen = self.uses(self.current("usename"), USER="lock_user", OPTIONS=options)
        self.assertEqual(seen, [("lock_user",)])


@unittest.skipUnless(connection.vendor == "mysql", "of MySQL and MariaDB")
class MysqlTests(Carried):
    WHERE = """SELECT DISTINCT host FROM information_schema.processlist
                WHERE db = DATABASE() AND user = 'carried'"""

    def setUp(self):
        super().setUp()
        # Of localhost as well: there a new server has a user without a name, who would come first.
        for user in ("carried", "carried@localhost"):
            self.run_all(
                f"CREATE USER IF NOT EXISTS {user} IDENTIFIED BY 'p@ss:/ #w'",
                f"GRANT ALL ON {connection.settings_dict['NAME']}.* TO {user}",
            )
            self.addCleanup(self.run_all, f"DROP USER {user}")

    def test_an_option_file_has_user_password_and_socket(self):
        with tempfile.NamedTemporaryFile("w", suffix=".cnf") as file:
            file.write(
                f"[client]\nuser = carried\npassword = 'p@ss:/ #w'\nsocket = {self.socket()}\n"
            )
            file.flush()
            options = {"read_default_file": file.name}
            seen = self.uses(self.WHERE, USER="", PASSWORD="", HOST="", PORT="", OPTIONS=options)
        self.assertEqual(seen, (("localhost",),))

    def test_a_socket_is_used(self):
        login = {"USER": "carried", "PASSWORD": "p@ss:/ #w"}
        for changes in (
            {"HOST": self.socket()},
            {"HOST": "", "OPTIONS": {"unix_socket": self.socket()}},
        ):
            self.assertEqual(self.uses(self.WHERE, **login, **changes), (("localhost",),))

    def socket(self):
        return self.one("SELECT @@socket")

    def test_init_command_is_run(self):
        self.run_all("CREATE TABLE IF NOT EXISTS begun (who text)")
        self.addCleanup(self.run_all, "DROP TABLE begun")
        options = {"init_command": "INSERT INTO begun VALUES (CURRENT_USER())"}
        login = {"USER": "carried", "PASSWORD": "p@ss:/ #w"}
        seen = self.uses("SELECT DISTINCT who FROM begun", **login, OPTIONS=options)
        self.assertIn(seen, [(("carried@localhost",),), (("carried@%",),)])

    def has_tls(self):
        with connection.cursor() as cursor:
            cursor.execute("SHOW VARIABLES WHERE Variable_name IN ('have_ssl', 'tls_version')")
            found = dict(cursor.fetchall())
        # MySQL 9 has no `have_ssl`, and no version where TLS is off.
        return found.get("have_ssl", found.get("tls_version") and "YES") == "YES"

    def test_required_tls_is_not_replaced_by_a_plain_connection(self):
        if self.has_tls():
            self.skipTest("this server has TLS")
        from database_locks import LockUnavailable

        with self.assertRaisesRegex(LockUnavailable, "TLS"):
            self.uses("SELECT 1", OPTIONS={"ssl_mode": "REQUIRED"})


@unittest.skipUnless(connection.vendor == "sqlite", "of SQLite")
class SqliteTests(Carried):
    def test_the_file_of_the_locks_is_beside_the_database(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "app ü.sqlite3")
            with (
                other_aliases(locks=self.entry(NAME=path)),
                override_settings(DATABASE_LOCKS_ALIAS="locks"),
                lock("carried"),
            ):
                self.assertTrue(os.path.exists(path + ".locks"))
                self.assertFalse(os.path.exists(path))

    def test_an_ignored_option_has_no_effect(self):
        with tempfile.TemporaryDirectory() as folder:
            changes = {"NAME": os.path.join(folder, "x"), "OPTIONS": {"timeout": 3}}
            with (
                other_aliases(locks=self.entry(**changes)),
                override_settings(DATABASE_LOCKS_ALIAS="locks"),
            ):
                self.assertEqual(conf.locks().engine, "sqlite")


class RefusedTests(Carried):
    @unittest.skipIf(connection.vendor == "sqlite", "SQLite has none that matters")
    def test_an_unknown_option_is_refused_at_use(self):
        with self.assertRaisesRegex(LockConfigError, r"DATABASES\['locks'\]\['OPTIONS'\]\['x_y'\]"):
            self.uses("SELECT 1", OPTIONS={"x_y": 1})
