"""`DBLock`: the lock without a block of legacy (django-database-locks 0.5)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from . import _arguments, _core, _logging, _project
from ._arguments import AcquireRequest, Seconds, ttl_of
from ._held import Held
from ._registry import kept_here
from ._wait import wait, wait_until_done
from .django import open_transactions, transactions
from .exceptions import LockLost

if TYPE_CHECKING:
    from ._client import Client

logger = logging.getLogger("database_locks.locks")


class DBLock:
    """A lock without a block: acquired and released by hand, and not renewed in between.

    New code uses `lock(…).acquire()`, which is renewed. ``locked_by`` is that of `lock`. Two
    objects exclude each other, in one thread too. A release within a Django transaction takes
    effect at its end, and the lease is not renewed until then; the same thread can acquire the lock
    again meanwhile. ``until="exit"`` releases at once. An object that is dropped without a release
    leaves the lock held until its lease ends.
    """

    def __init__(
        self,
        name: str,
        locked_by: str | None = None,
        *,
        until: Literal["commit", "exit"] = "commit",
    ) -> None:
        _arguments.one_of("until", until, ("exit", "commit"))
        self._until: str = until
        self._name = _arguments.text("name", name)
        self._locked_by = None if locked_by is None else _arguments.text("locked_by", locked_by)
        self._held: Held | None = None

    @property
    def name(self) -> str:
        return self._name

    def acquire(self, lock_ttl: Seconds | None = 10) -> bool:
        """Try once to acquire for ``lock_ttl`` seconds (``None``: without end). Returns whether it
        is held.

        If this object holds the lock already, the lease becomes ``lock_ttl`` seconds from now. With
        a ``lock_ttl`` of zero or less it expires at once.
        """
        ttl = None
        if lock_ttl is not None:
            ttl = _arguments.seconds("lock_ttl", lock_ttl, allowed=_arguments.TTL)
        at_once = ttl is not None and ttl <= 0
        client = _project.conf().locks()
        request = self._request(client, 10.0 if at_once else ttl_of(ttl))
        kept = kept_here(request.key) if self._held is None else None
        if kept is not None:
            if kept.lost:
                return False
            self._held = kept._resume_detached()
        if self._held is None:
            return self._ask(client, request, at_once)
        if at_once:
            self.release()
            return True
        if wait(self._held._guard.extend(request.ttl)) is None:
            logger.debug("lock %s acquired/renewed", self._name)
            return True
        lost, self._held = self._held, None
        if lost._kept_on:
            # The transaction that keeps it cannot commit any more.
            return False
        lost._forget()
        return self._ask(client, request, at_once)

    def _ask(self, client: Client, request: AcquireRequest, at_once: bool) -> bool:
        _logging.follow()
        entry = _core.Entry()
        try:
            pending = client._core.acquire(
                self._name,
                ttl=request.ttl,
                wait=0.0,
                auto_renew=False,
                holder=self._locked_by,
            )
            entry.ask(pending)
            wait_until_done(pending)
            guard = entry.take()
            if guard is None or guard.loss() is not None:
                return False
            logger.debug("lock %s acquired/renewed", self._name)
            if at_once:
                wait(guard.release())
            else:
                held = Held(self._name, guard, request, entry.exception)
                held._detach()
                guard.stay()
                self._held = held
                entry.keep()
        finally:
            entry.give_back()
        return True

    def _request(self, client: Client, ttl: float | None) -> AcquireRequest:
        transactions.install()
        if self._until != "exit":
            open_transactions.check(None)
            open_transactions.check_in_task(None)
        return AcquireRequest(
            client=client,
            key=(_core.generation(), id(client), self._name, 0),
            name=self._name,
            ttl=ttl,
            wait=0.0,
            timeout=0.0,
            poll=None,
            renew_every=None,
            auto_renew=False,
            holder=self._locked_by,
            at_least=0.0,
            once_per=None,
            meta=None,
            on_busy="raise",
            until=self._until,
            until_using=None,
            callback=None,
            status_file=_project.status_file(),
        )

    def release(self) -> None:
        """Release the lock, if this object holds it."""
        logger.debug("releasing lock %s", self._name)
        held, self._held = self._held, None
        if held is None:
            return
        try:
            held.release()
        except LockLost as lost:
            # The transaction in which this lock was lost rolls back and raises there.
            if lost.token != held.token:
                raise
