"""A scheduler for ``celery beat`` of which one of many sends tasks.

Start it on as many machines as you like::

    celery -A app beat -S database_locks.contrib.celery:LeaderScheduler

In a Django project the lock is in the project's database. Else give a URL, and in either case what
differs from the defaults::

    app.conf.beat_leader = {
        "url": "postgres://app@db.example/app",  # or "locks": database_locks.connect(…)
        "name": "celery-beat",  # of the lock
        "lock_ttl": 30,  # seconds without a leader after the leader has died
        "scheduler": "celery.beat:PersistentScheduler",  # the one that sends
    }
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.beat import PersistentScheduler, Scheduler
from celery.schedules import schedule as Interval
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware

from .. import _project
from .._client import Client
from .._connect import connect
from .._held import Held
from .._lock import lock
from ..exceptions import LockConfigError, LockException, LockTimeout, LockUnavailable

logger = get_logger(__name__)

RETRY = 1.0
"""Seconds between two tries of a beat that does not lead."""

LONGEST_PAUSE = 5.0
"""The longest sleep of the leader, in seconds: when it wakes, it notices a loss, and campaigns."""

CATCH_UP = timedelta(hours=1)
"""How far an entry without a history looks back at the start of a term."""

DEFAULTS = {"name": "celery-beat", "lock_ttl": 30, "scheduler": PersistentScheduler}
OPTIONS = {*DEFAULTS, "url", "locks"}


class LeaderScheduler(Scheduler):  # type: ignore[misc]
    """Sends due tasks while this beat leads, by another scheduler that lives for one term.

    A beat that loses its lock, or was frozen and is thawed, sends nothing from then on, and is a
    candidate again. While the database is away, no beat sends. A message that is on its way to the
    broker at the end of a term can still arrive.

    At the start of a term, the tasks that fell due since the former leader's last renewal are sent.
    Those that it sent between that renewal and its death are sent twice: within a third of the
    ``lock_ttl``.
    """

    def __init__(
        self,
        app: Any,
        *,
        schedule_filename: str | None = None,
        max_interval: float | None = None,
        lazy: bool = False,
        **options: Any,
    ) -> None:
        """As beat calls it. ``lazy``: only to be shown."""
        settings = _settings_of(app)
        self._base_class: type[Scheduler] = symbol_by_name(settings["scheduler"])
        self._base_options = {
            "schedule_filename": schedule_filename,
            "max_interval": max_interval,
            **options,
        }
        self._name: str = settings["name"]
        self._client = _client_of(settings)
        # `retry=0`: each tick tries once.
        self._lock = lock(self._name, 0, settings["lock_ttl"], retry=0, until="exit")
        self._lock._on(self._client)
        self._held: Held | None = None
        self._base: Any = None
        self._told: str | None = None
        super().__init__(app, max_interval=max_interval, lazy=True)

    @property
    def info(self) -> str:
        """Lines for the banner of beat."""
        base = self._base_class(self.app, lazy=True, **self._base_options)
        return (
            f"    . leader -> lock {self._name}, sends by {self._base_class.__name__}\n{base.info}"
        )

    @property
    def is_leader(self) -> bool:
        """Whether this beat leads. Without I/O."""
        return self._held is not None and not self._held.lost

    def tick(self, *args: Any, **words: Any) -> float:
        """Send at most one due task, if this beat leads. Returns the pause until the next tick."""
        if self._held is not None and self._held.lost:
            self._end()
        if self._held is None and not self._campaign():
            return RETRY
        pause: float = self._base.tick(*args, **words)
        return min(pause, LONGEST_PAUSE)

    def _campaign(self) -> bool:
        """Try once to lead."""
        try:
            # Who led until when: the grant overwrites it.
            before = self._client and self._client.show(self._name)
            held = self._lock.acquire()
        except LockTimeout as busy:
            self._tell(f"standby: {busy.holder or 'another process'} leads")
            return False
        except LockUnavailable as error:
            self._tell(f"no beat can lead while the database is away: {error}")
            return False
        self._tell(f"leading, term {held.token}")
        began = datetime.now(timezone.utc)
        try:
            self._base = self._base_class(self.app, **self._base_options)
            self._base.apply_async = self._while_leading(self._base.apply_async)
            led_until = before and before["renewed_at"]
            # A scheduler with a database of its own shares its state.
            if led_until and isinstance(self._base, PersistentScheduler):
                _catch_up(
                    self._base, datetime.fromisoformat(led_until.replace("Z", "+00:00")), began
                )
        except BaseException:
            self._lock.release()
            raise
        self._held = held
        return True

    def _while_leading(self, send: Any) -> Any:
        def send_while_leading(entry: Any, *args: Any, **words: Any) -> Any:
            if self.is_leader:
                return send(entry, *args, **words)
            logger.warning("beat: %s is not sent: another beat may lead", entry.name)
            return None

        return send_while_leading

    def _end(self) -> None:
        """End the term."""
        base, self._base = self._base, None
        held, self._held = self._held, None
        try:
            if base is not None:
                base.close()
        finally:
            if held is not None:
                try:
                    self._lock.release()
                except LockException as error:
                    logger.warning("beat: %s", error)

    def _tell(self, text: str) -> None:
        """Log a change of the state, once."""
        if text != self._told:
            self._told = text
            logger.info("beat: %s", text)

    def setup_schedule(self) -> None:
        """Nothing: the scheduler of a term reads the schedule."""

    def get_schedule(self) -> Any:
        """The entries of this term."""
        return {} if self._base is None else self._base.schedule

    def set_schedule(self, schedule: Any) -> None:
        """Set the entries of this term."""
        if self._base is not None:
            self._base.schedule = schedule

    schedule = property(get_schedule, set_schedule)

    def should_sync(self) -> bool:
        """Whether beat has to call `sync`."""
        return self._base is not None and bool(self._base.should_sync())

    def _do_sync(self) -> None:
        if self._base is not None:
            self._base._do_sync()

    def sync(self) -> None:
        """Write the schedule."""
        if self._base is not None:
            self._base.sync()

    def close(self) -> None:
        """Write the schedule and release the lock: another beat leads at once."""
        self._end()


def _settings_of(app: Any) -> dict[str, Any]:
    given = app.conf.get("beat_leader") or {}
    if not isinstance(given, Mapping):
        raise LockConfigError(f"`beat_leader` is {given!r}, must be a dict")
    for name in given:
        if name not in OPTIONS:
            raise LockConfigError(
                f"`beat_leader` has the unknown key {name!r}, must have only: "
                f"{', '.join(sorted(OPTIONS))}"
            )
    if "url" in given and "locks" in given:
        raise LockConfigError("`beat_leader` has `url` and `locks`: leave out one of them")
    return {**DEFAULTS, **given}


def _client_of(settings: Mapping[str, Any]) -> Client | None:
    """Where the lock is; ``None``: locks are switched off in the Django project."""
    if "url" in settings:
        return connect(settings["url"])
    if "locks" in settings:
        given: Client = settings["locks"]
        if not isinstance(given, Client):
            raise LockConfigError(
                f"`beat_leader` has `locks` {given!r}, must be of database_locks.connect(url)"
            )
        return given
    conf = _project.conf()
    client: Client | None = conf.locks() if conf.enabled() else None
    return client


def _catch_up(base: Any, led_until: datetime, began: datetime) -> None:
    """Let the entries go on from the last renewal of the former leader, which sent what fell due
    before.
    """
    for entry in base.schedule.values():
        entry.last_run_at = _last_run(entry, led_until, began)


def _last_run(entry: Any, led_until: datetime, began: datetime) -> datetime:
    own: datetime = maybe_make_aware(entry.last_run_at)
    if own >= began:
        # Without a history: the entry was made just now.
        return max(led_until, began - CATCH_UP)
    if own >= led_until:
        return own
    if type(entry.schedule) is Interval and entry.schedule.run_every:
        every: timedelta = entry.schedule.run_every
        # It keeps its phase, or an interval that is longer than the terms would never pass.
        return own + (led_until - own) // every * every
    return led_until
