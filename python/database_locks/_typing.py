"""Types of the API, for type checkers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypedDict, TypeVar, overload

if TYPE_CHECKING:
    from ._arguments import Seconds
    from ._held import Held

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")
S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type[Any])


class Loss(TypedDict):
    """The facts of a loss: arguments of `LockLost`."""

    name: str
    """The lock that was lost: of several, one."""
    slot: int | None
    reason: str | None
    detail: str | None
    last_answer: str | None
    held_for: float | None
    holder: str | None
    holder_token: int | None


class Options(TypedDict, total=False):
    """The arguments of `lock`, except ``lock_name`` and ``on_busy``."""

    timeout: Seconds | None
    lock_ttl: Seconds | None
    locked_by: str | None
    auto_renew: bool
    retry: Seconds | None
    lost_lock_cb: Callable[[int, Any], Any] | None
    lock_ttl_renew: Seconds | None
    at_least: Seconds
    once_per: Seconds | None
    shared: bool
    until: Literal["commit", "exit"]
    until_using: str | None
    meta: Mapping[str, Any] | None
    ticket: str | None


class Decorator(Protocol):
    """The decorated object keeps its signature."""

    def __call__(self, func: F, /) -> F: ...


class SkippingDecorator(Protocol):
    """A skipped call returns ``None``."""

    @overload
    def __call__(self, func: C, /) -> C: ...
    @overload
    def __call__(
        self, func: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Callable[P, Coroutine[Any, Any, R | None]]: ...
    @overload
    def __call__(
        self, func: Callable[P, AsyncGenerator[Y, S]], /
    ) -> Callable[P, AsyncGenerator[Y, S]]: ...
    @overload
    def __call__(
        self, func: Callable[P, Generator[Y, S, R]], /
    ) -> Callable[P, Generator[Y, S, R | None]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Callable[P, R | None]: ...


class Attempt(Protocol):
    """The block of ``lock(…).try_()``."""

    def __enter__(self) -> Held | None: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    async def __aenter__(self) -> Held | None: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
