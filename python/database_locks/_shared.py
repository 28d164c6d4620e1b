"""Shared holds of a lock: many holders that only read, or one that writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from ._contention import both
from .django import open_transactions
from .exceptions import LockConfigError, LockTimeout

if TYPE_CHECKING:
    from ._arguments import AcquireRequest
    from ._held import Held


def refuse_options(at_least: float, once_per: float | None, ticket: str | None) -> None:
    """Raise `LockConfigError` for an argument that does not go together with ``shared=True``."""
    if ticket is not None:
        why = "the ticket says whether its holder shares the lock"
        raise LockConfigError(f"`shared` is given with a `ticket`, must be left out: {why}")
    given = "at_least" if at_least else None if once_per is None else "once_per"
    if given is not None:
        why = "it is for a holder that excludes the others"
        raise LockConfigError(f"`{given}` is given with `shared`, must be left out: {why}")


def refuse_upgrade(request: AcquireRequest, held: Held) -> None:
    """Raise `LockConfigError` if a thread or task shares a lock, and wants it for itself alone."""
    if request.shared or not held.shared:
        return
    _raise_config_error(
        f"lock `{held.name}` is shared by this very thread or task already, and to hold it alone it would "
        "wait for itself: a shared hold cannot be made an exclusive one. End the shared block first, "
        "acquire the lock without `shared`, and read again; or acquire it without `shared` in the "
        "outer block, which `Held.downgrade` makes a shared one later (a lock that an open transaction keeps counts "
        'too, unless it has `until="exit"`)',
        request,
    )


def _raise_config_error(message: str, request: AcquireRequest) -> NoReturn:
    if request.wait is None:
        raise LockConfigError(message)
    # The wait has a limit, so it would end in a `LockTimeout`.
    error = both(LockTimeout)(message)
    vars(error).update(name=request.name, timeout=None, holder=None, held_for=None)
    raise error


def check_downgrade(held: Held) -> None:
    """Raise `LockConfigError` if `Held.downgrade` makes no sense. Without I/O."""
    request = held._request
    if request.names or request.permits is not None or held.slot is not None:
        what = "locks that are held together" if request.names else "a permit of a semaphore"
        raise LockConfigError(f"{held.name}: {what} cannot be shared: downgrade a hold of `lock`")
    if held.shared:
        raise LockConfigError(f"lock `{held.name}` is shared by this hold already")
    if held._guard is not None and held._guard.depth > 1:
        raise LockConfigError(
            f"lock `{held.name}` is held by an outer block too, which relies on being alone: call "
            "`downgrade` in the outermost block of the lock, outside the others"
        )
    alias = None if request.until == "exit" else _open_alias(request.until_using)
    if alias is not None:
        raise LockConfigError(
            f"a transaction is open on the database {alias!r}, and whoever shares lock `{held.name}` "
            "would read what was there before its commit: call `downgrade` after the transaction, or "
            'give until="exit"'
        )


def _open_alias(using: str | None) -> str | None:
    connections: Any = open_transactions.django_connections()
    return None if connections is None else open_transactions._open_alias(using)
