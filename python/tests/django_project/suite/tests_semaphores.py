"""Semaphores in a Django project: transactions, ``manage.py locks`` and the admin page."""

import io
import json

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import TestCase, TransactionTestCase
from django.urls import reverse

from database_locks import LockTimeout, lock, semaphore
from database_locks.django import conf
from database_locks.testing import LocksTestMixin

LIST = "/admin/database_locks/lock/"


def held(name):
    return conf.locks().show_semaphore(name)["held"]


class TransactionTests(TransactionTestCase):
    def test_a_permit_is_released_before_the_transaction_ends_unless_it_is_kept(self):
        with transaction.atomic():
            for _ in range(5):
                # With until="commit" the third block would wait for this transaction.
                with semaphore("in a transaction", 2, timeout=10):
                    self.assertEqual(held("in a transaction"), 1)
            with semaphore("in a transaction", 2, until="commit"):
                pass
            self.assertEqual(held("in a transaction"), 1)
            with semaphore("in a transaction", 2, retry=0) as second:
                self.assertIn(second.slot, (0, 1))
        self.assertEqual(held("in a transaction"), 0)


class CommandTests(TransactionTestCase):
    def setUp(self):
        for row in conf.locks().list():
            conf.locks().force_release(row["name"], row.get("slot"))
        conf.locks().set_limit("api", None)
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

    def test_list_and_show_have_the_permits(self):
        with semaphore("api", 3, locked_by="me") as one, semaphore("api", 3), lock("other"):
            head, first, second, other = self.output("list").splitlines()
            self.assertEqual(head.split()[:4], ["NAME", "STATE", "PERMIT", "HOLDER"])
            self.assertRegex(first, r"^api +held +\d \(2 of 3\) +\S")
            self.assertRegex(second, r"^api +held +\d \(2 of 3\) +\S")
            self.assertRegex(other, r"^other +held +- +\S")
            shown = self.output("show", "api")
            self.assertRegex(shown, r"permits +2 of 3 held\nSLOT +STATE +HOLDER ")
            self.assertRegex(shown, rf"(?m)^{one.slot} +held +me +{one.token} ")
            found = json.loads(self.output("show", "api", "--json"))
            self.assertEqual((found["held"], found["of"], len(found["permits"])), (2, 3, 2))
            with lock("api"):
                self.assertRegex(self.output("show", "api"), r"(?s)token.*permits +2 of 3 held")
                found = json.loads(self.output("show", "api", "--json"))
                self.assertEqual((found["state"], found["semaphore"]["held"]), ("held", 2))
        self.assertIn("there is no lock `none`", self.failed(1, "show", "none"))

    def test_limit_pauses_and_resumes(self):
        new = "is paused, a new setting: no permit of that name was acquired so far"
        self.assertIn(new, self.output("limit", "api", "0"))
        self.assertIn("is paused; 0 permits are held", self.output("limit", "api", "0"))
        with self.assertRaisesRegex(LockTimeout, "`api` is paused"):
            with semaphore("api", 3, retry=0):
                pass
        self.assertIn("0 held, paused by an operator", self.output("show", "api"))
        self.assertIn("has the limit 2", self.output("limit", "api", "2"))
        with semaphore("api", 3, retry=0):
            self.assertIn("1 of 2 held (limit of an operator)", self.output("show", "api"))
        self.assertIn("each caller's counts", self.output("limit", "api", "none"))
        for bad in ("many", "65537", "1.5"):
            with self.assertRaisesRegex(CommandError, "is no limit: 0"):
                self.output("limit", "api", bad)

    def test_release_needs_the_number_of_the_permit(self):
        one = semaphore("api", 1, locked_by="me")
        one.acquire()
        message = self.failed(2, "release", "api", "--force")
        self.assertIn("`api` is a semaphore, of which 1 permit is held", message)
        self.assertIn(
            "permit 0 of `api` released by force: me had held it",
            self.output("release", "api", "--force", "--slot", "0"),
        )
        self.assertEqual(held("api"), 0)
        self.assertIn("was free already", self.output("release", "api", "--force", "--slot", "0"))
        unknown = self.output("release", "api", "--force", "--slot", "7")
        self.assertIn("there is no permit 7 of `api`", unknown)
        self.assertIn("there is no lock `jobb`", self.output("release", "jobb", "--force"))

    def test_list_has_the_limits_of_operators(self):
        conf.locks().set_limit("paused", 0)
        conf.locks().set_limit("five", 5)
        self.assertRegex(self.output("list"), r"(?m)^paused +paused +- \(0 held, paused\) +-")
        self.assertNotIn("five", self.output("list"))
        self.assertRegex(self.output("list", "--all"), r"(?m)^five +free +- \(0 of limit 5\) +-")
        with semaphore("five", 9):
            self.assertRegex(self.output("list"), r"(?m)^five +held +\d \(1 of limit 5\) ")
            found = {row["name"]: row for row in json.loads(self.output("list", "--json"))}
        self.assertEqual((found["paused"]["state"], found["paused"]["limit"]), ("paused", 0))
        self.assertIsNone(found["paused"]["holder"])
        self.assertEqual((found["five"]["permits"], found["five"]["limit"]), (9, 5))
        for name in ("paused", "five"):
            conf.locks().set_limit(name, None)


class AdminTests(LocksTestMixin, TestCase):
    def setUp(self):
        super().setUp()
        self.client.force_login(User.objects.create_superuser("boss", password="x"))

    def test_the_list_shows_permits_and_each_has_a_page(self):
        api = self.locks.semaphore("partner api", 3, locked_by="web <1>")
        with api as one, api as two, self.locks.lock("partner api"):
            page = self.client.get(LIST).content.decode()
            self.assertIn(f"permit {one.slot} (2 of 3)", page)
            self.assertEqual(page.count("(2 of 3)"), 2)
            rows = self.client.get(LIST + "?q=partner&state=held").context["rows"]
            self.assertEqual(
                [row.get("slot") for row in rows], [None, *sorted([one.slot, two.slot])]
            )
            where = reverse("admin:database_locks_lock_change", args=["partner api"])
            page = self.client.get(f"{where}?slot={one.slot}")
            self.assertContains(page, "2 of 3 held")
            self.assertContains(page, "web &lt;1&gt;")
            self.assertContains(page, f"/release/?slot={one.slot}")
            page = self.client.get(f"{where}?slot=7", follow=True)
            self.assertContains(page, "There is no lock")
            # The lock of the same name has its own page.
            self.assertNotContains(self.client.get(where), "2 of 3")

    def test_the_list_shows_limits_of_operators_and_what_is_paused(self):
        with self.locks.semaphore("api", 3) as one:
            self.locks.set_limit("api", 0)
            self.locks.set_limit("idle", 5)
            self.locks.set_limit("stopped", 0)
            page = self.client.get(LIST)
            self.assertContains(page, f"permit {one.slot} (1 held, paused)")
            self.assertContains(page, "permit - (0 of limit 5)")
            rows = self.client.get(LIST + "?state=paused").context["rows"]
            self.assertEqual([row["name"] for row in rows], ["api", "stopped"])
            self.assertEqual([row["url"] for row in rows], ["", ""])
            where = reverse("admin:database_locks_lock_change", args=["api"])
            page = self.client.get(f"{where}?slot={one.slot}")
            self.assertContains(page, "1 held, paused by an operator")

    def test_a_permit_is_released_by_force_and_the_other_stays(self):
        api = self.locks.semaphore("api", 2, locked_by="web 1", lost_lock_cb=lambda *_: None)
        with api as one, api as two:
            where = reverse("admin:database_locks_lock_release", args=["api"]) + f"?slot={one.slot}"
            asked = self.client.get(where)
            self.assertContains(asked, "Release permit")
            seen = asked.context["seen"]
            done = self.client.post(where, {"seen": seen}, follow=True)
            self.assertContains(done, f"Permit {one.slot} of “api” is released by force: web 1")
            self.assertEqual(self.locks.show_semaphore("api")["held"], 1)
            two.check()
            entry = LogEntry.objects.get()
            self.assertEqual(entry.object_id, "api")
            self.assertIn(f"Permit {one.slot} released by force", entry.change_message)
            # Another holder has acquired it since the page was shown.
            with api:
                moved = self.client.post(where, {"seen": seen})
                self.assertContains(moved, "Another holder has acquired")
                self.assertEqual(self.locks.show_semaphore("api")["held"], 2)
