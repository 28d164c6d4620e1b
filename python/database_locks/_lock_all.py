"""`lock_all`: several locks at once, all or none."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from . import _arguments, _core, _logging, _shared, _status_file
from ._arguments import NOTSET, AcquireRequest, Seconds
from ._lock import lock, logger
from ._registry import held_here
from ._wrap import decorate
from .exceptions import LockConfigError

if TYPE_CHECKING:
    from ._held import Held

F = TypeVar("F", bound=Callable[..., Any])


class lock_all(lock):
    """Several locks as a context manager (``with`` and ``async with``) and as a decorator.

    All of them are acquired at once, or none. While it waits, the caller holds none of them, so two
    sets cannot block each other, whatever the order of their names. If one lock is lost, all count
    as lost: `LockLost` names that one.

    :param lock_names: their names, 1 to 100, in any order; a name that occurs twice counts once.
        Names have no fields

    The other arguments are those of `lock`, and hold for each of the locks; ``timeout`` limits one
    wait for all of them. ``locked_by`` takes no lock over from another process.

    ``as held`` gives a `Held`, with `Held.tokens`; `Held.atomic` and `Held.fence` are fences over
    all of them. In the block a `lock` of one of the names nests, with the token of that name, and so
    does a set of some of them; neither releases anything. Where the thread or task holds only some of the names already, `LockConfigError` is
    raised at once: a wait for all of them together would wait for these for ever.

    >>> import database_locks
    >>> locks = database_locks.connect("memory:")
    >>> with locks.lock_all(["account 7", "account 3"], timeout=5) as held:
    ...     print(list(held.tokens))
    ['account 3', 'account 7']
    """

    def __init__(
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
    ) -> None:
        """See the class."""
        self._names = _arguments.names_of(lock_names)
        super().__init__(
            self._names[0],
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

    def __call__(self, func: F) -> F:
        """Decorate a function, as `locked` does."""
        return cast("F", decorate(func, self, lambda *args, **kwargs: self._names[0]))

    def _for_call(self, name: str) -> lock:
        return super()._for_call(self._names[0])

    def _resolve(self) -> AcquireRequest:
        request = super()._resolve()
        return replace(request, name=", ".join(self._names), names=self._names)

    def _all_held(self, request: AcquireRequest) -> Held | None:
        """What the calling thread or task holds all of them by, if it holds any."""
        held = {key[2]: held_here(key) for key in request.keys}
        for one in held.values():
            if one is not None:
                _shared.refuse_upgrade(request, one)
        first = next((one for one in held.values() if one is not None), None)
        if first is not None and any(one is not first for one in held.values()):
            some = ", ".join(f"`{name}`" for name, one in held.items() if one is not None)
            raise LockConfigError(
                f"this thread or task holds {some} already, and not together with all of "
                f"{request.name}: the wait for all of them could never end. Acquire all of them in the outermost block (a lock that an open transaction keeps "
                'counts too, unless it has `until="exit"`)'
            )
        return first

    def _held_already(self, request: AcquireRequest, entry: _core.Entry) -> Held | None:
        if request.client is None:
            return super()._held_already(request, entry)
        held = self._all_held(request)
        return None if held is None else held._enter_again()._part(request.names)

    def _resumes_kept(self, request: AcquireRequest) -> bool:
        held = None if request.client is None else self._all_held(request)
        # As with one lock, an object excludes its own thread.
        if held is None or held._is_used():
            return False
        self._acquired = held._resume_detached()
        return True

    def _ask(self, request: AcquireRequest) -> _core.Pending[_core.Guard | None]:
        if request.client is None:
            raise LockConfigError("locks are switched off")
        _logging.follow()
        logger.info("acquiring locks %s", request.name)
        _status_file.write(request.status_file, "1")
        return request.client._core.acquire_all(
            list(request.names),
            ttl=request.ttl,
            wait=request.wait,
            auto_renew=request.auto_renew,
            renew_every=request.renew_every,
            holder=request.holder,
            poll=request.poll,
            meta=request.meta,
        )


# `help` would show the signature of `__new__`.
lock_all.__signature__ = inspect.signature(  # type: ignore[attr-defined]
    functools.partial(lock_all.__init__, cast("lock_all", None))
)
