"""`semaphore`: a lock that several holders have at the same time."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from . import _arguments
from ._arguments import NOTSET, AcquireRequest, Seconds
from ._lock import lock


class semaphore(lock):
    """A semaphore as a context manager (``with`` and ``async with``) and as a decorator: up to
    ``permits`` holders at the same time, in whichever process.

    :param lock_name: unique name in the database, 1 to 255 characters. A semaphore and a lock of the
        same name are independent of each other. The name of a decorator may have fields
    :param permits: how many may be held at the same time, 1 to 65536. The limit is the caller's: if
        callers name different ones, together they may exceed the lower one. An operator's limit in
        the database (``dblock limit``, `Locks.set_limit`) takes precedence over it at the next try
    :param locked_by: a name for lists and messages, and nothing else: no permit is taken over
    :param at_least: for how many seconds from its grant on the permit cannot be acquired again, even
        if it is released before: so no more than ``permits`` blocks begin in so many seconds, as for
        a partner that allows a number of requests a second
    :param until: ``"exit"`` (the default, unlike that of `lock`): the permit is released at the end
        of the block. ``"commit"``: if the block ends within a Django transaction, the permit is kept
        until that has ended

    The other arguments are those of `lock`; those that make no sense for several holders are missing.

    ``as held`` gives a `Held`, whose ``slot`` is the number of the permit, from 0: of the present
    holders no two have the same. Tokens of different permits cannot be compared.

    **A semaphore does not nest.** Each block acquires another permit, also in the thread or task that
    holds one already. If all threads that hold a permit wait for a second one, all of them wait for
    ever: no error reports it. Give such a wait a ``timeout``.

    >>> import database_locks
    >>> locks = database_locks.connect("memory:")
    >>> with locks.semaphore("partner api", 3, timeout=5) as held:
    ...     print(held.slot in (0, 1, 2))
    True

    Raises `LockTimeout` with ``permits``, and the other errors of `lock`.
    """

    def __init__(
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
    ) -> None:
        """See the class."""
        self._permits = _arguments.permits_of(permits)
        super().__init__(
            _arguments.text("lock_name", lock_name),
            timeout,
            lock_ttl,
            locked_by,
            auto_renew,
            retry,
            lost_lock_cb,
            lock_ttl_renew,
            on_busy=on_busy,
            at_least=at_least,
            until=until,
            until_using=until_using,
            meta=meta,
        )
        self._is_permit = True

    def _resolve(self) -> AcquireRequest:
        return replace(super()._resolve(), permits=self._permits)


# `help` would show the signature of `__new__`.
semaphore.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    functools.partial(semaphore.__init__, cast("semaphore", None))
)
