"""The normal end of a process releases its locks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from database_locks import connect

HELD_BY = {
    "a daemon thread": """
def hold():
    with L.lock("job", lock_ttl=None):
        go.set()
        time.sleep(100)
threading.Thread(target=hold, daemon=True).start()
""",
    "the loop of a daemon thread": """
async def hold():
    async with L.lock("job", lock_ttl=None):
        go.set()
        await asyncio.sleep(100)
threading.Thread(target=asyncio.run, args=[hold()], daemon=True).start()
""",
    "a generator": """
@L.locked("job", lock_ttl=None)
def hold():
    yield 1
steps = hold()
next(steps)
go.set()
""",
    "an object": """
job = L.lock("job", lock_ttl=None)
job.acquire()
go.set()
""",
    "a daemon thread that takes locks all the time": """
def hold():
    while True:
        with L.lock("job", lock_ttl=60):
            go.set()
threading.Thread(target=hold, daemon=True).start()
""",
}


def end_holding(url: str, how: str, tmp_path: Path, end: str = "") -> None:
    program = (
        "import asyncio, threading, time\nfrom database_locks import connect\n"
        f"L = connect({url!r})\ngo = threading.Event()\n{HELD_BY[how]}\nassert go.wait(20)\n{end}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=False, capture_output=True, timeout=60
    )
    assert done.returncode == (3 if end else 0), done.stderr.decode()


@pytest.mark.parametrize("how", HELD_BY)
def test_the_end_of_a_process_releases_the_locks_of_all_threads(
    sqlite_url: str, how: str, tmp_path: Path
) -> None:
    end_holding(sqlite_url, how, tmp_path)
    assert not connect(sqlite_url).is_locked("job")


def test_the_end_of_a_process_releases_the_lock_of_a_daemon_thread_on_a_server(
    server_url: str, tmp_path: Path
) -> None:
    end_holding(server_url, "a daemon thread", tmp_path)
    assert not connect(server_url).is_locked("job")


def test_sys_exit_releases_the_locks_of_all_threads(sqlite_url: str, tmp_path: Path) -> None:
    end_holding(sqlite_url, "a daemon thread", tmp_path, end="raise SystemExit(3)")
    assert not connect(sqlite_url).is_locked("job")
