"""The locks of one table, for programs with and without Django."""

from __future__ import annotations

import atexit
import builtins
import functools
import json
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from . import _core, _log, _names, _wanted
from ._wait import wait, wait_async
from ._wanted import NOTSET
from .exceptions import LockConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._typing import Decorator, F, Options, SkippingDecorator
    from ._wanted import Seconds
    from .locks import lock as Lock


_M = TypeVar("_M", bound=Callable[..., Any])


def _hinting(method: _M) -> _M:
    @functools.wraps(method)
    def hinting(*args: Any, **words: Any) -> Any:
        _wanted.refuse_foreign(words)
        return method(*args, **words)

    return cast("_M", hinting)


class Locks:
    """The locks of one table of one database.

    ``url`` is ``postgres://…``, ``mysql://…``, ``sqlite:///…`` or ``memory:``. Nothing is sent until
    a lock is used. Threads share one such object, and a forked child may go on using it.

    ``password`` is called without arguments at each connect, where the URL has no password, and
    returns it: also when a connection breaks while locks are held, so that a token may change. It is
    called on a thread of its own, at most once at a time, and may block for 10 s. While it raises,
    the database counts as one that cannot be reached: waits go on, `LockUnavailable` has the
    exception as its ``__cause__``.

    Raises `LockConfigError` for a URL that cannot be understood, which it does not repeat.

    >>> locks = Locks("memory:")
    >>> with locks.lock("report", timeout=5):
    ...     pass
    """

    def __init__(
        self,
        url: str,
        table: str | None = None,
        *,
        password: Callable[[], str] | None = None,
        _url_with: Callable[[], str] | None = None,
        _environment: bool = True,
    ) -> None:
        if password is not None and not callable(password):
            raise LockConfigError(
                f"`password` is of type {type(password).__name__}, must be a function without "
                "arguments that returns the password"
            )
        self._core = _core.Locks(
            url, table, password=password, url_with=_url_with, environment=_environment
        )
        _all.add(self)

    def __repr__(self) -> str:
        return f"<Locks on {self.engine}>"

    @property
    def engine(self) -> str:
        """``postgres``, ``mysql``, ``sqlite`` or ``memory``."""
        return self._core.engine

    @_hinting
    def lock(
        self,
        lock_name: str | None = None,
        timeout: Seconds | None = 0,
        lock_ttl: Seconds | None = NOTSET,
        locked_by: str | None = None,
        auto_renew: bool = True,
        retry: Seconds | None = 0.5,
        lost_lock_cb: Callable[[int, Any], Any] | None = None,
        lock_ttl_renew: Seconds | None = NOTSET,
        *,
        on_busy: Literal["wait", "raise", "skip"] = "wait",
        until: Literal["commit", "exit"] = "commit",
        until_using: str | None = None,
        meta: Mapping[str, Any] | None = None,
        ticket: str | None = None,
    ) -> Lock:
        """As `database_locks.lock`, on this table."""
        from .locks import lock

        return lock(
            lock_name,
            timeout,
            lock_ttl,
            locked_by,
            auto_renew,
            retry,
            lost_lock_cb,
            lock_ttl_renew,
            on_busy=on_busy,
            until=until,
            until_using=until_using,
            meta=meta,
            ticket=ticket,
        )._on(self, _names.caller(2))

    @overload
    def locked(self, func: F, /) -> F: ...
    @overload
    def locked(
        self,
        lock_name: str | Callable[..., str] | None = None,
        *,
        on_busy: Literal["skip"],
        **options: Unpack[Options],
    ) -> SkippingDecorator: ...
    @overload
    def locked(
        self,
        lock_name: str | Callable[..., str] | None = None,
        *,
        on_busy: Literal["wait", "raise"] = "wait",
        **options: Unpack[Options],
    ) -> Decorator: ...
    def locked(self, func_or_name: Any = None, /, **options: Any) -> Any:  # type: ignore[misc]
        """As `database_locks.locked`, on this table."""
        from .locks import make_locked

        return make_locked(self, func_or_name, options)

    def is_locked(self, name: str) -> bool:
        """Whether any holder has this lock now, by the database's clock."""
        found = self.show(_wanted.text("lock_name", name))
        return found is not None and found["state"] == "held"

    async def ais_locked(self, name: str) -> bool:
        """`is_locked` for a task."""
        found = await self.ashow(_wanted.text("lock_name", name))
        return found is not None and found["state"] == "held"

    def list(self, *, free: bool = True) -> builtins.list[dict[str, Any]]:
        """Every lock that the table knows, as ``dblock list --all --json`` prints them.

        ``free=False``: only those that are held, or that a dead holder left behind; the database
        leaves the others out.
        """
        locks: builtins.list[dict[str, Any]] = json.loads(wait(self._core.list(free=free)))
        return locks

    def _page(
        self, text: str, state: str | None, page: int, rows: int, order: str | None = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(wait(self._core.page(text, state, page, rows, order)))
        return found

    def show(self, name: str) -> dict[str, Any] | None:
        """One lock, or ``None`` where the table has none of that name."""
        return _one(wait(self._core.show(_wanted.text("name", name))))

    def force_release(self, name: str) -> tuple[str | None, float | None] | None:
        """Take a lock from whoever has it; who that was and for how many seconds, if anybody."""
        return wait(self._core.force_release(_wanted.text("name", name)))

    def prune(self, idle: float, unknown: bool = False) -> int:
        """Delete the rows of locks that nobody has had for so many seconds; how many that were."""
        return wait(self._core.prune(idle, unknown))

    def doctor(self) -> Any:
        """What is wrong and what to do, as ``dblock doctor --json`` prints it."""
        return json.loads(wait(self._core.doctor()))

    def migrate(self) -> None:
        """Make the table, or add what it lacks. A second run changes nothing."""
        wait(self._core.migrate())

    def drain(self) -> None:
        """Wait until every release that goes on in the background has been carried out."""
        wait(self._core.drain())

    def expire(self, name: str) -> bool:
        """For tests, on ``memory:``: its lease ends now. Whether it was held."""
        return wait(self._core.expire(name))

    def lose(self, name: str) -> bool:
        """For tests: take it by force, and tell its holder in this process at once."""
        return wait(self._core.lose(name))

    async def alist(self, *, free: bool = True) -> builtins.list[dict[str, Any]]:
        """`list` for a task."""
        text = await wait_async(self._core.list(free=free))
        locks: builtins.list[dict[str, Any]] = json.loads(text)
        return locks

    async def ashow(self, name: str) -> dict[str, Any] | None:
        """`show` for a task."""
        return _one(await wait_async(self._core.show(_wanted.text("name", name))))


def connect(
    url: str, table: str | None = None, *, password: Callable[[], str] | None = None
) -> Locks:
    """The locks of a database: see `Locks`."""
    return Locks(url, table, password=password)


def _one(text: str | None) -> dict[str, Any] | None:
    lock: dict[str, Any] | None = None if text is None else json.loads(text)
    return lock


_all: weakref.WeakSet[Locks] = weakref.WeakSet()

_PATIENCE = 2.0
"""Seconds at most that the end of the process waits for locks to be given back."""


@atexit.register
def _drain_all() -> None:
    # Not left to the collector: a release at the end of the interpreter would race with it.
    _core.give_all_back()
    for locks in list(_all):
        pending = locks._core.drain()
        if not pending.wait(_PATIENCE):
            pending.cancel()
    # After what the end itself has to tell.
    _log.close(_PATIENCE)
    _core.close()
