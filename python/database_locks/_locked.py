"""`locked`, the decorator, and `is_locked`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from . import _project
from ._lock import lock
from ._wrap import decorate
from .exceptions import LockConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._client import Client
    from ._typing import Decorator, Options, SkippingDecorator

F = TypeVar("F", bound=Callable[..., Any])


@overload
def locked(func: F, /) -> F: ...
@overload
def locked(
    lock_name: str | Callable[..., str] | None = None,
    *,
    on_busy: Literal["skip"],
    **options: Unpack[Options],
) -> SkippingDecorator: ...
@overload
def locked(
    lock_name: str | Callable[..., str] | None = None,
    *,
    on_busy: Literal["wait", "raise"] = "wait",
    **options: Unpack[Options],
) -> Decorator: ...
def locked(func_or_name: Any = None, /, **options: Any) -> Any:
    """Run a function, or a Django management command, under a lock.

    ``@locked``, ``@locked("name")`` and ``@locked(timeout=5, …)``, with the arguments of `lock`;
    the name is by default ``module.qualname`` of the decorated object. For functions, coroutine
    functions, generators of both kinds (the lock covers the body), methods, and subclasses of
    Django's ``BaseCommand``. Other classes: `NotImplementedError`.

    A name may have fields, which the arguments of each call fill:
    ``@locked("tenant-{tenant_id}")``. Write a literal brace twice, ``{{``. ``lock_name=`` also
    takes a function, which is called with the same arguments and returns the name.
    """
    return make_locked(None, func_or_name, options)


def make_locked(client: Client | None, func_or_name: Any, options: dict[str, Any]) -> Any:
    if func_or_name is not None and not isinstance(func_or_name, str):
        return decorate(func_or_name, lock(**options)._on(client))
    if isinstance(func_or_name, str):
        if "lock_name" in options:
            raise LockConfigError(
                "the name of the lock is given twice: give it as the first argument or as `lock_name`"
            )
        options["lock_name"] = func_or_name
    name = options.pop("lock_name", None)
    naming = name if callable(name) else None
    template = lock(None if naming is not None else name, **options)._on(client)

    def decorator(func: Any) -> Any:
        return decorate(func, template, naming)

    return decorator


def is_locked(lock_name: str) -> bool:
    """Whether any holder has this lock now, by the clock of the project's database.

    The answer may be outdated when this returns. Raises `LockUnavailable`, and `LockConfigError`
    for a bad name.
    """
    client: Client = _project.conf().locks()
    return client.is_locked(lock_name)
