"""Real beats of which one sends, and what a beat sends when it begins to lead."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.beat import PersistentScheduler
from celery.schedules import crontab

from database_locks import LockConfigError, Locks, LockTimeout, connect
from database_locks.contrib import celery as contrib
from database_locks.contrib.celery import LeaderScheduler
from support import Program, environment, eventually

PROGRAMS = Path(__file__).parent / "programs"


class Beats:
    """Beats of one app, and what they have sent."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self.env = environment(LOCKS_URL=url, FOLDER=str(folder))
        self.started: list[Program] = []
        for name in ("messages", "control"):
            (folder / name).mkdir()

    def start(self) -> Program:
        number = len(self.started)
        where = ["-s", str(self.folder / f"schedule-{number}"), "--pidfile="]
        what = ["-S", "database_locks.contrib.celery:LeaderScheduler", "--loglevel=INFO"]
        beat = Program(
            [sys.executable, "-m", "celery", "-A", "beat", "beat", *what, *where],
            env=self.env,
            cwd=PROGRAMS,
        )
        self.started.append(beat)
        return beat

    def senders(self) -> list[int]:
        """The pid of the beat that sent each message, in order."""
        file = self.folder / "sent"
        return (
            [int(line.split()[0]) for line in file.read_text().splitlines()]
            if file.exists()
            else []
        )

    def wait_until_sends(self, among: list[Program]) -> Program:
        """One of these sends a message from now on: the one that does."""
        seen, pids = len(self.senders()), {beat.pid: beat for beat in among}

        def sends() -> Program | None:
            return next((pids[pid] for pid in self.senders()[seen:] if pid in pids), None)

        found = eventually(sends, f"one of {list(pids)} sends\n{self.story()}", 60)
        assert found is not None
        return found

    def story(self) -> str:
        return "\n".join(f"{beat.pid}:\n{beat.stderr}" for beat in self.started)

    def assert_one_at_a_time(self) -> None:
        """Each beat that has sent did so in one term after another, and never beside the next."""
        senders = self.senders()
        turns = [pid for i, pid in enumerate(senders) if i == 0 or senders[i - 1] != pid]
        assert len(turns) == len(set(turns)), f"{turns}\n{self.story()}"


@pytest.fixture
def beats(server_url: str, tmp_path: Path) -> Iterator[Beats]:
    beats = Beats(server_url, tmp_path)
    yield beats
    for beat in beats.started:
        beat.close()


@pytest.fixture
def sqlite_beats(sqlite_url: str, tmp_path: Path) -> Iterator[Beats]:
    beats = Beats(sqlite_url, tmp_path)
    yield beats
    for beat in beats.started:
        beat.close()


def one_of_three_sends(beats: Beats) -> None:
    others = [beats.start() for _ in range(3)]
    killed = beats.wait_until_sends(others)
    others.remove(killed)
    killed.signal(signal.SIGKILL)

    frozen = beats.wait_until_sends(others)
    others.remove(frozen)
    frozen.signal(signal.SIGSTOP)
    third = beats.wait_until_sends(others)
    # The thawed one has lost its term, and sends nothing beside the leader.
    frozen.signal(signal.SIGCONT)
    third.goes_on(3)
    frozen.goes_on(0)
    beats.assert_one_at_a_time()

    # A stopped leader lets the next one lead at once, and not when its lease ends.
    before = len(beats.senders())
    third.signal(signal.SIGTERM)
    third.wait(30)
    assert beats.wait_until_sends([frozen]) is frozen
    # It sends two a second until it has the signal.
    assert third.pid not in beats.senders()[before + 10 :]
    # A beat that is stopped between the two may have sent one that it has not noted.
    frozen.freeze()
    messages = list((beats.folder / "messages").iterdir())
    assert 0 <= len(messages) - len(beats.senders()) <= 2


def test_one_of_three_beats_sends_although_they_are_killed_and_frozen(beats: Beats) -> None:
    one_of_three_sends(beats)


def test_one_of_three_beats_sends_on_sqlite(sqlite_beats: Beats) -> None:
    one_of_three_sends(sqlite_beats)


def test_a_leader_that_is_robbed_stops_sending_and_is_a_candidate_again(
    sqlite_beats: Beats, sqlite_url: str
) -> None:
    beat = sqlite_beats.start()
    sqlite_beats.wait_until_sends([beat])
    locks = connect(sqlite_url)
    robber = locks.lock("celery-beat", on_busy="raise")

    def robs() -> bool:
        locks.force_release("celery-beat")
        try:
            robber.acquire()
        except LockTimeout:
            # The beat was faster: it campaigns as soon as it notices.
            return False
        return True

    eventually(robs, "the lock is taken from the beat")
    eventually(lambda: "standby:" in beat.stderr, "the beat is a candidate")
    before = len(sqlite_beats.senders())
    beat.goes_on(2)
    assert len(sqlite_beats.senders()) == before
    robber.release()
    sqlite_beats.wait_until_sends([beat])


# In this process, tick by tick.


@pytest.fixture
def locks(memory_url: str) -> Locks:
    return connect(memory_url)


@pytest.fixture
def make(locks: Locks, tmp_path: Path) -> Callable[..., LeaderScheduler]:
    """A scheduler with a file of its own."""
    made: list[LeaderScheduler] = []

    def make(schedule: dict[str, Any], file: str = "a", **options: Any) -> LeaderScheduler:
        app = Celery("app", broker="memory://")
        app.conf.beat_schedule = schedule
        app.conf.beat_leader = {"locks": locks, **options}
        scheduler = LeaderScheduler(app, schedule_filename=str(tmp_path / file))
        made.append(scheduler)
        return scheduler

    return make


EVERY_MINUTE = {"minutely": {"task": "minutely", "schedule": crontab()}}
HOURLY = {"hourly": {"task": "hourly", "schedule": timedelta(hours=1)}}


def test_a_beat_that_does_not_lead_sends_nothing_and_asks_once_a_second(
    make: Callable[..., LeaderScheduler], locks: Locks
) -> None:
    a, b = make(EVERY_MINUTE, "a"), make(EVERY_MINUTE, "b")
    assert a.tick() > 0
    assert a.is_leader
    assert b.tick() == contrib.RETRY
    assert not b.is_leader
    assert b.schedule == {}
    a.close()
    a.close()
    assert b.tick() <= contrib.LONGEST_PAUSE
    assert b.is_leader
    shown = locks.show("celery-beat")
    assert shown is not None
    assert shown["state"] == "held"
    b.close()


def test_a_new_leader_goes_on_from_the_last_renewal_of_the_former_one(
    make: Callable[..., LeaderScheduler],
) -> None:
    now = datetime.now(timezone.utc)
    a = make({**EVERY_MINUTE, **HOURLY})
    began = now + timedelta(seconds=5)
    a.tick()
    of_minute, of_hour = a.schedule["minutely"], a.schedule["hourly"]

    def last(entry: Any, own: timedelta, led: timedelta) -> timedelta:
        """How long before the start of the term; ``own`` and ``led`` likewise."""
        entry.last_run_at = began - own
        return began - contrib._last_run(entry, began - led, began)

    hours, minutes = (lambda n: timedelta(hours=n)), (lambda n: timedelta(minutes=n))
    # The former leader sent what fell due until then, and this one sends the rest.
    assert last(of_minute, hours(30), minutes(3)) == minutes(3)
    # What this beat sent itself after its last renewal.
    assert last(of_minute, minutes(2), minutes(3)) == minutes(2)
    # An interval keeps its phase: 30 hours and 20 minutes ago, and so 20 minutes ago.
    assert last(of_hour, hours(30) + minutes(20), minutes(3)) == minutes(20)
    # A beat without a file looks back for an hour at most.
    assert last(of_minute, minutes(0), minutes(3)) == minutes(3)
    assert last(of_minute, minutes(0), hours(30)) == hours(1)
    a.close()


@pytest.mark.parametrize(("led_until", "expected"), [(5, []), (30, ["hourly"])])
def test_what_fell_due_since_the_last_renewal_of_the_former_leader_is_sent_once(
    make: Callable[..., LeaderScheduler],
    locks: Locks,
    monkeypatch: pytest.MonkeyPatch,
    led_until: int,
    expected: list[str],
) -> None:
    """It fell due 15 minutes ago."""
    now = datetime.now(timezone.utc)
    a = make(HOURLY)
    a.tick()
    a.schedule["hourly"].last_run_at = now - timedelta(hours=2, minutes=15)
    a.close()
    renewed = (now - timedelta(minutes=led_until)).isoformat().replace("+00:00", "Z")
    monkeypatch.setattr(locks, "show", lambda name: {"renewed_at": renewed})
    sent: list[str] = []
    monkeypatch.setattr(
        PersistentScheduler, "send_task", lambda self, name, *_, **__: sent.append(name)
    )
    b = make(HOURLY)
    for _ in range(3):
        b.tick()
    assert sent == expected
    b.close()


def test_a_task_that_is_due_when_the_lease_is_lost_is_not_sent(
    make: Callable[..., LeaderScheduler], locks: Locks
) -> None:
    a = make(HOURLY, "a")
    a.tick()
    sent: list[str] = []
    a._base.send_task = lambda name, *args, **words: sent.append(name)
    entry = a._base.schedule["hourly"]
    entry.last_run_at -= timedelta(hours=2)
    base = a._base
    base._heap = None
    assert locks.lose("celery-beat")
    # The tick that had begun before the loss.
    base.tick()
    assert sent == []
    assert not a.is_leader
    # The next one campaigns again.
    assert a.tick() > 0
    assert a.is_leader
    assert a._base is not base
    a.close()


def test_wrong_settings_are_refused_when_beat_starts(make: Callable[..., LeaderScheduler]) -> None:
    with pytest.raises(LockConfigError, match="unknown key 'ttl', must have only: lock_ttl, locks"):
        make(HOURLY, ttl=3)
    with pytest.raises(LockConfigError, match="`url` and `locks`"):
        make(HOURLY, url="memory:")
    with pytest.raises(LockConfigError, match="`lock_ttl` is 'x'"):
        make(HOURLY, lock_ttl="x")
    with pytest.raises(LockConfigError, match=r"`locks` 3, must be of database_locks\.connect"):
        make(HOURLY, locks=3)


def test_the_scheduler_that_sends_can_be_chosen(make: Callable[..., LeaderScheduler]) -> None:
    a = make(HOURLY, scheduler="celery.beat:Scheduler", name="another lock")
    a.tick()
    assert not isinstance(a._base, PersistentScheduler)
    assert "another lock, sends by Scheduler" in a.info
    a.close()
