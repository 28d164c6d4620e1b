"""The admin page in a real browser.

``DBLOCK_SCREENSHOTS`` names a folder for screenshots.
"""

import os
import shutil
import tempfile
import time
import unittest
from pathlib import Path

from django.contrib.auth.models import User
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.test import override_settings

from database_locks import lock
from database_locks.django import conf

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
#: For pages: nothing inline, nothing from elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'"
)

#: What a person could not see without scrolling: links and cells that stick out of the window, or of
#: something around them that cuts them off.
CUT_OFF = """
return [...document.querySelectorAll("#content-main a, #content-main td, #content-main input")]
  .filter((element) => {
    const box = element.getBoundingClientRect();
    if (!box.width || !element.checkVisibility()) return false;
    for (let around = element.parentElement; around; around = around.parentElement) {
      // Kept for those who cannot see.
      if (around.offsetWidth === 1 && around.offsetHeight === 1) return false;
      const limits = around.getBoundingClientRect();
      const hides = getComputedStyle(around).overflowX !== "visible" && around !== document.body;
      if (hides && (box.right > limits.right + 1 || box.left < limits.left - 1)) return true;
    }
    return box.right > window.innerWidth + 1 || box.left < -1;
  })
  .map((element) => element.outerHTML.slice(0, 120));
"""
SCROLL_SIDEWAYS = """
return [document.scrollingElement, ...document.querySelectorAll("body *")]
  .filter((element) => element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 1)
  .filter((element) => element === document.scrollingElement
    || ["auto", "scroll"].includes(getComputedStyle(element).overflowX))
  .map((element) => element.outerHTML.slice(0, 120));
"""


def policy(get_response):
    def middleware(request):
        response = get_response(request)
        response["Content-Security-Policy"] = POLICY
        return response

    return middleware


@unittest.skipUnless(
    (CHROMIUM and DRIVER) or "chromium" in os.environ.get("DBLOCK_REQUIRE", ""),
    "no chromium and chromedriver on this machine",
)
@override_settings(DATABASE_LOCKS_DEFAULT_TTL=300)
class BrowserTests(StaticLiveServerTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        from selenium import webdriver

        assert CHROMIUM and DRIVER, "DBLOCK_REQUIRE asks for chromium and chromedriver"
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        profile = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, profile, True)
        for word in (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--window-size=1280,800", f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(DRIVER)
        cls.browser = webdriver.Chrome(options=options, service=service)
        cls.addClassCleanup(cls.browser.quit)

    def setUp(self):
        User.objects.create_superuser("boss", password="secret")
        for row in conf.locks().list():
            conf.locks().force_release(row["name"])

    def find(self, selector):
        from selenium.webdriver.common.by import By

        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        from selenium.webdriver.common.by import By

        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, what):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        # An element of the page before, which is just being replaced.
        stale = [StaleElementReferenceException]
        wait = WebDriverWait(self.browser, 20, 0.1, ignored_exceptions=stale)
        return wait.until(lambda _browser: what())

    def picture(self, name):
        folder = os.environ.get("DBLOCK_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(str(Path(folder) / f"{name}.png"))

    def log_in(self):
        self.browser.get(f"{self.live_server_url}/admin/")
        self.find("#id_username").send_keys("boss")
        self.find("#id_password").send_keys("secret")
        self.find("[type=submit]").click()
        self.until(lambda: self.all("#user-tools"))

    def state_of(self, name):
        for row in self.all("#result_list tbody tr"):
            cells = [cell.text for cell in row.find_elements("css selector", "th, td")]
            if cells[0] == name:
                return cells
        return None

    def test_a_user_sees_the_holder_and_releases_the_lock(self):
        self.log_in()
        middleware = "suite.tests_browser.policy"
        from django.conf import settings

        with (
            override_settings(MIDDLEWARE=[middleware, *settings.MIDDLEWARE]),
            lock("nightly report", locked_by="worker-3.host", lost_lock_cb=lambda *_: None),
            lock("deploy", lock_ttl=None, locked_by="ci.host"),
        ):
            with lock("import of customers"):
                pass
            self.find(".app-database_locks .model-lock a, .model-lock a").click()
            self.until(lambda: self.all("#result_list"))
            held = self.state_of("nightly report")
            self.assertEqual(held[1:3], ["held", "worker-3.host"])
            self.assertEqual(self.state_of("deploy")[5], "without end")
            self.assertEqual(self.state_of("import of customers")[1], "free")
            colours = {
                element.text: element.value_of_css_property("background-color")
                for element in self.all(".dblock-state")
            }
            self.assertEqual(len(set(colours.values())), 2, colours)
            self.picture("list-light")

            # It counts down.
            before = self.state_of("nightly report")[5]
            self.assertRegex(before, r"^(4m \d+s|5m)$")
            self.until(lambda: self.state_of("nightly report")[5] != before)

            self.browser.execute_script("document.documentElement.dataset.theme = 'dark'")
            self.picture("list-dark")
            self.assertNotEqual(
                colours["held"], self.find(".dblock-held").value_of_css_property("background-color")
            )

            self.find("#searchbar").send_keys("WORKER-3")
            self.find("#changelist-search [type=submit]").click()
            self.until(lambda: len(self.all("#result_list tbody tr")) == 1)
            self.find("#result_list .dblock-release").click()
            self.until(lambda: self.all(".dblock-danger"))
            self.picture("release")
            self.find(".dblock-danger").click()
            self.until(lambda: self.all(".messagelist"))
            self.assertIn("worker-3.host had held it", self.find(".messagelist").text)
            self.assertEqual(self.state_of("nightly report")[1], "free")
            self.picture("released")
            self.find("a[href$='state=held']").click()
            self.until(lambda: len(self.all("#result_list tbody tr")) == 1)
            self.assertIsNone(self.state_of("nightly report"))
        # Nothing was refused by the policy, and no script failed.
        complaints = [
            entry["message"]
            for entry in self.browser.get_log("browser")
            if "favicon" not in entry["message"]
        ]
        self.assertEqual(complaints, [])

    def test_the_page_fits_every_width(self):
        self.addCleanup(self.browser.set_window_size, 1280, 800)
        meta = {"order": "of the fourth quarter, all customers"}
        long = "reports.tasks.nightly:of-the-fourth-quarter"
        with (
            lock(long, locked_by="worker-3.eu-west.example.org.2711.ab12cd34", meta=meta),
            lock("deploy", lock_ttl=None, locked_by="ci.host"),
        ):
            self.log_in()
            for width in (380, 501, 600, 1024, 1202, 1280, 1340, 1920):
                # Of the viewport, which the window's frame and its scroll bar are no part of.
                self.browser.set_window_size(width, 800)
                inner = self.browser.execute_script("return window.innerWidth")
                self.browser.set_window_size(2 * width - inner, 800)
                self.browser.get(f"{self.live_server_url}/admin/database_locks/lock/")
                self.until(lambda: self.all("#result_list"))
                self.picture(f"width-{width}")
                self.assertEqual(self.browser.execute_script(CUT_OFF), [], width)
                self.assertEqual(self.browser.execute_script(SCROLL_SIDEWAYS), [], width)

    def names(self, wanted):
        return [n.text for n in self.all("#result_list tbody th") if n.text in wanted]

    def test_locks_are_sorted_by_age(self):
        self.addCleanup(self.browser.set_window_size, 1280, 800)
        with lock("older", lock_ttl=None):
            time.sleep(0.05)
            with lock("newer"):
                self.log_in()
                # Where the columns have no heads there is another link.
                for width, link in ((1920, "a.dblock-sort"), (600, ".dblock-narrow a")):
                    self.browser.set_window_size(width, 800)
                    self.browser.get(
                        f"{self.live_server_url}/admin/database_locks/lock/?state=held"
                    )
                    self.assertEqual(self.names(["older", "newer"]), ["newer", "older"])
                    self.find(link).click()
                    self.until(lambda: self.browser.current_url.endswith("state=held&o=age"))
                    self.until(lambda: self.names(["older", "newer"]) == ["older", "newer"])
                    self.find(link).click()
                    self.until(lambda: self.browser.current_url.endswith("state=held&o=-age"))
                    self.until(lambda: self.names(["older", "newer"]) == ["newer", "older"])
                    self.find(link).click()
                    self.until(lambda: self.browser.current_url.endswith("state=held"))

    def test_the_history_of_a_lock_is_one_click_away(self):
        with lock("nightly report", locked_by="worker-3.host", lost_lock_cb=lambda *_: None):
            self.log_in()
            self.browser.get(f"{self.live_server_url}/admin/database_locks/lock/?q=nightly+report")
            self.find("#result_list .dblock-release").click()
            self.until(lambda: self.all(".dblock-danger"))
            self.find(".dblock-danger").click()
            self.until(lambda: self.all(".messagelist"))
            next(a for a in self.all("#result_list th a") if a.text == "nightly report").click()
            self.until(lambda: self.all(".historylink"))
            self.picture("detail")
            history = self.find(".historylink")
            self.assertTrue(history.is_displayed())
            history.click()
            self.until(lambda: self.all("#change-history"))
            self.picture("history")
            self.assertIn("worker-3.host had held it", self.find("#change-history").text)
