"""A real Celery worker, with processes and with threads, whose tasks run under locks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import Program, dblock, environment, eventually

PROGRAMS = Path(__file__).parent / "programs"


class Worker(Program):
    """Its broker and results are folders; ``log`` is what it logs."""

    def __init__(self, url: str, pool: str, folder: Path) -> None:
        for name in ("messages", "outgoing", "control", "results"):
            (folder / name).mkdir()
        self.url = url
        self.log = folder / "log"
        self.env = environment(LOCKS_URL=url, FOLDER=str(folder))
        how = ["-P", pool, "-c", "3", "-n", f"{pool}@here", "-f", str(self.log), "--loglevel=INFO"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        super().__init__(
            [sys.executable, "-m", "celery", "-A", "tasks", "worker", *how, *quiet],
            env=self.env,
            cwd=PROGRAMS,
            group=True,
        )
        self.wait_for_log("ready.")

    def wait_for_log(self, text: str) -> None:
        def logged() -> bool:
            assert self.alive(), f"{self.stderr}\n{self.lines}"
            return self.log.exists() and text in self.log.read_text()

        eventually(logged, f"Celery logs `{text}`", 60)

    def delay(self, *calls: tuple[str, list[Any]]) -> Callable[[], list[Any]]:
        """Send tasks from another process, as an application does; what they return."""
        ask = (
            "import json, sys, tasks\n"
            "from pathlib import Path\n"
            "sent = [getattr(tasks, name).delay(*args) for name, args in json.load(sys.stdin)]\n"
            "for file in Path(tasks.FOLDER, 'outgoing').iterdir():\n"
            "    file.rename(Path(tasks.FOLDER, 'messages', file.name))\n"
            "print('sent', flush=True)\n"
            "got = [one.get(timeout=60, interval=0.05, propagate=False) for one in sent]\n"
            "print(json.dumps(got, default=lambda error: type(error).__name__))\n"
        )
        sender = subprocess.Popen(
            [sys.executable, "-c", ask],
            env=self.env,
            cwd=PROGRAMS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert sender.stdin is not None
        json.dump(calls, sender.stdin)
        sender.stdin.close()
        assert sender.stdout is not None
        assert sender.stdout.readline() == "sent\n"

        def results() -> list[Any]:
            assert sender.stdout is not None
            with sender, sender.stdout as answers:
                text = answers.read()
            assert text, f"no results\n{self.log.read_text()}\n{self.stderr}"
            found: list[Any] = json.loads(text)
            return found

        return results

    def pid_in(self, file: Path) -> int:
        """Which process has written its pid there, when it had its lock."""
        try:
            text = eventually(lambda: file.exists() and file.read_text(), f"{file} is written")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()}\n{self.stderr}") from None
        return int(text or 0)

    def shown(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(dblock("show", name, "--json", url=self.url))
        return shown


def worker_of(pool: str) -> Callable[..., Iterator[Worker]]:
    def worker(server_url: str, tmp_path: Path) -> Iterator[Worker]:
        worker = Worker(server_url, pool, tmp_path)
        yield worker
        worker.close()

    return worker


prefork = pytest.fixture(worker_of("prefork"), name="prefork")
threads = pytest.fixture(worker_of("threads"), name="threads")


def count_under_a_lock(worker: Worker, tmp_path: Path) -> set[int]:
    number = tmp_path / "number"
    number.write_text("0")
    pids = worker.delay(*[("count", [str(number)])] * 40)()
    assert number.read_text() == "40"
    return set(pids)


def test_children_exclude_each_other_and_the_parents_lock_survives(
    prefork: Worker, tmp_path: Path
) -> None:
    before = prefork.shown("parent's")
    children = count_under_a_lock(prefork, tmp_path)
    assert len(children) >= 2
    assert prefork.pid not in children
    assert prefork.delay(("inherited", []))() == [[True, "forked"]]
    # A child that is killed in the middle takes nothing with it that is not its own.
    killed = prefork.delay(("work", ["job", str(tmp_path / "never")]))
    os.kill(prefork.pid_in(tmp_path / "never.begun"), signal.SIGKILL)
    assert killed() == ["WorkerLostError"]
    # Longer than the ttl of both.
    prefork.goes_on(7)
    assert prefork.shown("job")["state"] != "held"
    now = prefork.shown("parent's")
    assert (now["token"], now["holder"]) == (before["token"], before["holder"])
    assert count_under_a_lock(prefork, tmp_path)


def test_sigusr1_stays_celerys_while_tasks_hold_locks(prefork: Worker, tmp_path: Path) -> None:
    """For the main process: log all stacks. For a child: the soft time limit."""
    until = tmp_path / "until"
    results = prefork.delay(("work", ["job", str(until)]))
    child = prefork.pid_in(tmp_path / "until.begun")

    prefork.signal(signal.SIGUSR1)
    eventually(lambda: "MainThread" in prefork.stderr, "it logs stacks")
    # Longer than the ttl: it goes on being renewed.
    prefork.goes_on(5)
    assert prefork.shown("job")["state"] == "held"

    os.kill(child, signal.SIGUSR1)
    assert results() == [["soft time limit", None]]
    eventually(lambda: prefork.shown("job")["state"] == "free", "it is free")
    assert prefork.shown("parent's")["state"] == "held"


def test_a_celery_task_that_loses_its_lock_gets_lock_lost(prefork: Worker, tmp_path: Path) -> None:
    results = prefork.delay(("work", ["job", str(tmp_path / "never")]))
    prefork.pid_in(tmp_path / "never.begun")
    dblock("release", "job", "--force", url=prefork.url)
    assert results() == [["lost", "forced"]]


def test_threads_exclude_each_other_and_each_gets_its_own_loss(
    threads: Worker, tmp_path: Path
) -> None:
    assert count_under_a_lock(threads, tmp_path) == {threads.pid}
    # The same process that has taken it.
    assert threads.delay(("inherited", []))() == [[False, "held"]]

    until = tmp_path / "until"
    lost = threads.delay(("work", ["one", str(tmp_path / "never")]))
    kept = threads.delay(("work", ["another", str(until)]))
    assert (
        threads.pid_in(tmp_path / "never.begun")
        == threads.pid_in(tmp_path / "until.begun")
        == threads.pid
    )
    token = threads.shown("another")["token"]
    dblock("release", "one", "--force", url=threads.url)
    assert lost() == [["lost", "forced"]]

    threads.signal(signal.SIGUSR1)
    eventually(lambda: "MainThread" in threads.stderr, "it logs stacks")
    until.touch()
    assert kept() == [["held", token]]


def test_a_stopped_worker_releases_the_locks_of_its_tasks(prefork: Worker, tmp_path: Path) -> None:
    until = tmp_path / "until"
    results = prefork.delay(("work", ["job", str(until)]))
    prefork.pid_in(tmp_path / "until.begun")
    # A warm shutdown: what runs is finished first.
    prefork.signal(signal.SIGTERM)
    prefork.goes_on(0.5)
    until.touch()
    assert results()[0][0] == "held"
    prefork.wait(60)
    assert prefork.shown("job")["state"] == "free"
