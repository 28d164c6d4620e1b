"""``manage.py locks``: subcommands, exit codes and JSON."""

import contextlib
import io
import json
import sqlite3
import tempfile
from pathlib import Path

from django.core.management import CommandError, call_command
from django.test import TransactionTestCase

from database_locks import LockLost, connect, lock
from database_locks.django import conf


class CommandTests(TransactionTestCase):
    def setUp(self):
        # On SQLite the file of the locks outlives each test.
        for row in conf.locks().list():
            conf.locks().force_release(row["name"])
        conf.locks().prune(0, unknown=True)

    def output(self, *words):
        out = io.StringIO()
        call_command("locks", *words, stdout=out, no_color=True)
        return out.getvalue()

    def failed(self, code, *words):
        with self.assertRaises(CommandError) as caught:
            self.output(*words)
        self.assertEqual(caught.exception.returncode, code, caught.exception)
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)

    def test_list_shows_held_locks_and_with_all_free_ones(self):
        self.assertEqual(self.output("list"), "")
        self.assertEqual(json.loads(self.output("list", "--json")), [])
        with lock("a job", locked_by="me"):
            with lock("free"):
                pass
            head, line = self.output("list").splitlines()
            self.assertEqual(head.split()[:4], ["NAME", "STATE", "HOLDER", "TOKEN"])
            self.assertRegex(line, r"^a job +held +me +\d+ ")
            (row,) = json.loads(self.output("list", "--json"))
            self.assertEqual(
                list(row),
                [
                    "name",
                    "state",
                    "holder",
                    "token",
                    "grant",
                    "held_for",
                    "free_in",
                    "acquired_at",
                    "renewed_at",
                    "expires_at",
                    "metadata",
                ],
            )
            self.assertEqual([r["name"] for r in json.loads(self.output("list", "--all", "--json"))],
                             ["a job", "free"])  # fmt: skip

    def test_control_characters_are_escaped(self):
        with lock("x\x1b[2J\ny", locked_by="\u202ewho"):
            output = self.output("list")
        self.assertIn("x\\u{1b}[2J\\ny", output)
        self.assertIn("\\u{202e}who", output)

    def test_show_prints_all_facts(self):
        with lock("job", locked_by="me"):
            self.assertIn("holder", self.output("show", "job"))
            self.assertEqual(json.loads(self.output("show", "job", "--json"))["holder"], "me")
        self.assertIn("last holder", self.output("show", "job"))
        self.assertIn("there is no lock `none`", self.failed(1, "show", "none"))

    def test_release_requires_force(self):
        self.assertIn("--force", self.failed(2, "release", "job"))
        # Without a block: no loss interrupts the command itself.
        job = lock("job", locked_by="me")
        job.acquire()
        self.assertIn("me had held it for", self.output("release", "job", "--force"))
        self.assertEqual(conf.locks().show("job")["state"], "free")
        with self.assertRaises(LockLost):
            job.release()
        self.assertEqual(self.output("release", "job", "--force"), "lock `job` was free already\n")

    def test_a_lock_that_rests_is_listed_and_its_rest_can_be_ended(self):
        with lock("job", locked_by="me", at_least=600):
            pass
        _, line = self.output("list").splitlines()
        self.assertRegex(line, r"^job +resting +me +\d+ ")
        (row,) = json.loads(self.output("list", "--json"))
        self.assertEqual((row["state"], row["grant"]), ("resting", None))
        self.assertGreater(row["free_in"], 500)
        shown = self.output("show", "job")
        for label in ("last holder", "rests until", "free in"):
            self.assertIn(label, shown)
        self.assertEqual(
            self.output("release", "job", "--force"),
            "lock `job` is free: its rest after me is ended\n",
        )
        self.assertEqual(conf.locks().show("job")["state"], "free")

    def test_prune_deletes_rows_that_are_free_for_long(self):
        with lock("job"):
            pass
        self.assertEqual(
            self.output("prune", "--older-than", "30d"),
            "0 rows deleted of locks unused for 30d\n",
        )
        self.assertIn("1 row deleted", self.output("prune", "--older-than", "0"))
        with self.assertRaisesRegex(CommandError, "`soon`, must be a number with ms"):
            self.output("prune", "--older-than", "soon")

    def test_doctor_lists_its_checks(self):
        try:
            report = json.loads(self.output("doctor", "--json"))
        except CommandError as errors:
            # A server of the tests is not set up as one in production.
            self.assertEqual(errors.returncode, 1)
            self.assertRegex(str(errors), r"^\d+ errors?$")
        else:
            self.assertNotIn("error", [found["severity"] for found in report["findings"]])

    def test_doctor_fails_for_errors_and_with_strict_for_warnings(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        file = Path(folder.name) / "locks.sqlite3"
        locks = connect(f"sqlite://{file}")
        locks.migrate()
        with conf.instead(locks):
            self.assertNotIn("warning", self.output("doctor", "--strict"))
            with contextlib.closing(sqlite3.connect(file)) as other:
                other.execute("CREATE INDEX spare ON database_locks_lock (id)")
            self.assertRegex(self.output("doctor"), r"\nwarning +index-unused ")
            self.assertEqual(self.failed(1, "doctor", "--strict"), "1 finding")
            self.assertNotIn(
                "warning", self.output("doctor", "--strict", "--ignore", "index-unused")
            )
            file.chmod(0o666)
            self.assertEqual(self.failed(1, "doctor"), "1 error")
            self.assertEqual(self.failed(1, "doctor", "--strict"), "2 findings")

    def test_init_creates_the_table(self):
        self.assertEqual(
            self.output("init"),
            "tables `database_locks_lock` and `database_locks_permit` are ready\n",
        )

    def test_a_bad_name_exits_with_the_code_for_usage(self):
        self.assertIn("255", self.failed(2, "show", "x" * 256))

    def test_an_unreachable_database_is_reported_in_one_line(self):
        with conf.instead(connect("postgres://nobody:hunter2@127.0.0.1:1/none")):
            output = self.failed(69, "list")
        self.assertIn("127.0.0.1:1", output)
        self.assertNotIn("hunter2", output)
