"""The admin page, as HTML."""

import time
from datetime import datetime, timedelta
from unittest import mock
from zoneinfo import ZoneInfo

from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import DataError
from django.test import TestCase, override_settings
from django.urls import reverse
from django.utils.formats import date_format

from database_locks import connect
from database_locks.django import conf
from database_locks.testing import LocksTestMixin

LIST = "/admin/database_locks/lock/"


class AdminTests(LocksTestMixin, TestCase):
    @classmethod
    def setUpTestData(cls):
        cls.boss = User.objects.create_superuser("boss", password="x")
        cls.viewer = cls._user("viewer", "view_lock")
        cls.releaser = cls._user("releaser", "force_release_lock")
        cls.nobody = cls._user("nobody")

    @classmethod
    def _user(cls, name, *permissions):
        user = User.objects.create_user(name, password="x", is_staff=True)
        found = Permission.objects.filter(codename__in=permissions)
        assert found.count() == len(permissions)
        user.user_permissions.set(found)
        return user

    def setUp(self):
        super().setUp()
        self.client.force_login(self.boss)

    def page(self, name, action="release"):
        return reverse(f"admin:database_locks_lock_{action}", args=[_quoted(name)])

    def test_the_page_lists_locks_with_their_holders(self):
        with (
            self.locks.lock("taken", locked_by="host.1.<b>"),
            self.locks.lock("for ever", lock_ttl=None),
        ):
            with self.locks.lock("was taken"):
                pass
            page = self.client.get(LIST).content.decode()
        self.assertIn("host.1.&lt;b&gt;", page)
        self.assertIn('dblock-held">held', page)
        self.assertIn('dblock-free">free', page)
        self.assertIn("data-dblock-left=", page)
        self.assertIn("without end", page)
        self.assertNotIn("style=", page.split('id="content"')[1])

    def test_the_page_has_no_inline_scripts_and_styles(self):
        with self.locks.lock("taken"):
            page = self.client.get(LIST).content.decode().split('id="content"')[1]
        for bad in ("<script>", "onclick", "style="):
            self.assertNotIn(bad, page)

    def test_states_are_filtered_and_names_and_holders_searched(self):
        with self.locks.lock("alpha", locked_by="someone"):
            with self.locks.lock("beta"):
                pass
            names = lambda query: [  # noqa: E731
                row["name"] for row in self.client.get(LIST + query).context["rows"]
            ]
            self.assertEqual(names(""), ["alpha", "beta"])
            self.assertEqual(names("?state=free"), ["beta"])
            self.assertEqual(names("?state=held"), ["alpha"])
            self.assertEqual(names("?q=SOMEONE"), ["alpha"])
            self.assertEqual(names("?q=et"), ["beta"])
            self.assertEqual(names("?q=et&state=held"), [])
            self.assertEqual(names("?state=nonsense&p=99"), ["alpha", "beta"])

    def test_thousands_of_locks_are_split_into_pages(self):
        with mock.patch("database_locks.admin.LockAdmin.list_per_page", 2):
            for number in range(5):
                with self.locks.lock(f"lock {number}"):
                    pass
            page = self.client.get(LIST + "?p=2")
            self.assertEqual([row["name"] for row in page.context["rows"]], ["lock 2", "lock 3"])
            self.assertContains(page, "?p=3")
            self.assertContains(page, "5 locks")

    def test_free_locks_are_read_only_if_they_are_shown(self):
        with self.locks.lock("taken"), self.locks.lock("free"):
            pass
        with self.locks.lock("taken"):
            counts = lambda query: {  # noqa: E731
                str(label): count
                for label, count, *_ in self.client.get(LIST + query).context["filters"]
            }
            every = {"All": 2, "held": 1, "resting": 0, "expired": 0, "paused": 0, "free": 1}
            self.assertEqual(counts(""), every)
            self.assertEqual(counts("?state=free"), every)
            self.assertEqual(counts("?state=held"), {**every, "All": None, "free": None})
            self.assertNotContains(self.client.get(LIST + "?state=held"), "None")

    def test_a_page_that_does_not_exist_is_the_last_or_the_first(self):
        with mock.patch("database_locks.admin.LockAdmin.list_per_page", 2):
            for number in range(3):
                with self.locks.lock(f"lock {number}"):
                    pass
            for page, first in (
                ("9", "lock 2"),
                ("-1", "lock 2"),
                ("x", "lock 0"),
                ("2", "lock 2"),
            ):
                shown = self.client.get(f"{LIST}?p={page}")
                self.assertEqual(shown.context["rows"][0]["name"], first, page)

    def test_a_release_by_force_asks_first_and_is_logged(self):
        name = "a/b ?#é\u2028"
        holder = self.locks.lock(name, locked_by="old.host", lost_lock_cb=lambda *_: None)
        with holder:
            asked = self.client.get(self.page(name))
            self.assertContains(asked, "old.host")
            self.locks.assert_locked(name)
            answer = self.client.post(self.page(name), {"seen": asked.context["seen"]}, follow=True)
            self.assertContains(answer, "is released by force: old.host had held it.")
            self.locks.assert_not_locked(name)
        entry = LogEntry.objects.get()
        self.assertEqual((entry.object_id, entry.user), (name, self.boss))
        self.assertIn("old.host", entry.change_message)
        # The history of the lock has it.
        self.assertContains(self.client.get(self.page(name, "history")), "old.host")

    def test_a_lock_that_rests_is_shown_with_its_end_and_its_rest_can_be_ended(self):
        with self.locks.lock("rests", locked_by="old.host", at_least=600):
            pass
        page = self.client.get(LIST).content.decode()
        self.assertIn('dblock-resting">resting', page)
        self.assertIn("last: old.host", page)
        self.assertIn("data-dblock-left=", page)
        rows = self.client.get(LIST + "?state=resting").context["rows"]
        self.assertEqual([row["name"] for row in rows], ["rests"])
        detail = self.client.get(self.page("rests", "change"))
        for fact in ("last holder", "rests until", "free in"):
            self.assertContains(detail, fact)
        asked = self.client.get(self.page("rests"))
        self.assertContains(asked, "End the rest of the lock")
        self.assertEqual(self.locks.show("rests")["state"], "resting")
        answer = self.client.post(self.page("rests"), {"seen": asked.context["seen"]}, follow=True)
        self.assertContains(answer, "is free: its rest after old.host is ended.")
        self.assertEqual(self.locks.show("rests")["state"], "free")
        self.assertIn("rest after old.host", LogEntry.objects.get().change_message)

    def test_a_release_that_cannot_be_logged_shows_a_warning(self):
        failing = mock.patch.object(LogEntry.objects, "create", side_effect=DataError("too odd"))
        with failing, self.locks.lock("job", lost_lock_cb=lambda *_: None):
            answer = self.client.post(self.page("job"), follow=True)
            self.assertContains(answer, "no entry of it: too odd")
            self.locks.assert_not_locked("job")

    def test_a_release_asks_again_if_the_holder_has_changed(self):
        with self.locks.lock("job"):
            seen = self.client.get(self.page("job")).context["seen"]
        with self.locks.lock("job"):
            again = self.client.post(self.page("job"), {"seen": seen})
            self.assertContains(again, "Another holder has acquired the lock")
            self.locks.assert_locked("job")

    def test_only_a_post_with_a_csrf_token_releases(self):
        strict = self.client_class(enforce_csrf_checks=True)
        strict.force_login(self.boss)
        with self.locks.lock("job"):
            self.assertEqual(strict.get(self.page("job")).status_code, 200)
            self.assertEqual(strict.post(self.page("job")).status_code, 403)
            self.locks.assert_locked("job")

    def test_each_page_needs_its_permission(self):
        with self.locks.lock("job"):
            for user, sees, releases in (
                (self.viewer, 200, 403),
                (self.releaser, 200, 200),
                (self.nobody, 403, 403),
            ):
                self.client.force_login(user)
                self.assertEqual(self.client.get(LIST).status_code, sees, user)
                self.assertEqual(self.client.get(self.page("job", "change")).status_code, sees)
                self.assertEqual(self.client.get(self.page("job")).status_code, releases, user)
                link = b"/release/" in self.client.get(LIST).content
                self.assertEqual(link, releases == 200, user)
            self.client.force_login(self.viewer)
            self.assertEqual(self.client.post(self.page("job")).status_code, 403)
            self.locks.assert_locked("job")
            self.client.force_login(self.boss)
            self.assertEqual(self.client.get(LIST + "add/").status_code, 403)
            self.assertEqual(self.client.post(self.page("job", "delete")).status_code, 403)

    def test_an_unknown_name_shows_a_warning(self):
        for action in ("release", "change"):
            page = self.client.get(self.page("never", action), follow=True)
            self.assertContains(page, "There is no lock")

    def test_the_detail_page_shows_all_facts(self):
        with self.locks.lock("job", locked_by="w.7"):
            page = self.client.get(self.page("job", "change"))
            self.assertContains(page, "w.7")
            self.assertContains(page, "token")

    def test_times_are_in_the_time_zone_of_the_project_on_every_page(self):
        for use_tz in (True, False):
            with (
                override_settings(USE_TZ=use_tz, TIME_ZONE="Asia/Tokyo"),
                self.locks.lock("job", lost_lock_cb=lambda *_: None),
            ):
                began = datetime.now(ZoneInfo("Asia/Tokyo"))
                page = self.client.get(LIST)
                self.assertContains(page, "Since (Asia/Tokyo)")
                (row,) = (row for row in page.context["rows"] if row["name"] == "job")
                shown = datetime.fromisoformat(row["since"]).replace(tzinfo=ZoneInfo("Asia/Tokyo"))
                self.assertLess(abs(shown - began), timedelta(minutes=1))
                detail = self.client.get(self.page("job", "change"))
                self.assertContains(detail, f"{row['since']} (Asia/Tokyo)")
                self.client.post(self.page("job"))
                history = self.client.get(self.page("job", "history"))
                self.assertContains(history, date_format(shown, "DATETIME_FORMAT").split(",")[0])

    def test_locks_are_sorted_by_age(self):
        with self.locks.lock("b"):
            time.sleep(0.01)
            with self.locks.lock("a"), self.locks.lock("free"):
                pass
            with self.locks.lock("a"):
                for query, wanted in (
                    ("", ["a", "b", "free"]),
                    ("?o=age", ["b", "a", "free"]),
                    ("?o=-age", ["a", "b", "free"]),
                    ("?o=age&state=held", ["b", "a"]),
                    ("?o=nonsense", ["a", "b", "free"]),
                ):
                    page = self.client.get(LIST + query)
                    names = [row["name"] for row in page.context["rows"]]
                    self.assertEqual(names, wanted, query)
                # What is chosen besides is kept.
                self.assertContains(page := self.client.get(LIST + "?o=age&q=a"), "?q=a&amp;o=-age")
                self.assertContains(page, '<input type="hidden" name="o" value="age">')

    def test_an_unreachable_database_shows_its_error(self):
        away = connect("postgres://nobody:hunter2@127.0.0.1:1/none")
        with conf.instead(away):
            for url in (LIST, self.page("x"), self.page("x", "change")):
                page = self.client.get(url)
                self.assertContains(page, "127.0.0.1:1", status_code=503)
                self.assertNotContains(page, "hunter2", status_code=503)


def _quoted(name):
    from django.contrib.admin.utils import quote

    return quote(name)
