"""Runs the tests of ``django_project`` with Django's test runner on each engine and driver."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import django
import pytest

from support import dblock

PROJECT = Path(__file__).with_name("django_project")
#: Kinds of databases, with the module of the driver.
KINDS = {
    "sqlite-file": "sqlite3",
    "sqlite-memory": "sqlite3",
    "postgres-psycopg": "psycopg",
    "postgres-psycopg2": "psycopg2",
    "mariadb-mysqlclient": "MySQLdb",
    "mariadb-pymysql": "pymysql",
    "mysql-mysqlclient": "MySQLdb",
    "mysql-pymysql": "pymysql",
}
#: The second driver of MySQL runs only the tests that depend on driver and server. The others run with
#: the first driver, and with both on MariaDB.
SOME = {"mysql-pymysql": ["connection_settings", "checks", "migrations", "fence", "guards"]}
#: The newest Django is tested with all drivers, the oldest with those in its environment.
HERE = [kind for kind, driver in KINDS.items() if importlib.util.find_spec(driver)]


def test_the_newest_django_is_tested_with_all_drivers() -> None:
    assert list(KINDS) == HERE or django.VERSION < (5, 2)


@pytest.mark.parametrize("kind", HERE)
def test_the_suite_of_the_django_project_passes(kind: str, request: pytest.FixtureRequest) -> None:
    environment = {
        **os.environ,
        "DBLOCK_DJANGO_DB": kind,
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "error:::database_locks",
    }
    if not kind.startswith("sqlite"):
        servers = request.getfixturevalue("shared_servers")
        server = getattr(servers, kind.partition("-")[0])
        environment[f"DBLOCK_LAB_{server.name.upper()}"] = server.url
    labels = [f"suite.tests_{part}" for part in SOME[kind]] if kind in SOME else ["suite"]
    run = subprocess.run(
        [sys.executable, "-m", "django", "test", "--noinput", "-p", "tests_*.py", *labels],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=220, check=False,
    )  # fmt: skip
    sys.stdout.write(run.stdout + run.stderr)
    assert run.returncode == 0
    assert "Ran 0 tests" not in run.stderr


def test_the_example_starts_and_its_command_is_locked(tmp_path: Path) -> None:
    example = tmp_path / "example"
    shutil.copytree(Path(__file__).parents[1] / "example", example)

    def manage(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", "manage.py", *words],
            cwd=example, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    assert "/admin/" in manage("demo", "--only-prepare").communicate(timeout=60)[0]
    with manage("nightly", "--seconds", "60") as first:
        assert first.stdout is not None
        assert "Got the lock" in first.stdout.readline()
        second = manage("nightly")
        assert "`nightly` is held by" in second.communicate(timeout=60)[0]
        assert second.returncode == 75
        assert "nightly" in manage("locks", "list").communicate(timeout=60)[0]
        ours = manage("locks", "list", "--all", "--json").communicate(timeout=60)[0]
        theirs = dblock("list", "--all", "--json", url=f"sqlite://{example}/db.sqlite3.locks")
        assert _without_ages(ours) == _without_ages(theirs)
        # Ctrl-C releases the lock.
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=30)
    assert manage("nightly", "--seconds", "0").communicate(timeout=60)[0].endswith("Done.\n")


def _without_ages(text: str) -> str:
    return re.sub(r'"(held_for|free_in|renewed_at|expires_at)":("[^"]*"|[^,]*)', r'"\1":', text)
