"""User and password from a Django back end, read at each connect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("programs") / "rotating.py"


def _run(what: str, url: str, home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run(
        [sys.executable, PROGRAM, what, url],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stdout + run.stderr
    assert "second" not in run.stderr, run.stderr


@pytest.fixture(params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> str:
    """The URL of an empty table, as the superuser."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def test_a_held_lock_reconnects_with_the_present_params_of_the_back_end(
    server: str, tmp_path: Path
) -> None:
    _run("backend", server, tmp_path)


def test_a_back_end_that_raises_is_unavailable_with_its_cause(server: str, tmp_path: Path) -> None:
    _run("failing", server, tmp_path)


def test_changed_settings_are_used_at_the_next_connect(server: str, tmp_path: Path) -> None:
    _run("settings_change", server, tmp_path)


def test_a_file_that_the_options_name_is_read_at_each_connect(server: str, tmp_path: Path) -> None:
    _run("file", server, tmp_path)


def test_a_service_is_read_at_each_connect(postgres_url: str, tmp_path: Path) -> None:
    _run("service", postgres_url, tmp_path)
