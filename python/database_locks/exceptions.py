"""Exceptions, grouped by what the caller can do about them."""

from __future__ import annotations

from ._hints import worded


class LockException(Exception):
    """The base class of all exceptions of this package."""

    name: str | None = None

    def __repr__(self) -> str:
        # `args` is that of legacy (django-database-locks 0.5), without the name.
        arguments = ", ".join(repr(argument) for argument in self.args)
        return (
            f"{type(self).__name__}({arguments}, name={self.name!r})"
            if self.name
            else (f"{type(self).__name__}({arguments})")
        )


class LockTimeout(LockException):
    """The wait timed out, or a single try failed, because another holder had the lock.

    Nothing was acquired. ``name`` is the lock's, ``timeout`` the allowed seconds (``None``: a
    single try), ``holder`` the other holder's ``locked_by``, ``held_for`` the seconds for which it
    had held the lock; both are ``None`` if unknown. ``rests_for``: if the lock rested (``at_least``),
    for how many seconds more; ``holder`` is then the latest one. ``in_this_process``: the holder is
    another thread, task or object of this process. ``permits``: of a semaphore the limit, of which all
    are held (``holder`` and ``held_for`` are those of the longest held one), or 0: an operator has
    paused it; ``None`` for a lock. ``shared_by``: if shared holders kept an exclusive caller out, their
    number (``holder`` and ``held_for`` are those of the one that has shared it the longest); else
    ``None``. ``row_locker``: no client holds the lock, but a transaction keeps its row locked, in this
    session of the database, as far as it tells; the text says how to end it.
    """

    def __init__(
        self,
        message: str = "failed to acquire lock",
        timeout: float | None = None,
        *,
        name: str | None = None,
        holder: str | None = None,
        held_for: float | None = None,
        rests_for: float | None = None,
        permits: int | None = None,
        shared_by: int | None = None,
        row_locker: str | None = None,
    ) -> None:
        # `args` is that of legacy, whose users may read it.
        super().__init__(*((message,) if timeout is None else (message, timeout)))
        self.name = name
        self.timeout = timeout
        self.holder = holder
        self.held_for = held_for
        self.rests_for = rests_for
        self.permits = permits
        self.shared_by = shared_by
        self.row_locker = row_locker
        self.in_this_process = False

    def __str__(self) -> str:
        message = str(self.args[0])
        if self.timeout is not None:
            message += f" of {self.timeout:g}s"
        if self.permits is not None:
            return f"{message}: {permits_held(self.name, self.permits)}{self._longest()}"
        if self.name is not None:
            message += f": `{self.name}`"
        if self.rests_for is not None:
            message += f" rests for another {self.rests_for:.1f}s"
            if self.holder is not None:
                message += f" after {self.holder}"
        elif self.holder is not None:
            is_or_was = "is" if self.row_locker is None else "was"
            message += f" {is_or_was} {shared_by(self.shared_by)} by {self.holder}"
            if self.in_this_process:
                message += " (this process)"
            if self.held_for is not None:
                message += f" for {self.held_for:.1f}s"
        if self.row_locker is not None:
            message += f"; no client holds it now, but a transaction keeps its row locked: {self.row_locker}"
        return message

    def _longest(self) -> str:
        """The holder that has held its permit the longest."""
        if self.permits == 0 or self.holder is None:
            return ""
        message = f"{' the longest' if self.permits != 1 else ''} by {self.holder}"
        if self.permits != 1:
            message = f",{message}"
        if self.in_this_process:
            message += " (this process)"
        return message if self.held_for is None else f"{message} for {self.held_for:.1f}s"


def shared_by(holders: int | None) -> str:
    """``held``, or how many holders share the lock that an exclusive caller waits for."""
    if holders is None:
        return "held"
    return "shared" if holders == 1 else f"shared by {holders} holders, the longest"


def permits_held(name: str | None, permits: int) -> str:
    """Why no permit of a semaphore is free."""
    if permits == 0:
        return f"semaphore `{name}` is paused: its limit in the database is 0"
    if permits == 1:
        return f"the one permit of `{name}` is held"
    return f"all {permits} permits of `{name}` are held"


class LockAlreadyRan(LockTimeout):
    """The latest grant of the lock began too recently for one ``once_per`` period.

    Nothing was acquired, and nothing was waited for. ``name`` is the lock's, ``holder`` the
    ``locked_by`` of the latest grant, which may still hold the lock (``None`` if unknown), ``ago``
    the seconds since that grant began, by the database's clock, ``once_per`` the seconds of the
    period.
    """

    def __init__(
        self,
        message: str = "lock not acquired",
        *,
        name: str | None = None,
        holder: str | None = None,
        ago: float | None = None,
        once_per: float | None = None,
    ) -> None:
        super().__init__(message, name=name, holder=holder)
        self.ago = ago
        self.once_per = once_per

    def __str__(self) -> str:
        message = str(self.args[0])
        if self.name is not None:
            message += f": `{self.name}` was granted"
            if self.holder is not None:
                message += f" to {self.holder}"
            if self.ago is not None:
                message += f" {self.ago:.1f}s ago"
            if self.once_per is not None:
                message += f", and is granted once per {self.once_per:g}s"
        return message


class LockLost(LockException):
    """The lease ended before it was released: another client may hold the lock by now.

    ``name`` is the lock's, ``slot`` the number of the permit (``None`` for a lock), ``token`` that of
    the lost grant, ``reason`` one of ``expired``,
    ``preempted``, ``forced``, ``released``, ``resumed``, ``row_gone``, ``unreachable``,
    ``refused``, ``failover``, ``forked``. ``last_answer`` is the result of the last renewal if
    renewals failed until the lease ended: the database's own message if it refused. ``held_for`` is
    the number of seconds that the lock was safely held. ``holder`` and ``holder_token`` are those
    of the grant that the database named as the present one; ``None`` if the lock was free, or the
    lease ended without an answer. ``detail`` is all of this in one sentence, the same in every
    interface of this library: ``lost after 12s: preempted by another holder (now held by web-2 for
    3s, token 17)``.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        name: str | None = None,
        slot: int | None = None,
        token: int | None = None,
        reason: str | None = None,
        detail: str | None = None,
        last_answer: str | None = None,
        held_for: float | None = None,
        holder: str | None = None,
        holder_token: int | None = None,
    ) -> None:
        if message is None:
            # For a lock that of legacy.
            what = "lock" if slot is None else f"permit {slot}"
            message = f"lost {what}, terminating"
        super().__init__(message)
        self.name = name
        self.slot = slot
        self.token = token
        self.reason = reason
        self.detail = detail
        self.last_answer = last_answer
        self.held_for = held_for
        self.holder = holder
        self.holder_token = holder_token

    def __str__(self) -> str:
        message = super().__str__()
        if self.name is not None:
            message += f": `{self.name}`"
        if self.detail is not None:
            message += f" {self.detail}"
        elif self.reason is not None:
            message += f" ({self.reason})"
        return message


class LockReleased(LockException):
    """A `Held` was used after the end of its block, or after its release.

    ``name`` is the lock's, ``slot`` the number of the permit (``None`` for a lock), ``token`` that of
    the grant.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        name: str | None = None,
        slot: int | None = None,
        token: int | None = None,
    ) -> None:
        if message is None:
            what = "the lock" if slot is None else f"permit {slot}"
            message = f"{what} is not held any more: its block has ended, or it was released"
        super().__init__(message)
        self.name = name
        self.slot = slot
        self.token = token

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.name is None else f"`{self.name}`: {message}"


class LockUnavailable(LockException):
    """The database did not answer, or refused; the message says which, and what to do.

    The request may have taken effect all the same. If it acquired the lock, the lock is free again
    within 30 seconds.
    """

    def __init__(self, message: str = "", *args: object) -> None:
        super().__init__(worded(str(message)), *args)


class LockConfigError(LockException, ValueError):
    """A setting or argument is out of range; the message says what is allowed.

    Raised before anything is sent to the database.
    """
