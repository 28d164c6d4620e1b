"""`DBLock`: the lock without a block that django-database-locks 0.5 had."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from . import _core, _log, _names, _settings, _transactions, _wanted
from ._held import Held, kept_here
from ._wait import until, wait
from ._wanted import Seconds, Wanted, ttl_of
from .exceptions import LockLost

if TYPE_CHECKING:
    from ._manager import Locks

logger = logging.getLogger("database_locks.locks")


class DBLock:
    """A lock without a block: acquired and released by hand, and not renewed in between.

    `lock(…).acquire()` is renewed. ``locked_by`` as for `lock`. Two objects exclude each other, within
    one thread too. One that is released inside of a transaction of Django's is kept, not renewed, until
    that has ended (``until="exit"``: it is not), and the same thread can acquire it again meanwhile. If it is dropped without a release, the lock
    stays held until its lease ends.
    """

    def __init__(
        self,
        name: str,
        locked_by: str | None = None,
        *,
        until: Literal["commit", "exit"] = "commit",
    ) -> None:
        _wanted.one_of("until", until, ("exit", "commit"))
        self._until: str = until
        self._name = _wanted.text("name", name)
        self._locked_by = None if locked_by is None else _wanted.text("locked_by", locked_by)
        self._held: Held | None = None

    @property
    def name(self) -> str:
        return self._name

    def acquire(self, lock_ttl: Seconds | None = 10) -> bool:
        """Try once; for ``lock_ttl`` seconds, ``None``: without end. Whether it is ours.

        Where this object holds it already, it holds it for ``lock_ttl`` seconds from now. A
        ``lock_ttl`` of zero or less lets it expire at once.
        """
        ttl = None
        if lock_ttl is not None:
            ttl = _names.seconds("lock_ttl", lock_ttl, allowed=_wanted.TTL)
        at_once = ttl is not None and ttl <= 0
        locks = _settings.django().locks()
        wanted = self._wanted(locks, 10.0 if at_once else ttl_of(ttl))
        kept = kept_here(wanted.key) if self._held is None else None
        if kept is not None:
            if kept.lost:
                return False
            self._held = kept._resume_detached()
        if self._held is None:
            return self._ask(locks, wanted, at_once)
        if at_once:
            self.release()
            return True
        if wait(self._held._guard.extend(wanted.ttl)) is None:
            logger.debug("lock %s acquired/renewed", self._name)
            return True
        lost, self._held = self._held, None
        if lost._kept_on:
            # Its transaction cannot commit any more.
            return False
        lost._forget()
        return self._ask(locks, wanted, at_once)

    def _ask(self, locks: Locks, wanted: Wanted, at_once: bool) -> bool:
        _log.follow()
        entry = _core.Entry()
        try:
            pending = locks._core.acquire(
                self._name,
                ttl=wanted.ttl,
                wait=0.0,
                auto_renew=False,
                holder=self._locked_by,
            )
            entry.ask(pending)
            until(pending)
            guard = entry.take()
            if guard is None or guard.loss() is not None:
                return False
            logger.debug("lock %s acquired/renewed", self._name)
            if at_once:
                wait(guard.release())
            else:
                held = Held(self._name, guard, wanted, entry.alarm)
                held._detach()
                guard.stay()
                self._held = held
                entry.keep()
        finally:
            entry.give_back()
        return True

    def _wanted(self, locks: Locks, ttl: float | None) -> Wanted:
        if self._until != "exit":
            _transactions.check(None)
            _transactions.check_in_task(None)
        return Wanted(
            locks=locks,
            key=(_core.generation(), id(locks), self._name),
            name=self._name,
            ttl=ttl,
            wait=0.0,
            timeout=0.0,
            poll=None,
            renew_every=None,
            auto_renew=False,
            holder=self._locked_by,
            meta=None,
            on_busy="raise",
            until=self._until,
            until_using=None,
            callback=None,
            status_file=_settings.status_file(),
        )

    def release(self) -> None:
        """Release it, if this object holds it."""
        logger.debug("releasing lock %s", self._name)
        held, self._held = self._held, None
        if held is None:
            return
        try:
            held.release()
        except LockLost as lost:
            # A transaction that it was lost in rolls back, and raises there.
            if lost.token != held.token:
                raise
