"""The file of the locks beside an SQLite database: mode and owner."""

import os
import tempfile
import unittest
from pathlib import Path

from django.db import connection
from django.test import TestCase, override_settings

from database_locks import lock
from database_locks.django import conf

from .tests_settings import other_aliases


@unittest.skipUnless(connection.vendor == "sqlite", "of SQLite")
@override_settings(DATABASE_LOCKS_ALIAS="locks")
class FileTests(TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(conf.forget)
        self.database = Path(folder.name) / "app db.sqlite3"
        self.locks = Path(f"{self.database}.locks")
        umask = os.umask(0o027)
        self.addCleanup(os.umask, umask)

    def take_a_lock(self):
        entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(self.database)}
        with other_aliases(locks=entry), lock("job"):
            return self.locks.stat()

    def test_the_file_has_the_mode_of_the_database_with_every_umask(self):
        self.database.touch()
        for mode in (0o600, 0o640, 0o660, 0o666):
            self.database.chmod(mode)
            found = self.take_a_lock()
            self.assertEqual(oct(found.st_mode & 0o777), oct(mode))
            # And what SQLite adds to it.
            wal = Path(f"{self.locks}-wal")
            self.assertEqual(oct(wal.stat().st_mode & 0o777), oct(mode))
            conf.forget()
            for file in self.locks.parent.glob("*.locks*"):
                file.unlink()

    def test_without_a_database_the_file_has_the_mode_of_sqlite(self):
        self.assertEqual(oct(self.take_a_lock().st_mode & 0o777), oct(0o640))
        self.assertEqual([file.name for file in self.locks.parent.glob("*.locks.*")], [])

    @unittest.skipUnless(os.geteuid() == 0, "only root gives files away")
    def test_the_file_belongs_to_the_owner_of_the_database_if_root_creates_it(self):
        self.database.touch()
        os.chown(self.database, 4711, 4712)
        found = self.take_a_lock()
        self.assertEqual((found.st_uid, found.st_gid), (4711, 4712))

    def test_an_existing_file_is_not_changed(self):
        self.database.touch()
        self.locks.touch(0o600)
        self.assertEqual(oct(self.take_a_lock().st_mode & 0o777), oct(0o600))
