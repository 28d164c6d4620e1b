"""`DBLock`: the lock without a block that 0.5 had."""

from __future__ import annotations

import logging

from . import _core, _log, _names, _settings, _wanted
from ._wait import until, wait
from ._wanted import Seconds, ttl_of

logger = logging.getLogger("database_locks.locks")


class DBLock:
    """A lock without a block: acquired and released by hand, and not renewed in between.

    `lock(…).acquire()` is renewed. ``locked_by`` as for `lock`. Two objects exclude each other, within
    one thread too. If it is dropped without a release, the lock stays held until its lease ends.
    """

    def __init__(self, name: str, locked_by: str | None = None) -> None:
        self._name = _wanted.text("name", name)
        self._locked_by = None if locked_by is None else _wanted.text("locked_by", locked_by)
        self._guard: _core.Guard | None = None

    @property
    def name(self) -> str:
        return self._name

    def acquire(self, lock_ttl: Seconds | None = 10) -> bool:
        """Try once; for ``lock_ttl`` seconds, ``None``: without end. Whether it is ours.

        Where this object holds it already, it holds it for ``lock_ttl`` seconds from now. A
        ``lock_ttl`` of zero or less lets it expire at once.
        """
        conf = _settings.django()
        ttl = None
        if lock_ttl is not None:
            ttl = _names.seconds("lock_ttl", lock_ttl, allowed=_wanted.TTL)
        at_once = ttl is not None and ttl <= 0
        if self._guard is not None:
            if at_once:
                self.release()
                return True
            if wait(self._guard.extend(ttl_of(ttl))) is None:
                logger.debug("lock %s acquired/renewed", self._name)
                return True
            self._guard = None
        _log.follow()
        entry = _core.Entry()
        try:
            pending = conf.locks()._core.acquire(
                self._name,
                ttl=10.0 if at_once else ttl_of(ttl),
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
                guard.stay()
                self._guard = guard
                entry.keep()
        finally:
            entry.give_back()
        return True

    def release(self) -> None:
        """Release it, if this object holds it."""
        logger.debug("releasing lock %s", self._name)
        guard, self._guard = self._guard, None
        if guard is not None and wait(guard.release()) is None:
            logger.debug("released lock %s", self._name)
