"""`Locks` and `connect`: the locks of one table, for programs with and without Django."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from . import _arguments, _naming
from ._arguments import NOTSET
from ._client import Client
from ._leader import leader as Leader
from ._lock import lock as Lock
from ._lock_all import lock_all as LockAll
from ._locked import make_locked
from ._semaphore import semaphore as Semaphore

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._arguments import Seconds
    from ._typing import Decorator, F, Options, SkippingDecorator


_M = TypeVar("_M", bound=Callable[..., Any])


def _hinting(method: _M) -> _M:
    @functools.wraps(method)
    def hinting(*args: Any, **words: Any) -> Any:
        _arguments.refuse_foreign(words)
        return method(*args, **words)

    return cast("_M", hinting)


class Locks(Client):
    """The locks of one table of one database.

    ``url`` is ``postgres://…``, ``mysql://…``, ``sqlite:///…`` or ``memory:``. Nothing is sent
    until a lock is used. Threads share one such object, and a forked child may go on using it.

    ``password`` is called without arguments at each connect if the URL has no password, and returns
    it. A connect also happens when a connection breaks while locks are held, so a token may change.
    It is called on a thread of its own, one call at a time, and may block for 10 s. While it
    raises, the database counts as unreachable: waits go on, and `LockUnavailable` has the exception
    as its ``__cause__``.

    Raises `LockConfigError` for a URL that cannot be understood; the message does not repeat the
    URL.

    >>> locks = Locks("memory:")
    >>> with locks.lock("report", timeout=5):
    ...     pass
    """

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
        at_least: Seconds = 0,
        once_per: Seconds | None = None,
        shared: bool = False,
        until: Literal["commit", "exit"] = "commit",
        until_using: str | None = None,
        meta: Mapping[str, Any] | None = None,
        ticket: str | None = None,
    ) -> Lock:
        """`database_locks.lock` on this table."""
        return Lock(
            lock_name,
            timeout,
            lock_ttl,
            locked_by,
            auto_renew,
            retry,
            lost_lock_cb,
            lock_ttl_renew,
            on_busy=on_busy,
            at_least=at_least,
            once_per=once_per,
            shared=shared,
            until=until,
            until_using=until_using,
            meta=meta,
            ticket=ticket,
        )._on(self, _naming.caller(2))

    @_hinting
    def lock_all(
        self,
        lock_names: Iterable[str],
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
    ) -> LockAll:
        """`database_locks.lock_all` on this table."""
        made = LockAll(
            lock_names,
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
        )
        made._on(self)
        return made

    @_hinting
    def semaphore(
        self,
        lock_name: str,
        permits: int,
        *,
        timeout: Seconds | None = 0,
        lock_ttl: Seconds | None = NOTSET,
        locked_by: str | None = None,
        auto_renew: bool = True,
        retry: Seconds | None = 0.5,
        lost_lock_cb: Callable[[int, Any], Any] | None = None,
        lock_ttl_renew: Seconds | None = NOTSET,
        on_busy: Literal["wait", "raise", "skip"] = "wait",
        at_least: Seconds = 0,
        until: Literal["commit", "exit"] = "exit",
        until_using: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Semaphore:
        """`database_locks.semaphore` on this table."""
        made = Semaphore(
            lock_name,
            permits,
            timeout=timeout,
            lock_ttl=lock_ttl,
            locked_by=locked_by,
            auto_renew=auto_renew,
            retry=retry,
            lost_lock_cb=lost_lock_cb,
            lock_ttl_renew=lock_ttl_renew,
            on_busy=on_busy,
            at_least=at_least,
            until=until,
            until_using=until_using,
            meta=meta,
        )
        made._on(self)
        return made

    def leader(
        self,
        name: str,
        lock_ttl: Seconds | None = NOTSET,
        locked_by: str | None = None,
        retry: Seconds = 0.5,
        lock_ttl_renew: Seconds | None = NOTSET,
        *,
        meta: Mapping[str, Any] | None = None,
    ) -> Leader:
        """`database_locks.leader` on this table."""
        return Leader(name, lock_ttl, locked_by, retry, lock_ttl_renew, meta=meta)._on(self)

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
        """`database_locks.locked` on this table."""
        return make_locked(self, func_or_name, options)


def connect(
    url: str, table: str | None = None, *, password: Callable[[], str] | None = None
) -> Locks:
    """The locks of a database: see `Locks`."""
    return Locks(url, table, password=password)
