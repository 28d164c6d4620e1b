"""Shared holds in a Django project: transactions, fences, ``manage.py locks`` and the admin page."""

import io
import json
import threading

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import TestCase, TransactionTestCase
from django.urls import reverse

from database_locks import LockConfigError, LockLost, LockTimeout, connect, lock, locked
from database_locks.django import conf
from database_locks.testing import LocksTestMixin

from .tests_settings import _state, _url
from .transaction_helpers import eventually, write, written

LIST = "/admin/database_locks/lock/"


def readers(name="job"):
    return len(conf.locks().show_shared(name))


class TransactionTests(TransactionTestCase):
    def test_a_shared_hold_is_kept_until_the_commit_and_nests_in_its_transaction(self):
        stranger = connect(_url())
        with transaction.atomic():
            with lock("job", shared=True) as held:
                pass
            self.assertEqual(readers(), 1)
            with lock("job", shared=True) as again:
                self.assertIs(again, held)
            stranger.lock("job", shared=True, until="exit").acquire().release()
            with self.assertRaisesRegex(LockTimeout, "`job` is shared by"):
                with stranger.lock("job", timeout=3, until="exit"):
                    pass
            # To hold it alone it would wait for the end of this transaction.
            for take in (lock("job").__enter__, lock("job").acquire):
                with self.assertRaisesRegex(LockConfigError, "shared by this very thread or task"):
                    take()
            one = lock("job", shared=True)
            self.assertIs(one.acquire(), held)
            one.release()
            self.assertEqual(readers(), 1)
        self.assertEqual(readers(), 0)

    def test_a_loss_before_the_commit_undoes_what_was_written(self):
        with self.assertRaises(LockLost), transaction.atomic():
            with lock("job", shared=True):
                write()
            conf.locks().lose("job")
        self.assertEqual(written(), set())

    def test_a_downgrade_waits_for_no_commit_and_is_refused_within_a_transaction(self):
        with lock("job") as held:
            with transaction.atomic():
                write()
                with self.assertRaisesRegex(
                    LockConfigError, "a transaction is open on the database"
                ):
                    held.downgrade()
            held.downgrade()
            connect(_url()).lock("job", shared=True).acquire().release()
        with transaction.atomic(), lock("job", until="exit") as held:
            held.downgrade()
            self.assertTrue(held.shared)
        self.assertEqual((readers(), _state("job")), (0, "free"))

    def test_a_downgrade_within_the_transaction_of_a_kept_lock_is_refused(self):
        with transaction.atomic():
            with lock("job") as held:
                write()
            with lock("job"), self.assertRaisesRegex(LockConfigError, "a transaction is open"):
                held.downgrade()
        self.assertEqual(_state("job"), "free")

    def test_a_view_or_function_shares_a_lock(self):
        @locked("job {n}", shared=True, on_busy="raise")
        def report(n):
            return readers(f"job {n}")

        with lock("job 1", shared=True, until="exit"):
            self.assertEqual(report(1), 1)


class FencedTests(TransactionTestCase):
    def test_writes_of_a_shared_holder_commit_and_keep_writers_out(self):
        stranger, told = connect(_url()), []

        def take_it():
            try:
                with stranger.lock("job", timeout=3):
                    told.append("in")
            except LockTimeout as error:
                told.append(error.shared_by)

        with lock("job", shared=True) as held, lock("other"):
            with held.atomic() as same:
                self.assertIs(same, held)
                write("fenced")
                thread = threading.Thread(target=take_it)
                thread.start()
                thread.join()
            held.check()
            held.extend(30)
            with held.atomic():
                write("again")
        self.assertEqual((told, written()), ([1], {"fenced", "again"}))

    def test_a_shared_holder_that_has_lost_the_lock_writes_nothing(self):
        stranger = connect(_url())
        with self.assertRaises(LockLost) as caught, lock("job", shared=True) as held:
            stranger.force_release_shared("job")
            with stranger.lock("job"), held.atomic():
                write("stale")
        self.assertEqual(caught.exception.token, held.token)
        self.assertEqual(written(), set())

    def test_the_fence_after_a_downgrade_is_that_of_the_shared_hold(self):
        stranger = connect(_url())
        with self.assertRaises(LockLost), lock("job") as held:
            held.downgrade()
            with held.atomic():
                write("kept")
            stranger.force_release_shared("job")
            with held.atomic():
                write("stale")
        self.assertEqual(written(), {"kept"})


class CommandTests(TransactionTestCase):
    def setUp(self):
        for row in conf.locks().list():
            conf.locks().lose(row["name"])
        conf.locks().prune(0, unknown=True)

    def output(self, *words):
        out = io.StringIO()
        call_command("locks", *words, stdout=out, no_color=True)
        return out.getvalue()

    def failed(self, code, *words):
        with self.assertRaises(CommandError) as caught:
            self.output(*words)
        self.assertEqual(caught.exception.returncode, code, caught.exception)
        return str(caught.exception)

    def test_list_and_show_have_the_shared_holders(self):
        one, two = (lock("job", shared=True, locked_by=f"web {n}") for n in (1, 2))
        one.acquire()
        two.acquire()
        try:
            lines = self.output("list").splitlines()[1:]
            self.assertEqual(len(lines), 2)
            for line in lines:
                self.assertRegex(line, r"^job +shared +web \d ")
            self.assertRegex(self.output("list", "--all"), r"(?m)^job +free +")
            shown = self.output("show", "job")
            self.assertRegex(shown, r"(?m)^state +free$")
            self.assertRegex(shown, r"(?m)^SHARED BY +STATE +HOLDER +TOKEN ")
            self.assertRegex(shown, r"(?m)^2 +shared +web \d +\d+ ")
            found = json.loads(self.output("show", "job", "--json"))
            self.assertEqual({row["holder"] for row in found["shared_by"]}, {"web 1", "web 2"})
            self.assertIs(found["shared_by"][0]["shared"], True)
        finally:
            one.release()
            two.release()

    def test_a_writer_that_waits_is_shown_as_such(self):
        reader = lock("job", shared=True)
        reader.acquire()
        writer = threading.Thread(target=self.write)
        writer.start()
        try:
            eventually(lambda: _state("job") == "held")
            wanted = r"(?m)^job +waiting +a writer .* waiting for 1 reader;? "
            self.assertRegex(self.output("list"), wanted)
            self.assertRegex(self.output("show", "job"), r"(?m)^state +waiting$")
        finally:
            reader.release()
            writer.join()

    @staticmethod
    def write():
        with lock("job", timeout=60, locked_by="a writer"):
            pass

    def test_release_of_shared_holders_needs_the_word(self):
        one = lock("job", shared=True, locked_by="me", lost_lock_cb=lambda *_: None)
        one.acquire()
        message = self.failed(2, "release", "job", "--force")
        self.assertIn("lock `job` is shared by 1 holder: release all of them", message)
        self.assertIn("both", self.failed(2, "release", "job", "--force", "--shared", "--slot=1"))
        done = self.output("release", "job", "--force", "--shared")
        self.assertIn("lock `job` released by force: one holder had shared it", done)
        self.assertEqual(readers(), 0)
        self.assertIn("no holder shares", self.output("release", "job", "--force", "--shared"))
        one.release()


class MigrationTests(TestCase):
    def test_the_migrations_have_all_of_the_model(self):
        call_command("makemigrations", "database_locks", "--check", "--dry-run", verbosity=0)


class AdminTests(LocksTestMixin, TestCase):
    def setUp(self):
        super().setUp()
        self.client.force_login(User.objects.create_superuser("boss", password="x"))
        self.detail = reverse("admin:database_locks_lock_change", args=["job"])
        self.release = reverse("admin:database_locks_lock_release", args=["job"]) + "?shared=1"

    def readers(self):
        return [self.locks.busy("job", holder=f"web <{n}>", shared=True) for n in (1, 2)]

    def test_the_list_and_the_page_of_a_lock_show_who_shares_it(self):
        self.readers()
        rows = self.client.get(LIST + "?state=held").context["rows"]
        self.assertEqual([str(row["word"]) for row in rows], ["shared", "shared"])
        self.assertTrue(all(row["release_url"] == self.release for row in rows))
        own = [row for row in self.client.get(LIST).context["rows"] if not row.get("shared")]
        self.assertEqual([str(row["word"]) for row in own], ["free"])
        page = self.client.get(self.detail)
        self.assertContains(page, "web &lt;1&gt; for ")
        self.assertContains(page, self.release)
        # A writer keeps new readers out, and waits for those that are there.
        with self.waiting_writer():
            rows = self.client.get(LIST + "?state=held").context["rows"]
            self.assertIn("waiting for 2 readers", [str(row["word"]) for row in rows])
            page = self.client.get(self.detail)
            self.assertContains(page, "waiting for 2 readers")

    def waiting_writer(self):
        locks = self.locks

        class Writer(threading.Thread):
            def run(self):
                with locks.lock("job", timeout=60):
                    pass

            def __enter__(self):
                self.start()
                eventually(lambda: (locks.show("job") or {})["state"] == "held")

            def __exit__(self, *_):
                for one in locks._busy:
                    one.release()
                self.join()

        return Writer()

    def test_all_that_share_a_lock_are_released_by_force(self):
        self.readers()
        asked = self.client.get(self.release)
        self.assertContains(asked, "which 2 holders share?")
        third = self.locks.busy("job", holder="late", shared=True)
        moved = self.client.post(self.release, {"seen": asked.context["seen"]})
        self.assertContains(moved, "Others share the lock now.")
        self.assertEqual(len(self.locks.show_shared("job")), 3)
        done = self.client.post(self.release, {"seen": moved.context["seen"]}, follow=True)
        self.assertContains(done, "Lock “job” is released by force: ")
        self.assertEqual(self.locks.show_shared("job"), [])
        self.assertIn("late", LogEntry.objects.get().change_message)
        third.release()
        done = self.client.post(self.release, {"seen": ""}, follow=True)
        self.assertContains(done, "No holder shares lock “job”.")
