"""The guide of legacy (django-database-locks 0.5), line by line, with its promises."""

import gc
import logging
import tempfile
import threading
from pathlib import Path

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.test import SimpleTestCase, TransactionTestCase, override_settings

from database_locks import LockException, LockTimeout, LockUnavailable, connect, lock, locked
from database_locks.django import conf
from database_locks.locks import DBLock

from .tests_settings import _state, _url


@locked
class Command(BaseCommand):
    def handle(self, *args, **options):
        self.stdout.write(f"Got the lock: {_state(f'{__name__}.Command')}")


def handle():
    raise AssertionError("ran")


class Inner(BaseCommand):
    def handle(self, *args, **options):
        raise AssertionError("ran")


class SomeClass:
    @locked
    def locked(self):
        return _state(f"{__name__}.SomeClass.locked")

    def bare(self):
        with lock():
            return _state(f"{__name__}.SomeClass.bare")


class GuideTests(TransactionTestCase):
    def test_a_management_command_runs_under_its_lock(self):
        with tempfile.TemporaryFile("w+") as out:
            call_command(Command(), stdout=out)
            out.seek(0)
            self.assertEqual(out.read(), "Got the lock: held\n")
        self.assertEqual(_state(f"{__name__}.Command"), "free")

    def test_a_command_without_its_lock_fails_in_one_line(self):
        with connect(_url()).lock(f"{__name__}.Command", locked_by="the first"):
            kept_out = locked(timeout=3)(type("Command", (Inner,), {"__module__": __name__}))
            with self.assertRaises(CommandError) as caught:
                call_command(kept_out())
        self.assertIsInstance(caught.exception, LockTimeout)
        self.assertEqual(caught.exception.returncode, 75)
        self.assertIn("is held by the first", str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    def test_a_locked_handle_method_without_its_lock_fails_in_one_line(self):
        class Nightly(BaseCommand):
            @locked("nightly", on_busy="raise")
            def handle(self, *args, **options):
                raise AssertionError("ran")

        with connect(_url()).lock("nightly", locked_by="the first"):
            with self.assertRaises(CommandError) as caught:
                call_command(Nightly())
            self.assertIsInstance(caught.exception, LockTimeout)
            self.assertEqual(caught.exception.returncode, 75)
            # A function of that name that is no command.
            with self.assertRaises(LockTimeout) as caught:
                locked("nightly", on_busy="raise")(handle)()
            self.assertNotIsInstance(caught.exception, CommandError)

    def test_a_command_without_its_database_fails_in_one_line(self):
        away = connect("postgres://nobody:hunter2@127.0.0.1:1/none")
        kept_out = locked(timeout=3)(type("Command", (Inner,), {"__module__": __name__}))
        with conf.instead(away), self.assertRaises(CommandError) as caught:
            call_command(kept_out())
        self.assertIsInstance(caught.exception, LockUnavailable)
        self.assertEqual(caught.exception.returncode, 69)
        output = str(caught.exception)
        self.assertIn("127.0.0.1:1", output)
        self.assertNotIn("\n", output)
        self.assertNotIn("hunter2", output)

    def test_methods_and_blocks_without_a_name_have_default_names(self):
        self.assertEqual(SomeClass().locked(), "held")
        self.assertEqual(SomeClass().bare(), "held")

    def test_all_parameters_work_by_name_and_by_position(self):
        with lock("job", 5, 20, "me", True, 0.1, None, 2):
            self.assertEqual(connect(_url()).show("job")["holder"], "me")
        with lock(
            lock_name="job", timeout=5, lock_ttl=None, locked_by="me", auto_renew=True, retry=0.1,
            lost_lock_cb=None, lock_ttl_renew=2,
        ):  # fmt: skip
            self.assertIsNone(connect(_url()).show("job")["expires_at"])

    @override_settings(DATABASE_LOCKS_ENABLED=False)
    def test_locks_may_be_switched_off(self):
        with self.assertLogs("database_locks", "WARNING") as logs, lock("switched off") as held:
            self.assertIsNone(held.token)
            self.assertFalse(held.lost)
            held.check()
            held.extend(10)
            with held.atomic(), lock("switched off"):
                pass
        self.assertIn("currently disabled in settings", logs.output[0])
        self.assertIsNone(connect(_url()).show("switched off"))

    def test_the_status_file_follows_the_lock(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "status"
            with override_settings(DATABASE_LOCKS_STATUS_FILE=path):
                with lock("job"):
                    self.assertEqual(path.read_text(), "2")
                    seen = []

                    def wait():
                        try:
                            with lock("job", timeout=3):
                                pass
                        except LockTimeout:
                            seen.append(path.read_text())

                    waiting = threading.Thread(target=wait)
                    waiting.start()
                    waiting.join()
                    self.assertEqual(seen, ["0"])
                self.assertEqual(path.read_text(), "0")
                with self.assertRaises(ZeroDivisionError), lock("job"):
                    raise ZeroDivisionError
                self.assertEqual(path.read_text(), "0")
            with override_settings(DATABASE_LOCKS_STATUS_FILE=Path(folder) / "no" / "folder"):
                with self.assertLogs("database_locks", "ERROR"), lock("job"):
                    pass

    @override_settings(DATABASE_LOCKS_DEFAULT_TTL=120, DATABASE_LOCKS_DEFAULT_TTL_RENEW=100)
    def test_defaults_come_from_the_settings_when_used(self):
        with lock("job") as held:
            self.assertGreater(held.remaining(), 60)
        with override_settings(DATABASE_LOCKS_DEFAULT_TTL=None), lock("job") as held:
            self.assertEqual(held.remaining(), float("inf"))

    def test_log_lines_have_the_words_of_legacy(self):
        with self.assertLogs("database_locks.locks", logging.DEBUG) as logs, lock("x1"):
            pass
        output = [record.getMessage() for record in logs.records]
        self.assertEqual(
            output,
            [
                "acquiring lock x1",
                "lock x1 acquired/renewed",
                "releasing lock x1",
                "released lock x1",
            ],
        )

    def test_errors_have_the_texts_of_legacy(self):
        with connect(_url()).lock("job"):
            with self.assertRaisesMessage(LockException, "failed to acquire lock"):
                with lock("job", retry=None):
                    pass
            with self.assertRaisesMessage(LockException, "failed to acquire lock within timeout"):
                with lock("job", timeout=3, retry=0.1):
                    pass


class DBLockTests(TransactionTestCase):
    def test_dblock_is_acquired_and_released_by_hand(self):
        mine, other = DBLock("x1", "me"), DBLock("x1", "dibs")
        self.assertTrue(mine.acquire())
        self.assertTrue(mine.acquire(lock_ttl=20))
        self.assertFalse(other.acquire())
        mine.release()
        self.assertTrue(other.acquire())
        other.release()
        other.release()
        self.assertEqual(_state("x1"), "free")
        self.assertEqual(mine.name, "x1")

    def test_a_negative_ttl_expires_at_once(self):
        first = DBLock("x1")
        self.assertTrue(first.acquire(lock_ttl=-1))
        second = DBLock("x1")
        self.assertTrue(second.acquire())
        second.release()

    def test_a_dropped_dblock_stays_held_for_its_ttl(self):
        self.assertTrue(DBLock("dropped").acquire(lock_ttl=4))
        gc.collect()
        self.assertFalse(DBLock("dropped").acquire())
        with lock("dropped", timeout=20, retry=0.1):
            pass

    def test_a_dblock_is_not_renewed(self):
        self.assertTrue(DBLock("x1").acquire(lock_ttl=0.3))
        with lock("x1", timeout=10, retry=0.1):
            pass


class WithoutADatabaseTests(SimpleTestCase):
    def test_decorating_asks_no_database(self):
        @locked("job", timeout=5)
        def work():
            self.fail("ran")

        self.assertEqual(work.__name__, "work")
