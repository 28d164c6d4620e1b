"""`leader`: of many processes one leads, by holding a lock."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from . import _arguments, _logging, _project, _tasks
from ._arguments import NOTSET, Seconds
from ._client import one
from ._lock import lock
from ._wait import wait, wait_async
from .exceptions import LockConfigError, LockLost

if TYPE_CHECKING:
    from typing_extensions import Self

    from . import _core
    from ._client import Client
    from ._held import Held

logger = logging.getLogger("database_locks.leader")

T = TypeVar("T")

_SHORTEST_PAUSE = 1.0
"""Seconds; the least pause after a resignation."""


class Term:
    """The time for which this process leads: the argument of the function that `leader.run` calls."""

    def __init__(self, held: Held) -> None:
        self.held = held
        """The lock of the leader, for its ``check``, ``atomic`` and ``fence``."""
        self._resigned = False

    def __repr__(self) -> str:
        return f"<Term `{self.name}` token={self.token} is_leader={self.is_leader}>"

    @property
    def name(self) -> str:
        """The name of the leader's lock."""
        return self.held.name

    @property
    def token(self) -> int | None:
        """The number of the term, greater than that of every earlier one, in whichever process."""
        return self.held.token

    @property
    def is_leader(self) -> bool:
        """Whether this process leads, in this term. Without I/O.

        ``False`` before another process can lead, except after a release by force, which is noticed
        at the next renewal.
        """
        return not self._resigned and not self.held.lost and not self.held._ended

    def resign(self) -> None:
        """Give up the term: `is_leader` is ``False`` from now on, and the function has to return.

        Then the lock is released, another candidate gets it, and after a pause of twice ``retry``,
        but at least 1 s, this process campaigns again. To lead no more, return without this call.
        """
        self._resigned = True

    def _is_own(self, lost: LockLost) -> bool:
        return lost.name == self.name and lost.token == self.token


class leader:
    """A candidate: of all processes that run a leader of this name, one leads at a time.

    The leader holds the lock ``name``, an ordinary lock: ``dblock lead``, ``dblock show`` and
    `lock` see it.

    :param name: unique name in the database, 1 to 255 characters
    :param lock_ttl: seconds without a leader after the leader has died
    :param locked_by: id of this candidate. After a restart a process with the same id leads again at
        once; so each process needs an id of its own
    :param retry: the longest pause between two tries of a candidate, in seconds
    :param lock_ttl_renew: as of `lock`
    :param meta: a mapping, written as JSON, that ``dblock show`` and the admin page display

    >>> import database_locks
    >>> locks = database_locks.connect("memory:")
    >>> locks.leader("scheduler").run(lambda term: term.is_leader)
    True

    Raises `LockConfigError` for arguments that are out of range.
    """

    def __init__(
        self,
        name: str,
        lock_ttl: Seconds | None = NOTSET,
        locked_by: str | None = None,
        retry: Seconds = 0.5,
        lock_ttl_renew: Seconds | None = NOTSET,
        *,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """See the class."""
        self.name = _arguments.text("name", name)
        allowed = "a number of seconds, at least 0.001: a candidate waits until it leads"
        self._retry = _arguments.seconds("retry", retry, least=0.001, allowed=allowed)
        self._lock = lock(
            self.name,
            0,
            lock_ttl,
            locked_by,
            True,
            self._retry,
            None,
            lock_ttl_renew,
            until="exit",
            meta=meta,
        )
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"<leader `{self.name}`>"

    def _on(self, client: Client) -> Self:
        self._client = client
        self._lock._on(client)
        return self

    def run(self, func: Callable[[Term], T]) -> T:
        """Wait until this process leads, and call ``func`` with the `Term`; return its result.

        If the term is lost, `LockLost` is raised in ``func`` as in the block of `lock`, and when
        ``func`` has ended, this process campaigns again, and calls it again. The same after
        `Term.resign`. Anything else that ends ``func``, a result or another exception, releases the
        lock and ends ``run``. While the database is away, the campaign goes on.

        Threads that ``func`` has started are not interrupted: they have to watch `Term.is_leader`.
        """
        if inspect.iscoroutinefunction(func):
            raise LockConfigError(
                f"{func!r} is a coroutine function: use `await leader(…).arun(…)`"
            )
        while True:
            term: Term | None = None
            try:
                with self._lock._copy() as held:
                    term = self._begin(held)
                    result = func(term)
            except LockLost as lost:
                if term is None or not term._is_own(lost):
                    raise
                _log_lost(term)
                continue
            if not term._resigned:
                return result
            time.sleep(self._pause(term))

    async def arun(self, func: Callable[[Term], Awaitable[T]]) -> T:
        """`run` for a task: ``func`` is a coroutine function. A cancellation ends both."""
        while True:
            term: Term | None = None
            try:
                async with self._lock._copy() as held:
                    term = self._begin(held)
                    result = await func(term)
            except LockLost as lost:
                if term is None or not term._is_own(lost):
                    raise
                _log_lost(term)
                continue
            if not term._resigned:
                return result
            await _sleep(self._pause(term))

    def current(self) -> dict[str, Any] | None:
        """Who leads now, as `Locks.show` returns it: ``holder``, ``token``, ``acquired_at`` and
        more; ``None``: no process.
        """
        return _held(self._locks().show(self.name))

    async def acurrent(self) -> dict[str, Any] | None:
        """`current` for a task."""
        return _held(await self._locks().ashow(self.name))

    def observe(self) -> Observer:
        """An iterator over who leads: see `Observer`."""
        _logging.follow()
        return Observer(self._locks()._core.observe(self.name))

    def _locks(self) -> Client:
        if self._client is not None:
            return self._client
        client: Client = _project.conf().locks()
        return client

    def _begin(self, held: Held) -> Term:
        logger.info("leading %s, term %s", self.name, held.token)
        return Term(held)

    def _pause(self, term: Term) -> float:
        logger.info("resigned from %s, term %s", self.name, term.token)
        return max(2 * self._retry, _SHORTEST_PAUSE)


class Observer:
    """Who leads, as an iterator that never ends (``for`` and ``async for``).

    The first item comes at once, each later one when the leader has changed: what
    `leader.current` returns. The database is asked once a second while nothing changes, and more
    often after a change. A term that is shorter than a second may be skipped. An outage of the
    database is no change.
    """

    def __init__(self, core: _core.Observer) -> None:
        self._core = core

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any] | None:
        return one(wait(self._core.next()))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any] | None:
        return one(await wait_async(self._core.next()))


def _held(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return row if row is not None and row["state"] == "held" else None


def _log_lost(term: Term) -> None:
    logger.info("lost %s, term %s: campaigning again", term.name, term.token)


async def _sleep(seconds: float) -> None:
    if asyncio._get_running_loop() is None and _tasks.trio_task() is not None:
        await sys.modules["trio"].sleep(seconds)
    else:
        await asyncio.sleep(seconds)
